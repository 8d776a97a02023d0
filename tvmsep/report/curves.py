"""Best-so-far curves: only the steps are kept, so that a log of any length makes a short one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from tvmsep.contracts import Trial

MAX_POINTS = 300
"""Of one curve; more are thinned out evenly, and the first and the last always kept."""
PAUSE_S = 600.0
"""A longer gap between two trials is a pause of the tuner and does not count as wall time."""


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of a falling line: at a trial, after so many seconds of tuning, the best so far."""

    trials: tuple[int, ...] = ()
    wall_s: tuple[float, ...] = ()
    best_s: tuple[float, ...] = ()


def curve(trials: Sequence[tuple[str, Trial]], used: Mapping[str, int]) -> Curve:
    """The sum of the best times of tasks, each config measured alone, from where all have one.

    Args:
        trials: with their task keys, in the order in which they were measured.
        used: how often each task counts, by task key.
    """
    best: dict[str, float] = {}
    points: list[tuple[int, float, float]] = []
    number, total = 0, math.inf
    search = [(key, t) for key, t in trials if t.phase == "search"]
    walls, _ = wall_time([t for _, t in search])
    for (key, t), wall_s in zip(search, walls, strict=True):
        if key not in used:
            continue
        number += 1
        if t.failure is None and t.times_s and t.median_s < best.get(key, math.inf):
            best[key] = t.median_s
            if len(best) == len(used):
                total = sum(best[k] * n for k, n in used.items())
                points.append((number, wall_s, total))
    if not points:
        return Curve()
    if points[-1][0] != number:
        points.append((number, walls[-1], total))
    at, wall, seconds = zip(*_thin(points), strict=True)
    return Curve(trials=at, wall_s=wall, best_s=seconds)


def _thin(points: Sequence[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    if len(points) <= MAX_POINTS:
        return list(points)
    step = (len(points) - 1) / (MAX_POINTS - 1)
    return [points[round(i * step)] for i in range(MAX_POINTS)]


def wall_time(trials: Iterable[Trial]) -> tuple[list[float], int]:
    """Seconds of tuning before each trial's end, pauses left out; and how many there were."""
    walls: list[float] = []
    pauses, passed = 0, 0.0
    last: float | None = None
    for t in trials:
        try:
            now = datetime.fromisoformat(t.date).timestamp()
        except ValueError:
            walls.append(passed)
            continue
        gap = 0.0 if last is None else max(0.0, now - last)
        pauses += gap > PAUSE_S
        passed += 0.0 if gap > PAUSE_S else gap
        last = now
        walls.append(passed)
    return walls, pauses
