"""How trials a minute grow with the number of boards, where each trial takes a fixed time.

    python benchmarks/scaling.py --boards 1,2,4,8,16 --latency 0.2

Boards are simulated: each answers after the latency with a time from a formula, and costs this
machine nothing. All else is real: the tuner, its cost model and its log, the queue, the builders.
What share of linear growth is reached depends on how fast the builders compile, which is measured
first: a run with more boards than they can feed has them as its limit. `--no-build` leaves the
compiling out and so shows what the queue and the tuner could do with builders enough: those of this
machine share its cores with the tuner and its cost model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvmsep.api import prepare
from tvmsep.contracts import Config, Target, Task
from tvmsep.logs import LogFile
from tvmsep.measure import Board, Built, Failed, Farm, Measured, farm
from tvmsep.schedules import TEMPLATES
from tvmsep.tuner import TuneState, finals, session, tune_tasks

PEAK_FLOPS = 100e9
LINEAR = 0.9
"""From this share of linear growth on, the boards are what limits a run."""
BUILDS = 96
"""Candidates that are compiled to learn the builders' rate."""


class Simulated:
    """Stands where a `Slot` stands: a board that is always there."""

    latency_s = 0.0
    own_server = None
    session_s = float("inf")
    count = 0
    moments: list[float] = []
    """When each trial ended: what equals a program that was measured is none."""

    def __init__(self, *_: Any) -> None:
        Simulated.count += 1
        self.board = Board(f"simulated-{Simulated.count}", "", 0, "", "simulated", False, "far")
        self.connected = False

    def connect(self, session_s: float = 0.0) -> str:
        """At once."""
        self.connected = True
        return ""

    def measure(self, task: Task, built: Built, repeats: int | None) -> Measured:
        """A time that depends on the program alone."""
        time.sleep(self.latency_s)
        self.moments.append(time.monotonic())
        ripple = zlib.crc32(built.program.encode()) / 2**32
        seconds = max(task.workload.flops, 1000) / PEAK_FLOPS * (1.05 + ripple)
        return Measured((seconds,) * 3, 0.0, self.board.name)

    def stop(self) -> None:
        """Nothing to end."""

    close = drop = stop


class SimulatedFarm(Farm):
    """Real builders and a real queue for simulated boards."""

    def __init__(self, target: Target, boards: int, builders: int | None, compiles: bool) -> None:
        super().__init__(
            target, builders=builders, board=Board("simulated", "", 0, "", "", False, "far")
        )
        self._compiles = compiles
        for _ in range(boards - 1):
            self._dispatch._add()

    def build(self, jobs: Sequence[tuple[Task, Config]]) -> list[Built | Failed]:
        """As a farm, or at once."""
        if self._compiles:
            return super().build(jobs)
        return [Built(Path("nowhere"), f"{task.key} {config.key}") for task, config in jobs]


def build_rate(tasks: Sequence[Task], target: Target, builders: int | None) -> float:
    """Candidates a second that the builders compile while nothing else runs."""
    jobs = []
    for task in tasks:
        template = TEMPLATES[task.template]
        space = template.space(task.workload, target, task.threads).configs()
        jobs += [(task, c) for c in space[:: max(1, len(space) // 4)]]
    jobs = jobs[:: max(1, len(jobs) // BUILDS)]
    with SimulatedFarm(target, 1, builders, True) as park:
        park.build(jobs[:8])
        start = time.monotonic()
        park.build(jobs[8:])
        return len(jobs[8:]) / (time.monotonic() - start)


def trials_per_s(
    tasks: Sequence[Task], target: Target, boards: int, builders: int | None, args: Any
) -> float:
    """Of the part of a search in which every task has had its first batch."""
    moments, first = Simulated.moments, [0]
    moments.clear()

    def progress(state: TuneState) -> None:
        if not first[0] and all(t.trials for t in state.tasks):
            first[0] = len(moments)

    trials = round(boards * args.seconds / args.latency) + 4 * len(tasks)
    if not args.no_build:
        trials = min(trials, args.most)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        with (
            LogFile(path, target=target.name) as log,
            SimulatedFarm(target, boards, builders, not args.no_build) as park,
        ):
            tune_tasks(tasks, target, park, log, peak_flops_per_core=PEAK_FLOPS, trials=trials,
                       seed=0, progress=progress)  # fmt: skip
    return (len(moments) - first[0]) / (moments[-1] - moments[first[0] - 1])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boards", default="1,2,4,8,16")
    parser.add_argument("--latency", type=float, default=0.2, metavar="SECONDS")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each run, about")
    parser.add_argument("--most", type=int, default=900, help="trials of each run")
    parser.add_argument("--builders", type=int, help="by default one a core")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--tasks", type=int, default=12, help="the costliest of them")
    parser.add_argument("--target", default="local")
    parser.add_argument("--no-build", action="store_true", help="leave compiling out")
    args = parser.parse_args()

    farm.Slot, Simulated.latency_s = Simulated, args.latency  # type: ignore[misc, assignment]
    session.PLATEAU_TRIALS = 10**9
    finals.measure_again = lambda *_: None
    prepared = prepare(args.model, target=args.target, threads=1)
    tasks, target = prepared.tasks(), prepared.target
    tasks = sorted(tasks, key=lambda t: -t.count * t.workload.flops)[: args.tasks]
    rate = float("inf") if args.no_build else build_rate(tasks, target, args.builders)
    each = 1 / args.latency
    if not args.no_build:
        print(f"the builders compile {60 * rate:.0f} candidates/min while nothing else runs,")
        print(f"enough for {rate / each:.1f} boards of {args.latency * 1e3:.0f} ms a trial\n")
    print("| boards | trials/min | of linear | limit |\n|---|---|---|---|")
    for boards in map(int, args.boards.split(",")):
        found = trials_per_s(tasks, target, boards, args.builders, args)
        limit = "the tuner" if args.no_build else "the builders"
        limit = "the boards" if found >= LINEAR * boards * each else limit
        print(f"| {boards} | {60 * found:.0f} | {found / (boards * each):.0%} | {limit} |",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
