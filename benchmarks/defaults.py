"""How good the analytic defaults are: each task's predicted config against the best one found.

    python benchmarks/defaults.py mobilenet_v1 mobilenet_v2
    python benchmarks/defaults.py mobilenet_v2 --log my.jsonl --json

Reads logs, measures nothing. Both times of a row come from the turns in which the default and the
best few of its task met inside the network, so that they compare. The last row of a thread count is
the network: what running without a log costs beside the winners.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from tvmsep.api import prepare
from tvmsep.contracts import Config, Task, Trial, TvmsepError, Workload
from tvmsep.contracts.workload import SPLITS, Split
from tvmsep.logs import read_log, shipped_logs
from tvmsep.schedules import TEMPLATES
from tvmsep.tuner.state import same_code, task_key


@dataclass(frozen=True)
class Row:
    """One task; seconds of one run of its kernel."""

    label: str
    count: int
    predicted: str
    predicted_s: float
    best: str
    best_s: float

    @property
    def ratio(self) -> float:
        """Of the default's time to the best one's; at least 1."""
        return self.predicted_s / self.best_s


def row(task: Task, trials: Sequence[Trial], default: Config) -> Row | None:
    """The default beside the best of the turns it took part in; None if it took part in none.

    Where it lowers to the same program as another config, that one's times are its own.
    """
    if trials:  # times of another CPU or TVM do not compare
        last = max(trials, key=lambda t: t.date)
        trials = [t for t in trials if (t.cpu, t.tvm) == (last.cpu, last.tvm)]
    searched = [t for t in trials if t.phase == "search" and t.as_config() == default]
    program = searched[0].program if searched else ""
    meetings: dict[str, dict[str, Trial]] = defaultdict(dict)
    for t in trials:
        if t.phase == "network" and t.failure is None:
            meetings[t.date].setdefault(t.program, t)
    met = [m for _, m in sorted(meetings.items()) if program in m]
    if not program or not met:
        return None
    best = min(met[-1].values(), key=lambda t: t.median_s)
    return Row(
        task.workload.label,
        task.count,
        default.key,
        met[-1][program].median_s,
        best.as_config().key,
        best.median_s,
    )


def rows(model: str, target: str, threads: int, trials: Sequence[Trial]) -> list[Row]:
    """One for each task of the network that the log compares, the heaviest first.

    Raises:
        TvmsepError: the model cannot be read.
    """
    prepared = prepare(model, target=target, threads=threads)
    by_task: dict[str, list[Trial]] = defaultdict(list)
    for t in trials:
        by_task[t.task_key].append(t)

    def known(task: Task) -> list[Trial]:
        """Timed in its place, and searched as any task of the same code."""
        codes = [t for key in same_code(task)[1:] for t in by_task[key] if t.phase == "search"]
        return by_task[task_key(task)] + codes

    found = []
    for task in prepared.plans[threads].tasks(prepared.target):
        template = TEMPLATES[task.template]
        if len(template.space(task.workload, prepared.target, task.threads).configs()) < 2:
            continue
        # An older log may have a kernel's values divided otherwise alone.
        ways = [task.workload, *(divided(task.workload, a, b) for a in SPLITS for b in SPLITS)]
        for w in ways:
            default = template.default(w, prepared.target, task.threads)
            one = msgspec.structs.replace(task, workload=w)
            if (made := row(one, known(one), default)) is not None:
                found.append(made)
                break
    return sorted(found, key=lambda r: -r.count * r.best_s)


def divided(w: Workload, before: Split, after: Split) -> Workload:
    """With its input and output divided so."""
    return msgspec.structs.replace(w, in_split=before, out_split=after)


def counts(text: str) -> list[int]:
    """Thread counts of a command line; argparse turns the ValueError into a message."""
    return [int(part) for part in text.split(",")]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="built-in models, as tvmsep names them")
    parser.add_argument("--target", default="x86-zen4")
    parser.add_argument("--threads", type=counts, default=[1, 2], help="as 1,2")
    parser.add_argument("--log", type=Path, help="instead of the shipped logs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    console, answer = Console(), []
    if not console.is_terminal:
        console = Console(width=160)
    try:
        logs = [args.log] if args.log else shipped_logs(args.target)
        trials = [t for path in logs for t in read_log(path)]
        for model in args.models:
            for threads in args.threads:
                found = rows(model, args.target, threads, trials)
                if not found:
                    print(f"{model}, {threads} thread(s): no log compares its defaults")
                    continue
                answer.append(summary(model, threads, found))
                if not args.json:
                    console.print(table(model, threads, found))
    except TvmsepError as exc:
        print(exc, file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(answer, indent=1))
    return 0


def sums(found: Sequence[Row]) -> tuple[float, float]:
    """Seconds of all tasks by their defaults, and by the best."""
    return (
        sum(r.count * r.predicted_s for r in found),
        sum(r.count * r.best_s for r in found),
    )


def summary(model: str, threads: int, found: Sequence[Row]) -> dict[str, object]:
    """One network as JSON."""
    predicted, best = sums(found)
    tasks = [{**vars(r), "ratio": r.ratio} for r in found]
    whole = {"predicted_s": predicted, "best_s": best, "ratio": predicted / best}
    return {"model": model, "threads": threads, **whole, "tasks": tasks}


def table(model: str, threads: int, found: Sequence[Row]) -> Table:
    """One network for a terminal."""
    shown = Table(title=f"{model}, {threads} thread(s)", title_justify="left")
    for name in ("task", "times", "default", "us", "best", "us", "default / best"):
        text = name in ("task", "default", "best")
        shown.add_column(name, justify="left" if text else "right", overflow="fold")
    for r in found:
        us = f"{r.predicted_s * 1e6:.1f}", f"{r.best_s * 1e6:.1f}"
        same = "same" if r.best == r.predicted else r.best
        shown.add_row(r.label, str(r.count), r.predicted, us[0], same, us[1], f"{r.ratio:.2f}")
    shown.add_section()
    predicted, best = sums(found)
    us = f"{predicted * 1e6:.0f}", f"{best * 1e6:.0f}"
    shown.add_row("all of them", "", "", us[0], "", us[1], f"{predicted / best:.2f}")
    return shown


if __name__ == "__main__":
    sys.exit(main())
