"""What the split of values over threads is worth: by rows, by channels, and as times decide it.

    python benchmarks/splits.py mobilenet_v1 mobilenet_v2 --threads 2 --rounds 16

Four forms of a network take turns, kernels timed between clock readings: as planned, with all that
is open (`tvmsep.graph.splits`) divided by rows, with all of it by channels, and as the log's times
decide (`tvmsep.tuner.choice`), which may fuse pairs too. The first three run separate kernels. Each
kernel runs its winner of the log, or its default where the log has none. Below, for each kernel
whose input or output is open, its time in the log by both splits.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import msgspec
import numpy as np
from harness.network import step_times

from tvmsep.api import Prepared, choose_configs, prepare, read_trials
from tvmsep.contracts import Task
from tvmsep.contracts.workload import SPLITS
from tvmsep.graph import Plan, open_splits, resplit
from tvmsep.logs import Best, chosen_by
from tvmsep.tuner.choice import choose_plan
from tvmsep.tuner.state import task_key


def main() -> None:
    """Time the forms and print the log's table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--target", default="local")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--log", type=Path, help="a tuning log; by default those that ship")
    args = parser.parse_args()
    for model in args.models:
        prepared = prepare(model, target=args.target, threads=args.threads)
        winners = chosen_by(read_trials(prepared.target, args.log and [args.log]))
        plan = prepared.plans[args.threads]
        free = open_splits(plan)
        forms = {
            "planned": plan,
            **{s: resplit(plan, dict.fromkeys(free, s)) for s in SPLITS},
            "chosen": choose_plan(plan, prepared.target, winners)[0],
        }
        print(f"{model}, {args.threads} threads, {prepared.target.name}")
        times = measure(prepared, forms, winners, args.rounds)
        for name, seconds in times.items():
            low, high = np.quantile(seconds, [0.25, 0.75]) * 1e3
            ratio = np.median(seconds / times["planned"])
            print(f"  {name:9} {np.median(seconds) * 1e3:7.3f} ms (quartiles {low:.3f} to "
                  f"{high:.3f}), {ratio:.3f} of planned, paired")  # fmt: skip
        table(prepared, plan, forms["chosen"], winners)


def measure(
    prepared: Prepared, forms: dict[str, Plan], winners: dict[str, Best], rounds: int
) -> dict[str, np.ndarray]:
    """Seconds of each form's kernels together: in each round the sum of their medians."""
    configs = [choose_configs(prepared, p, winners)[0] for p in forms.values()]
    times = step_times(prepared.target, [*forms.values()], configs, rounds)
    return {name: t.sum(axis=1) for name, t in zip(forms, times, strict=True)}


def table(prepared: Prepared, plan: Plan, chosen: Plan, winners: dict[str, Best]) -> None:
    """The log's times of kernels around open values; `*` is what was chosen."""
    free = open_splits(plan)
    taken = {s.workload for s in chosen.steps}
    ways = [*itertools.product(SPLITS, SPLITS)]
    print("  us by split of input > output " + "".join(f"{a[:4]}>{b[:4]:9}" for a, b in ways))
    seen = set()
    for step in plan.steps:
        w = step.workload
        if w is None or w.kernel in seen or not {step.inputs[0], step.output} & set(free):
            continue
        seen.add(w.kernel)
        cells = []
        for a, b in ways:
            one = msgspec.structs.replace(w, in_split=a, out_split=b)
            task = Task(
                workload=one, target=prepared.target.name, threads=plan.threads,
                template=step.template,
            )  # fmt: skip
            found = winners.get(task_key(task))
            best = found.inside if found is not None else None
            cells.append(
                f"{best.seconds * 1e6:.1f}{'*' if one in taken else ''}"
                if best is not None else "-"
            )  # fmt: skip
        print(f"  {w.label:30}" + "".join(f"{c:>12}" for c in cells))


if __name__ == "__main__":
    main()
