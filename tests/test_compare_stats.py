"""Verdicts: the test is exact, robust, and agrees with its interval."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from tvmsep.compare import stats
from tvmsep.compare.watch import warnings
from tvmsep.measure.load import Load

# Ratios are told in doubles: what is no double away from 1 is no difference.
Logs = st.lists(
    st.integers(-(10**6), 10**6).map(lambda n: n / 2e6), min_size=1, max_size=24, unique=True
)


def of(logs: list[float] | np.ndarray) -> stats.Pair:
    """A pair whose rounds have these log-ratios."""
    return stats.pair(list(logs))


@settings(max_examples=300, deadline=None)
@given(Logs)
def test_verdict_interval_and_p_agree(logs: list[float]) -> None:
    found = of(logs)
    assert found.low <= found.ratio * (1 + 1e-12) and found.ratio <= found.high * (1 + 1e-12)
    told = found.verdict != "cant_tell"
    assert told == (found.high < 1 or found.low > 1)
    assert told == (found.p <= stats.ALPHA) or np.isclose(found.p, stats.ALPHA)
    assert (found.more_rounds == 0) == told


@settings(max_examples=300, deadline=None)
@given(Logs)
def test_turned_round(logs: list[float]) -> None:
    one, two = of(logs), of([-x for x in logs])
    other = {"faster": "slower", "slower": "faster", "cant_tell": "cant_tell"}
    assert two.verdict == other[one.verdict]
    assert two.ratio == pytest.approx(1 / one.ratio)
    assert two.p == one.p
    if math.isfinite(one.high):
        assert two.low == pytest.approx(1 / one.high)


@pytest.mark.parametrize("n", [3, 5, 7])
def test_few_rounds_are_a_sign_test(n: int) -> None:
    rng = np.random.default_rng(n)
    for heads in range(n + 1):
        logs = rng.uniform(0.01, 0.1, n) * np.where(np.arange(n) < heads, 1, -1)
        assert of(logs).p == pytest.approx(binomtest(heads, n).pvalue)


def test_chances_are_those_of_all_outcomes() -> None:
    n = 11
    scores = stats._scores(n)
    sums = [int(np.dot(c, scores)) for c in itertools.product((0, 1), repeat=n)]
    chances = stats._cumulative(n)
    for limit in (0, 3, 7, 12, int(scores.sum())):
        assert chances[limit] == pytest.approx(np.mean(np.array(sums) <= limit))


def test_seven_rounds_cannot_tell_and_eight_can() -> None:
    seven, eight = of([0.5 + i / 100 for i in range(7)]), of([0.5 + i / 100 for i in range(8)])
    assert seven.verdict == "cant_tell" and seven.high == math.inf and seven.more_rounds == 1
    assert eight.verdict == "slower" and eight.low > 1.6


def noisy(rng: np.random.Generator, effect: float, n: int, spoilt: float) -> stats.Pair:
    """Rounds on a machine that drifts, with luck of each process and rounds that went wrong."""
    level = np.exp(np.cumsum(rng.normal(0, 0.1, n)))
    luck = rng.normal(0, 0.008, (2, n)) + (rng.random((2, n)) < spoilt / 2) * rng.exponential(
        0.15, (2, n)
    )
    a, b = level * np.exp(luck[0]) * (1 + effect), level * np.exp(luck[1])
    return of(np.log(a) - np.log(b))


def test_equal_things_are_seldom_told_apart() -> None:
    rng = np.random.default_rng(0)
    told = sum(noisy(rng, 0.0, 16, 0.2).verdict != "cant_tell" for _ in range(1500))
    assert told <= 28  # 15 expected, with a standard deviation of 3.9


def test_three_per_cent_are_told_though_a_tenth_of_the_rounds_is_spoilt() -> None:
    rng = np.random.default_rng(1)
    told = sum(noisy(rng, 0.03, 16, 0.1).verdict == "slower" for _ in range(300))
    assert told >= 280


def test_more_rounds_grow_with_noise_and_shrink_with_the_difference() -> None:
    noise = np.linspace(-0.04, 0.04, 16)
    small, large, quiet = of(noise + 0.003), of(noise + 0.006), of(noise / 4 + 0.003 / 4)
    assert small.verdict == large.verdict == quiet.verdict == "cant_tell"
    assert small.more_rounds and large.more_rounds
    assert small.more_rounds > 2 * large.more_rounds > 0
    assert small.more_rounds == quiet.more_rounds
    assert of(noise).more_rounds is None


def test_the_number_needed_tells_nine_times_of_ten() -> None:
    rng, tries = np.random.default_rng(3), 300
    rounds = stats.needed(0.01, 0.02)
    told = sum(of(rng.normal(0.01, 0.02, rounds)).verdict == "slower" for _ in range(tries))
    assert 0.84 * tries <= told <= 0.96 * tries  # POWER is 0.9


@pytest.mark.parametrize("logs", [[], [0.1, math.nan], [math.inf]])
def test_nonsense_is_refused(logs: list[float]) -> None:
    with pytest.raises(ValueError, match="finite log-ratio"):
        stats.pair(logs)


def test_a_machine_of_two_speeds_does_not_hide_a_difference() -> None:
    """Turns beside each other mostly meet the same speed; a quantile of all calls does not help."""
    rng = np.random.default_rng(5)
    near, far = [], []
    for _ in range(40):
        slow = np.cumsum(rng.random(64) < 0.05) % 2  # stays for some twenty turns
        calls = 9e-3 * np.exp(0.25 * slow + rng.normal(0, 0.02, 64))
        calls[1::2] *= 1.03
        a, b = [(x,) for x in calls[1::2]], [(x,) for x in calls[::2]]
        near.append(stats.log_ratio(a, b))
        far.append(math.log(stats.figure(calls[1::2]) / stats.figure(calls[::2])))
    assert np.median(near) == pytest.approx(0.03, abs=0.005)
    assert np.std(near) < 0.01 < 2 * np.std(near) < np.std(far)


def test_turns_of_one_alone_are_left_out() -> None:
    a, b = [(1.0, 9.0), (), (2.0,)], [(0.5, 0.5), (7.0,), ()]
    assert stats.log_ratio(a, b) == pytest.approx(math.log(3.0 / 0.5))  # a quarter from 1 to 9


def test_a_turn_of_more_calls_is_no_better() -> None:
    rng = np.random.default_rng(7)
    calls = rng.normal(1.0, 0.05, (3000, 3))
    found = stats.log_ratio([(a, b) for a, b, _ in calls], [(c,) for *_, c in calls])
    assert abs(found) < 0.005  # a quarter of the way between two calls is 1.4 % less


def test_turns_that_never_meet_are_an_error() -> None:
    with pytest.raises(ValueError, match="no turn"):
        stats.log_ratio([(1.0,), ()], [(), (1.0,)])


def test_a_figure_does_not_see_what_only_disturbs() -> None:
    quiet = [1.0 + i / 1000 for i in range(60)]
    disturbed = quiet[:20] + [5.0] * 40
    assert stats.figure(disturbed) == pytest.approx(stats.figure(quiet), rel=0.01)


def test_the_machine_is_warned_of() -> None:
    calm = [Load(1.0, 0.0, 0.01, 3000.0, 0)] * 12
    level, calls = [[1.0, 2.0]] * 12, [[1.0] * 50, [2.0] * 50]
    assert warnings(calm, level, calls) == []

    def said(loads: list[Load], figures: list[list[float]] = level, calls: object = calls) -> str:
        (text,) = warnings(loads, figures, calls)  # type: ignore[arg-type]
        return text

    assert "host took 10%" in said([Load(1.0, 0.1, 0.0)] * 12)
    assert "other programs used 30%" in said([Load(1.0, 0.0, 0.3)] * 12)
    assert "3 times" in said([Load(1.0, throttled=1)] * 3, level[:3])
    assert "from 2000 to 3000 MHz" in said([Load(1.0, mhz=m) for m in (3000.0, 2000.0)], level[:2])
    rising = [[1.0 * 1.02**i, 2.0 * 1.02**i] for i in range(12)]
    assert "slower meanwhile (drift)" in said(calm, rising)
    assert "neighbours disturb" in said(calm, level, [[1.0] * 20 + [2.0] * 30, [2.0] * 50])
