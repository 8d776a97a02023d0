"""Forms of a network in turns, its kernels timed between clock readings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tvmsep.contracts import Config, Target, Workload
from tvmsep.graph import Plan
from tvmsep.measure import Failed, Farm

Configs = dict[Workload, tuple[str, Config]]
"""Template and config of each workload."""


def step_times(
    target: Target, plans: Sequence[Plan], forms: Sequence[Configs], rounds: int
) -> list[NDArray[np.float64]]:
    """Seconds `[rounds, steps]` of each form: the median run of each round.

    Raises:
        SystemExit: with what failed.
    """
    with Farm(target) as farm:
        answer = farm.run_networks([*plans], [*forms], rounds=rounds)
    if isinstance(answer, Failed):
        raise SystemExit(f"{answer.failure}: {answer.detail}")
    steps = [np.asarray(s) for s in answer.steps]
    return [np.median(s.reshape(rounds, -1, s.shape[1]), axis=1) for s in steps]
