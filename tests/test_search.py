"""Whether the cost model helps: replayed from configs drawn at random and measured on a Zen 4."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from search import curve, each_alone, ideal, load

from tvmsep.api import prepare
from tvmsep.contracts import Target, Task, Trial
from tvmsep.tuner import Strategy
from tvmsep.tuner.state import task_key

LOG = Path(__file__).parents[1] / "benchmarks/data/random.jsonl.gz"
SEEDS = 4


@cache
def drawn() -> tuple[list[Task], Target, list[Trial]]:
    """Pointwise kernels of MobileNetV2, their target, and the log."""
    prepared = prepare("mobilenet_v2", target="x86-zen4", threads=1)
    log = load(LOG)
    _, best = ideal(prepared.tasks(), prepared.target, log)
    known = [t for t in prepared.tasks() if task_key(t) in best and t.template == "pointwise"]
    return known, prepared.target, log


def excess(
    tasks: list[Task], strategy: Strategy, prior: list[Trial], trials: int, after: int
) -> float:
    """How far from the best, over the seeds and the budgets beyond `after`."""
    _, target, log = drawn()
    runs = [curve(tasks, target, log, strategy, prior, seed, trials) for seed in range(SEEDS)]
    return float(np.mean(np.median(runs, axis=0)[after:])) - 1.0


def test_a_cold_model_does_better_than_chance() -> None:
    tasks, _, _ = drawn()
    assert excess(tasks, "xgboost", [], 80, 16) < 0.95 * excess(tasks, "random", [], 80, 16)


def test_first_batches_taught_by_other_layers_do_better_than_chance() -> None:
    tasks, target, log = drawn()
    ends: dict[bool, list[float]] = {True: [], False: []}
    for half in (tasks[::2], tasks[1::2]):
        keys = {task_key(t) for t in half}
        others = [t for t in log if t.task_key not in keys]
        for seed in range(2):
            for taught, found in ends.items():
                prior = others if taught else []
                found.append(each_alone(half, target, log, "xgboost", prior, seed, 4)[-1] - 1.0)
    assert np.mean(ends[True]) < 0.9 * np.mean(ends[False]), ends
