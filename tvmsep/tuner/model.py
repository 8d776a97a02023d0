"""The cost model: gradient-boosted trees that rank configs, shared by all tasks of a template.

The target is `log(best time of the task / time)`, which makes tasks comparable; what is learnt on
one layer ranks the untried configs of another (the idea of AutoTVM, Chen et al., NeurIPS 2018).
"""

from __future__ import annotations

import functools
import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmsep.contracts import Config, Task, Trial, Workload
from tvmsep.contracts.config import OPTIONAL

if TYPE_CHECKING:
    import xgboost

_FAILED = -3.0
_MIN_ROWS = 8  # and a tenth more than the last time, since fitting costs as much as a trial
_ROUNDS = 120
_TREES: dict[str, Any] = {
    "max_depth": 5, "eta": 0.1, "min_child_weight": 3, "subsample": 0.9, "colsample_bytree": 0.7,
    "objective": "reg:squarederror", "nthread": 1, "verbosity": 0,
}  # fmt: skip
"""Small steps, no leaf for fewer than three trials, and not every feature for every tree: what is
learnt has to hold for layers that no trial is of. Deeper and faster trees rank the layers they were
taught with better and others worse: seen with MobileNetV2 after the log of MobileNetV1."""
PRIOR_WEIGHT = 0.5
"""Of a trial of another log of the same target, beside one of this run."""
RELATED_WEIGHT = 0.1
"""Of a trial of another target."""


def _log2(x: float) -> float:
    return math.log2(max(x, 1))


def _waste(extent: int, tile: int) -> float:
    """How much longer an axis gets when it is padded to whole tiles, as a logarithm."""
    return math.log2(-(-extent // tile) * tile / extent)


@functools.lru_cache(maxsize=1 << 16)
def features(w: Workload, threads: int, c: Config) -> list[float]:
    """Numbers that describe one config of one workload, comparable within a template."""
    values = [v for knob, v in c.items() if knob not in OPTIONAL]
    whole = [max(v, 1) for v in values if isinstance(v, int)]
    ints = [math.log2(v) for v in whole]
    words = [float(zlib.crc32(v.encode()) % 997) for v in values if isinstance(v, str)]
    pairs = [a + b for i, a in enumerate(ints) for b in ints[i + 1 :]]
    pixels, blocks = w.oh * w.ow, -(-w.oc // max(w.out_block, 1))
    extents = (pixels, w.oh, w.ow, blocks)
    shares = [math.log2(e) - x for x in ints for e in (pixels, w.oh, blocks)]
    wastes = [_waste(e, v) for v in whole for e in extents]
    shape = [w.n, w.ic, w.oc, w.oh, w.ow, pixels, w.kh * w.kw, w.in_block, w.out_block]
    shape += [blocks, -(-w.ic // max(w.in_block, 1)), w.ic * w.oc, w.flops]
    layout = [w.sh, w.in_split == "rows", w.out_split == "rows", len(w.epilogue), threads]
    layout += ["add" in w.epilogue, sum(1 << i for i, k in enumerate(OPTIONAL) if k in c)]
    numbers = [*ints, *words, *pairs, *shares, *wastes, *map(_log2, shape)]
    return [*numbers, *map(float, layout)]


class CostModel:
    """Ranks configs of tasks of one template; knows nothing until it has seen a few trials.

    Args:
        seed: of the trees.
        target: whose trials it ranks.
        prior: trials of earlier logs of the template. What is known of a related target is a
            weak hint: its configs rank alike more often than not.
    """

    def __init__(self, seed: int, target: str = "", prior: Sequence[Trial] = ()) -> None:
        self._seed = seed
        self._booster: xgboost.Booster | None = None
        self._rows = -1
        self._prior = _rows(prior)
        self._prior_weights = [
            PRIOR_WEIGHT if t.target == target else RELATED_WEIGHT for t in _grouped(prior)
        ]

    @property
    def trained(self) -> bool:
        """Whether it has seen enough to rank anything."""
        return self._booster is not None

    def fit(self, trials: Iterable[Trial]) -> None:
        """Learn from all trials of the template, failures included."""
        rows, target = _rows(trials)
        many = len(rows) + len(self._prior[0]) >= _MIN_ROWS
        if not many or len(rows) < max(1.1 * self._rows, self._rows + 1):
            return
        self._rows = len(rows)
        import xgboost

        data = xgboost.DMatrix(
            np.asarray([*rows, *self._prior[0]], np.float32),
            np.asarray([*target, *self._prior[1]], np.float32),
            weight=np.asarray([1.0] * len(rows) + self._prior_weights, np.float32),
        )
        self._booster = xgboost.train({**_TREES, "seed": self._seed}, data, num_boost_round=_ROUNDS)

    def predict(self, task: Task, configs: Sequence[Config]) -> np.ndarray[Any, Any]:
        """Predicted `log(best / time)` of each config: larger is better."""
        if self._booster is None:
            raise RuntimeError("fit the model before asking it")
        import xgboost

        rows = [features(task.workload, task.threads, c) for c in configs]
        scores: np.ndarray[Any, Any] = self._booster.predict(
            xgboost.DMatrix(np.asarray(rows, np.float32))
        )
        return scores


def _grouped(trials: Iterable[Trial]) -> list[Trial]:
    """Trials of one task on one CPU beside each other: only their times compare."""
    groups: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[trial.task_key, trial.cpu].append(trial)
    return [t for group in groups.values() for t in group]


def _rows(trials: Iterable[Trial]) -> tuple[list[list[float]], list[float]]:
    """Features and `log(best / time)` of each trial, in the order of `_grouped`."""
    trials = _grouped(trials)
    best: dict[tuple[str, str], float] = {}
    for t in trials:
        at = t.task_key, t.cpu
        best[at] = min(best.get(at, math.inf), t.median_s)
    rows, target = [], []
    for t in trials:
        fastest = best[t.task_key, t.cpu]
        failed = t.failure is not None or not math.isfinite(fastest)
        rows.append(features(t.workload, t.threads, t.as_config()))
        target.append(_FAILED if failed else math.log(fastest / t.median_s))
    return rows, target
