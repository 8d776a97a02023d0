"""From rounds to a verdict. Knows nothing of engines, processes or files.

What a round says about a pair is the middle of its turns' log-ratios: of two that stand beside each
other, some milliseconds apart. A shared machine goes from quick to slow and back within tens of
milliseconds, by a quarter; neighbours mostly meet the same state, and the middle leaves out those
that did not. What is left is the luck of the processes (where their pages lie, which state they
started in). That luck stays for a process's whole life, so turns of one process are no independent
witnesses: rounds are, each with fresh processes.

What a round says about one entrant alone is a low quantile of its calls: whatever else happens on a
machine makes calls longer, never shorter.

For a pair there is one log-ratio a round. If both are equally fast its sign is a coin toss, however
the noise is shaped and however it drifts between rounds: a signed-rank test (Wilcoxon, Individual
comparisons by ranking methods, 1945) is then exact with the few rounds that there are. Ranks above
a quarter of the rounds count as that quarter: on a busy machine the largest log-ratios are those of
rounds that were disturbed, and capped they no longer outvote the others. With 16 rounds whose
log-ratio is 3 % and varies by 1.2 %, a fifth of them spoilt by 12 %, the capped test tells the
difference in 88 of 100 cases, the plain one in 71, a sign test in 84 (simulated).
The interval is the same test turned round: the ratios that it does not reject (Hodges and Lehmann,
Estimates of location based on rank tests, 1963). So the verdict and the interval cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.01
"""How often equal things may be called different."""
POWER = 0.9
"""How often a difference as large as the one seen shall be told, after `more_rounds` more."""
QUANTILE = 0.05
"""Of a process's calls: what a round says about an entrant alone."""
TURN = 0.25
"""Quantile of a turn's calls that stands for the turn."""
MIN_ROUNDS = 8
"""With fewer no outcome at all has a probability below `ALPHA`: 2 / 2**7 is above."""
MOST_ROUNDS = 10_000
"""More than these are not worth naming."""
_Z_ALPHA, _Z_POWER = 2.5758, 1.2816
_EFFICIENCY = 0.74
"""Of the test on normal log-ratios, relative to that of their mean."""

Verdict = Literal["faster", "slower", "cant_tell"]


def figure(calls_s: Sequence[float]) -> float:
    """Seconds: what one round says about one entrant."""
    return float(np.quantile(np.asarray(calls_s), QUANTILE))


def log_ratio(a_s: Sequence[Sequence[float]], b_s: Sequence[Sequence[float]]) -> float:
    """What one round says about a pair: above 0 where the first takes longer.

    Of a turn of more calls than the other's only the first so many count: the quantile of two calls
    is less than that of one.

    Args:
        a_s: for each turn seconds of its calls; turns without any are left out.
        b_s: as many turns.

    Raises:
        ValueError: no turn in which both were timed.
    """
    both = [(a, b) for a, b in zip(a_s, b_s, strict=True) if a and b]
    if not both:
        raise ValueError("no turn in which both were timed")
    logs = []
    for a, b in both:
        count = min(len(a), len(b))
        logs.append(math.log(np.quantile(a[:count], TURN) / np.quantile(b[:count], TURN)))
    return float(np.median(logs))


def _scores(n: int) -> NDArray[np.int64]:
    """What each rank counts, from the smallest."""
    return np.minimum(np.arange(1, n + 1, dtype=np.int64), max(1, n // 4))


@cache
def _cumulative(n: int) -> NDArray[np.float64]:
    """P(S <= s), for s from 0, of the sum of those of `n` scores whose coin shows heads."""
    scores = _scores(n)
    ways = np.zeros(int(scores.sum()) + 1)
    ways[0] = 1.0
    for score in scores:
        ways[score:] = ways[score:] + ways[:-score]
        ways /= 2.0
    return np.cumsum(ways)


def _above(logs: NDArray[np.float64], shift: float) -> int:
    """The scores' sum of what lies above `shift`: falls as `shift` rises."""
    moved = logs - shift
    order = np.argsort(np.abs(moved), kind="stable")
    return int(_scores(len(logs))[moved[order] > 0].sum())


@dataclass(frozen=True)
class Pair:
    """How one entrant's time relates to another's: the ratio below 1 is faster."""

    ratio: float
    low: float
    high: float
    """Ends of the interval; 0 and infinity where the rounds are too few for any."""
    p: float
    """Probability of rounds at least so one-sided if both were equally fast; two-sided."""
    verdict: Verdict
    rounds: int
    more_rounds: int | None
    """How many more would tell a difference as large as the one seen; 0 where it is told, None
    where the one seen is too small for any number worth naming."""


def pair(log_ratios: Sequence[float], alpha: float = ALPHA) -> Pair:
    """Judge a pair.

    Args:
        log_ratios: one a round.
        alpha: as `ALPHA`.

    Raises:
        ValueError: no rounds, or one that is not finite.
    """
    logs = np.asarray(log_ratios, float)
    if logs.ndim != 1 or not logs.size or not np.isfinite(logs).all():
        raise ValueError(f"one finite log-ratio a round is needed: {log_ratios}")
    n = len(logs)
    i, j = np.triu_indices(n)
    walsh = np.sort((logs[i] + logs[j]) / 2)  # where the sum changes
    chances = _cumulative(n)
    whole = len(chances) - 1
    least = int(np.searchsorted(chances, alpha / 2, side="right"))  # sums below are rejected

    def crossing(limit: int) -> float:
        """The lowest place above which the sum is at most `limit`."""
        begin, end = 0, len(walsh) - 1
        while begin < end:
            at = (begin + end) // 2
            if _above(logs, (walsh[at] + walsh[at + 1]) / 2) <= limit:
                end = at
            else:
                begin = at + 1
        return float(walsh[begin])

    low, high = -math.inf, math.inf
    if least:
        low, high = crossing(whole - least), crossing(least - 1)
    middle = (crossing(whole // 2) + crossing((whole - 1) // 2)) / 2
    beside = min(_above(logs, 0.0), _above(-logs, 0.0)) + _ties(logs)
    p = min(1.0, 2 * float(chances[min(beside, whole)]))
    verdict: Verdict = "cant_tell"
    if high < 0:
        verdict = "faster"
    elif low > 0:
        verdict = "slower"
    return Pair(
        math.exp(middle), math.exp(low), math.exp(high), p, verdict, n,
        0 if verdict != "cant_tell" else _more(logs, middle),
    )  # fmt: skip


def _ties(logs: NDArray[np.float64]) -> int:
    """Score of the rounds without any difference: they speak for neither side."""
    return int(_scores(len(logs))[: int((logs == 0).sum())].sum())


def _more(logs: NDArray[np.float64], middle: float) -> int | None:
    """Rounds to add so that a difference of `middle` is told with probability `POWER`."""
    spread = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
    if abs(middle) < 1e-9:
        return None
    more = max(needed(middle, spread), len(logs) + 1) - len(logs)
    return more if more <= MOST_ROUNDS else None


def needed(effect: float, spread: float) -> int:
    """Rounds that tell a log-ratio of `effect` with probability `POWER`.

    Args:
        effect: not 0.
        spread: standard deviation of one round's log-ratio.
    """
    rounds = ((_Z_ALPHA + _Z_POWER) * spread / effect) ** 2 / _EFFICIENCY
    return max(MIN_ROUNDS, math.ceil(rounds))
