"""What an earlier network's log saves: cold and warm searches, measured here in turns.

    python benchmarks/warm.py --logs build/warm --seeds 3 --trials 400

`warm` has learnt from `--warm`, the log of another network on this target, `cold` from nothing.
Each run has its own seed and no final round. What it would ship after each trial, the best config
it has measured of each task, else its default, is then timed inside the network, all runs' in
turns: a search's own times would reward the luckiest measurement. The best of each task is the best
that any run found. The trials of all runs are kept in `--logs`, and what lies there is not measured
again. Fused kernels take no part.

Each task begins with its default, which the target's facts give. Where these are near the best
already there is little for either to find, so `--without-defaults` takes them away: a task begins
with a config drawn at random, or, for `warm`, with the one that what it has learnt ranks first.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from search import NEAR, ROOT, load, reached

from tvmsep.api import prepare
from tvmsep.contracts import Config, Target, Task, Trial, TvmsepError, Workload
from tvmsep.graph import Plan
from tvmsep.logs import LogFile
from tvmsep.measure import Failed, Farm
from tvmsep.schedules import TEMPLATES
from tvmsep.tuner import finals, session, tune_tasks
from tvmsep.tuner import run as tuner_run
from tvmsep.tuner.model import CostModel
from tvmsep.tuner.state import TaskState, of_one_code, same_code

ROUNDS = 6
"""Turns of each variant of the network."""

Shipped = dict[Workload, Config]


def measured(path: Path) -> list[Trial]:
    """The search trials of a log, in order."""
    return [t for t in load(path) if t.phase == "search"]


def starts(
    tasks: Sequence[Task], target: Target, prior: Sequence[Trial], seed: int, defaults: bool
) -> Shipped:
    """What a run begins with."""
    if defaults:
        return {
            t.workload: TEMPLATES[t.template].default(t.workload, target, t.threads) for t in tasks
        }
    rng, found = np.random.default_rng(seed), {}
    for t in of_one_code(tasks):
        space = TEMPLATES[t.template].space(t.workload, target, t.threads).configs()
        at = t.template, TEMPLATES[t.template].version, "search"  # of what teaches a tuner's model
        earlier = [p for p in prior if (p.template, p.template_version, p.phase) == at]
        model = CostModel(seed, target.name, earlier)
        model.fit([])
        drawn = space[rng.integers(len(space))]
        best = np.argmax(model.predict(t, space)) if model.trained else None
        found[t.workload.kernel] = drawn if best is None else space[best]
    return {t.workload: found[t.workload.kernel] for t in tasks}


@contextlib.contextmanager
def beginning_with(firsts: Shipped) -> Iterator[None]:
    """Let searches take other configs for the defaults."""
    whole = tuner_run.TaskState

    def other(task: Task, space: list[Config], _: Config, floor_s: float) -> TaskState:
        return whole(task, space, firsts[task.workload], floor_s)

    tuner_run.TaskState = other
    try:
        yield
    finally:
        tuner_run.TaskState = whole


def shipped(
    run: Iterable[Trial], tasks: Sequence[Task], firsts: Shipped, trials: int
) -> list[Shipped]:
    """What a run would ship: before its first trial, and after each of them."""
    now = dict(firsts)
    of: dict[str, list[Workload]] = defaultdict(list)
    for task in tasks:
        for key in same_code(task):
            of[key].append(task.workload)
    best: dict[Workload, float] = {}
    found = [dict(now)]
    for t in run:
        for w in of[t.task_key]:
            if t.times_s and t.median_s < best.get(w, np.inf):
                best[w], now[w] = t.median_s, t.as_config()
        found.append(dict(now))
    found += [found[-1]] * (trials + 1 - len(found))
    return found[: trials + 1]


def times(
    farm: Farm, plan: Plan, tasks: Sequence[Task], fields: Mapping[Workload, Sequence[Config]]
) -> dict[tuple[Workload, Config], float]:
    """Seconds of each config inside the network.

    Raises:
        TvmsepError: the networks could not be timed.
    """
    template = {t.workload: t.template for t in tasks}
    variants = [
        {w: (template[w], configs[v % len(configs)]) for w, configs in fields.items()}
        for v in range(max(map(len, fields.values())))
    ]
    answer = farm.run_networks([plan] * len(variants), variants, rounds=ROUNDS)
    if isinstance(answer, Failed):
        raise TvmsepError(f"the networks were not timed: {answer.failure}: {answer.detail}")
    every: dict[tuple[Workload, Config], list[float]] = {}
    for variant, found in zip(variants, answer.kernels, strict=True):
        for w, (_, config) in variant.items():
            every.setdefault((w, config), []).extend(found[w])
    return {at: statistics.median(seconds) for at, seconds in every.items()}


def main() -> None:
    """Measure what is missing, then print trials until near the best."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--warm", type=Path, help="(the target's shipped log of MobileNetV1)")
    parser.add_argument("--target", default="local")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--without-defaults", action="store_true", help="see above")
    parser.add_argument("--logs", type=Path, required=True, help="folder of the runs' logs")
    args = parser.parse_args()

    finals.measure_again = lambda *_: None
    session.PLATEAU_TRIALS = args.trials
    args.logs.mkdir(parents=True, exist_ok=True)
    prepared = prepare(args.model, target=args.target, threads=args.threads)
    plan, target = prepared.plans[args.threads], prepared.target
    tasks = plan.tasks(target)
    args.warm = args.warm or ROOT / f"logs/{target.name}/mobilenet_v1.jsonl"
    prior = {"cold": [], "warm": [t for t in load(args.warm) if t.measured]}
    first = {
        (name, seed): starts(tasks, target, earlier, seed, not args.without_defaults)
        for name, earlier in prior.items()
        for seed in range(args.seeds)
    }
    kind = f"-{args.model}-{target.name}-{args.threads}"
    kind += "-without-defaults" if args.without_defaults else ""
    with Farm(target) as farm:
        peak = farm.peak_flops_per_core()
        for seed in range(args.seeds):
            for name, earlier in prior.items():
                path = args.logs / f"{name}{seed}{kind}.jsonl"
                if path.is_file():
                    continue
                unfinished = path.with_suffix(".part")
                unfinished.unlink(missing_ok=True)
                begin = beginning_with(first[name, seed])
                with LogFile(unfinished, target=target.name) as records, begin:
                    tune_tasks(
                        tasks, target, farm, records, peak_flops_per_core=peak,
                        trials=args.trials, seed=seed, prior=earlier,
                    )  # fmt: skip
                unfinished.rename(path)
                print(f"{path.name}: {len(measured(path))} trials", file=sys.stderr)
        runs = {
            name: [
                shipped(
                    measured(args.logs / f"{name}{seed}{kind}.jsonl"),
                    tasks,
                    first[name, seed],
                    args.trials,
                )
                for seed in range(args.seeds)
            ]
            for name in prior
        }
        fields = {
            t.workload: list(dict.fromkeys(
                now[t.workload] for found in runs.values() for run in found for now in run
            ))
            for t in tasks
        }  # fmt: skip
        seconds = times(farm, plan, tasks, fields)
    count = {t.workload: t.count for t in tasks}
    limit = sum(n * min(seconds[w, c] for c in fields[w]) for w, n in count.items())
    print(f"{args.model}, {len(tasks)} tasks, threads {args.threads}, {target.name}")
    until = {}
    for name, found in runs.items():
        curves = np.array(
            [[sum(n * seconds[w, now[w]] for w, n in count.items()) / limit for now in run]
             for run in found]
        )  # fmt: skip
        each = sorted(reached(list(c)) - 1 for c in curves)
        until[name] = each[len(each) // 2]
        shown = [n for n in sorted({0, 20, 50, 100, 200, args.trials}) if n <= args.trials]
        ends = ", ".join(f"{np.median(curves[:, n]):.3f} at {n}" for n in shown)
        print(f"{name}: within {NEAR - 1:.0%} of the best after {until[name]:g} trials "
              f"(seeds: {each[0]:g} to {each[-1]:g}); median {ends}")  # fmt: skip
    if all(map(np.isfinite, until.values())) and until["cold"]:
        print(f"warm takes {until['warm'] / until['cold']:.0%} of the cold trials")


if __name__ == "__main__":
    try:
        main()
    except TvmsepError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
