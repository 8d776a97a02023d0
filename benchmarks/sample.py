"""Measure configs drawn at random, and pack their log for `search.py`.

    python benchmarks/sample.py --log random.jsonl --out benchmarks/data/random.jsonl.gz

A log that a search made holds what the search liked: random choice from it does better than from
the whole space. Here each of the costliest kernels of a network gets as many configs, drawn
without looking at any time. What is packed keeps five quantiles of each trial's times.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from tvmsep.api import prepare
from tvmsep.contracts import Target, Task, Trial
from tvmsep.logs import LogFile, read_log
from tvmsep.measure import Farm
from tvmsep.schedules import TEMPLATES
from tvmsep.tuner import finals, tune_tasks

LEAST = 64
"""Configs that a space holds at least: in a smaller one there is nothing to search for."""
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def costliest(tasks: list[Task], target: Target, count: int) -> list[Task]:
    """Tasks with room to choose in, by their FLOPs in the network."""

    def room(task: Task) -> int:
        template = TEMPLATES[task.template]
        return len(template.space(task.workload, target, task.threads).configs())

    order = sorted(tasks, key=lambda t: -t.count * t.workload.flops)
    return [t for t in order if t.workload.op != "dwpw" and room(t) >= LEAST][:count]


def pack(trials: list[Trial], out: Path) -> None:
    """Write the search trials of a log, compressed, each time with five values."""
    lines = []
    for t in trials:
        if t.phase == "search":
            times = np.quantile(t.times_s, QUANTILES, method="nearest") if t.times_s else []
            short = tuple(float(f"{s:.4g}") for s in times)
            lines.append(msgspec.json.encode(msgspec.structs.replace(t, times_s=short)))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(gzip.compress(b"\n".join(lines) + b"\n", mtime=0))
    print(f"{len(lines)} trials in {out}, {out.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    """Measure what the log lacks, then pack it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--target", default="local")
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--configs", type=int, default=160, help="of each task, if it has so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=420.0, help="stop after so long")
    parser.add_argument("--log", type=Path, required=True, help="goes on with it")
    parser.add_argument("--out", type=Path, required=True, help="FILE.jsonl.gz")
    args = parser.parse_args()

    finals.measure_again = lambda *_: None
    prepared = prepare(args.model, target=args.target, threads=1)
    tasks = costliest(prepared.tasks(), prepared.target, args.tasks)
    end = time.monotonic() + args.seconds
    with LogFile(args.log, target=prepared.target.name) as log, Farm(prepared.target) as farm:
        peak = farm.peak_flops_per_core()
        for task in tasks:
            had = len([t for t in log.trials if t.workload == task.workload])
            left_s = end - time.monotonic()
            if had < args.configs and left_s > 1:
                tune_tasks(
                    [task], prepared.target, farm, log, peak_flops_per_core=peak,
                    trials=args.configs - had, budget_s=left_s, seed=args.seed, strategy="random",
                )  # fmt: skip
            print(f"{task.workload.label}: {had} before, {len(log.trials)} in all", file=sys.stderr)
    pack(read_log(args.log), args.out)


if __name__ == "__main__":
    main()
