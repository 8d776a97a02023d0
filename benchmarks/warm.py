"""What an earlier network's log saves: cold and warm searches, measured here in turns.

    python benchmarks/warm.py --seeds 3 --trials 400

A log that is replayed (`search.py`) holds a sample of each space, and what a search once chose of
it; here every run may measure whatever it likes. The runs take turns, each with its own seed and
no final round; the best of each task is the best that any run found. A task begins with its
default's time, the median over all runs. `warm` has learnt from `--warm`, the log of another
network on this target, `cold` from nothing. The trials of all runs are kept in `--logs`, and what
lies there is not measured again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
from search import NEAR, ROOT, load, ratios_of, reached

from tvmsep.api import prepare
from tvmsep.contracts import Target, Task, Trial
from tvmsep.logs import LogFile
from tvmsep.measure import Farm
from tvmsep.schedules import TEMPLATES
from tvmsep.tuner import finals, session, tune_tasks
from tvmsep.tuner.state import task_key


def measured(path: Path) -> list[Trial]:
    """The search trials of a log, in order."""
    return [t for t in load(path) if t.phase == "search"]


def starts(tasks: list[Task], target: Target, runs: list[list[Trial]]) -> dict[str, float]:
    """By task: seconds of its default, the median over the runs that measured it."""
    found = {}
    for task in tasks:
        default = TEMPLATES[task.template].default(task.workload, target, task.threads)
        times = [
            t.median_s for run in runs for t in run
            if t.task_key == task_key(task) and t.times_s and t.as_config() == default
        ]  # fmt: skip
        if times:
            found[task_key(task)] = statistics.median(times)
    return found


def main() -> None:
    """Measure what is missing, then print trials until near the best."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--warm", type=Path, default=ROOT / "logs/x86-zen4/mobilenet_v1.jsonl")
    parser.add_argument("--target", default="local")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--logs", type=Path, required=True, help="folder of the runs' logs")
    args = parser.parse_args()

    finals.measure_again = lambda *_: None
    session.PLATEAU_TRIALS = args.trials
    args.logs.mkdir(parents=True, exist_ok=True)
    prepared = prepare(args.model, target=args.target, threads=args.threads)
    tasks, target = prepared.tasks(), prepared.target
    prior = {"cold": [], "warm": [t for t in load(args.warm) if t.measured]}
    with Farm(target) as farm:
        peak = farm.peak_flops_per_core()
        for seed in range(args.seeds):
            for name, earlier in prior.items():
                path = args.logs / f"{name}{seed}.jsonl"
                if path.is_file():
                    continue
                unfinished = path.with_suffix(".part")
                unfinished.unlink(missing_ok=True)
                with LogFile(unfinished, target=target.name) as records:
                    tune_tasks(
                        tasks, target, farm, records, peak_flops_per_core=peak,
                        trials=args.trials, seed=seed, prior=earlier,
                    )  # fmt: skip
                unfinished.rename(path)
                print(f"{path.name}: {len(measured(path))} trials", file=sys.stderr)
    runs = {n: [measured(args.logs / f"{n}{s}.jsonl") for s in range(args.seeds)] for n in prior}
    every = [run for found in runs.values() for run in found]
    start = starts(tasks, target, every)
    known = [t for t in tasks if task_key(t) in start]
    best = dict(start)
    for run in every:
        for t in run:
            if t.times_s and t.task_key in best:
                best[t.task_key] = min(best[t.task_key], t.median_s)
    print(
        f"{args.model}, {len(known)} of {len(tasks)} tasks, threads {args.threads}, {target.name}"
    )
    until = {}
    for name, found in runs.items():
        mine = [[t for t in run if t.task_key in best] for run in found]
        curves = np.array([ratios_of(run, known, start, best, args.trials) for run in mine])
        each = sorted(reached(list(c)) for c in curves)
        until[name] = each[len(each) // 2]
        shown = [n for n in (20, 50, 100, 200, 400) if n <= args.trials]
        ends = ", ".join(f"{np.median(curves[:, n - 1]):.3f} at {n}" for n in shown)
        print(f"{name}: within {NEAR - 1:.0%} of the best after {until[name]:g} trials "
              f"(seeds: {each[0]:g} to {each[-1]:g}); median {ends}")  # fmt: skip
    print(f"warm takes {until['warm'] / until['cold']:.0%} of the cold trials")


if __name__ == "__main__":
    main()
