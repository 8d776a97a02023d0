"""Which configs of one task to measure next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tvmsep.contracts import Config, Task
from tvmsep.tuner.model import CostModel

EXPLORE = 0.25
"""Share of a batch drawn at random, so that the model can be proved wrong."""


def propose(
    task: Task,
    space: Sequence[Config],
    tried: set[Config],
    default: Config,
    model: CostModel,
    count: int,
    rng: np.random.Generator,
    explore: float = EXPLORE,
) -> list[Config]:
    """The next batch: never a config twice, best-ranked first, spread out, partly random.

    The whole space is ranked: it holds at most a few thousand configs. Before the model knows
    anything the batch is the default and a random sample. `explore` is the random share.
    """
    fresh = [c for c in space if c not in tried]
    if not fresh:
        return []
    picked: list[Config] = []
    if default in fresh:
        picked.append(default)
        fresh = [c for c in fresh if c != default]
    shuffled = [fresh[i] for i in rng.permutation(len(fresh))]
    if model.trained and fresh:
        scores: np.ndarray[Any, Any] = model.predict(task, fresh)
        ranked = [fresh[i] for i in np.argsort(-scores, kind="stable")]
        guided = max(0, count - len(picked) - round(count * explore))
        picked += _spread(ranked, guided)
    for c in shuffled:
        if len(picked) >= count:
            break
        if c not in picked:
            picked.append(c)
    return picked[:count]


def _spread(ranked: Sequence[Config], count: int) -> list[Config]:
    """The first `count`, passing over a config that differs in one knob from two chosen ones."""
    chosen: list[Config] = []
    passed: list[Config] = []
    for c in ranked:
        if len(chosen) == count:
            return chosen
        near = sum(1 for d in chosen if sum(c.get(k) != d.get(k) for k in {*c, *d}) <= 1)
        (chosen if near < 2 else passed).append(c)
    return chosen + passed[: count - len(chosen)]
