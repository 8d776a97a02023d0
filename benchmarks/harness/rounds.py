"""Rounds of fresh processes, and what they add up to. Knows nothing of engines or files.

A whole process can sit in a slow state with a small spread of its own, and a machine has slow
spells: so each round runs every engine once, in another order, and an engine's figure is the
lowest of its processes' medians. The ratio of neighbours within a round is kept beside it.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from harness.process import Failure


@dataclass(frozen=True, order=True)
class Turn:
    """One engine at one thread count."""

    engine: str
    threads: int


@dataclass(frozen=True)
class Sample:
    """What one process measured: seconds of each timed call."""

    times_s: tuple[float, ...]
    cores_busy: float
    """CPU seconds a second of wall time: a thread count that was not obeyed shows here."""
    error: float
    """Largest difference from the reference, relative to its largest output; over two inputs."""

    @property
    def median_s(self) -> float:
        """The median call."""
        return statistics.median(self.times_s)


@dataclass
class Series:
    """One turn over all rounds; None where a round has no figure."""

    turn: Turn
    samples: list[Sample | None] = field(default_factory=list)
    failure: Failure | None = None

    @property
    def measured(self) -> list[Sample]:
        """The rounds that have a figure."""
        return [s for s in self.samples if s is not None]


def order(turns: Sequence[Turn], rounds: int, seed: int) -> Iterator[list[Turn]]:
    """Every turn once a round, each round in another order."""
    shuffler = random.Random(seed)
    for _ in range(rounds):
        yield shuffler.sample(list(turns), len(turns))


def play(
    turns: Sequence[Turn],
    rounds: int,
    seed: int,
    measure: Callable[[Turn], Sample | Failure],
    told: Callable[[Turn, int, Sample | Failure], None] = lambda *_: None,
) -> list[Series]:
    """Measure every turn once a round.

    A turn that fails keeps what it has measured and is not tried again: others should not wait
    for one time-out a round.

    Args:
        turns: what to run.
        rounds: how often.
        seed: of the order.
        measure: runs one turn in a fresh process.
        told: called after each turn with its round, counted from 1.
    """
    series = {turn: Series(turn) for turn in turns}
    for n, round_ in enumerate(order(turns, rounds, seed), 1):
        for turn in round_:
            mine = series[turn]
            if mine.failure is not None:
                mine.samples.append(None)
                continue
            result = measure(turn)
            if isinstance(result, Failure):
                mine.failure = result
                mine.samples.append(None)
            else:
                mine.samples.append(result)
            told(turn, n, result)
    return list(series.values())


@dataclass(frozen=True)
class Row:
    """One engine at one thread count, over all rounds."""

    turn: Turn
    rounds: int
    lowest_s: float
    """The lowest of the processes' medians: the engine's figure."""
    highest_s: float
    """The highest of them: the spread of the rounds."""
    ratio: float | None
    """`lowest_s` over the best peer's; None where no peer gave a right answer."""
    paired: float | None
    """The median over rounds of this round's ratio to the best peer's."""
    peak_share: float
    """Share of the threads' FMA peak at `lowest_s`."""
    error: float
    """The largest of all rounds."""
    cores_busy: float
    """The largest of all rounds."""
    wrong: bool
    best_peer: str
    """The peer that the ratios are to."""


def summarise(
    series: Sequence[Series],
    *,
    peers: frozenset[str],
    flops: int,
    peak_flops_per_core: float,
    error_limit: float,
) -> list[Row]:
    """A row for every series with a figure, by thread count and then by time.

    Args:
        series: of one network.
        peers: engines that ours are compared with.
        flops: of one call: 2 for each multiply-add.
        peak_flops_per_core: measured FMA peak in FLOP/s.
        error_limit: an engine with a larger error is wrong and is nobody's best peer.
    """
    known = [s for s in series if s.measured]
    lowest = {s.turn: min(x.median_s for x in s.measured) for s in known}
    # Not `error > limit`: NaN is wrong as well.
    wrong = {s.turn: not all(x.error <= error_limit for x in s.measured) for s in known}
    best: dict[int, Series] = {}
    for one in sorted(known, key=lambda s: lowest[s.turn]):
        if one.turn.engine in peers and not wrong[one.turn]:
            best.setdefault(one.turn.threads, one)
    rows = []
    for one in known:
        turn, peer = one.turn, best.get(one.turn.threads)
        pairs = [
            mine.median_s / theirs.median_s
            for mine, theirs in zip(one.samples, peer.samples if peer else (), strict=False)
            if mine is not None and theirs is not None
        ]
        rows.append(
            Row(
                turn=turn,
                rounds=len(one.measured),
                lowest_s=lowest[turn],
                highest_s=max(x.median_s for x in one.measured),
                ratio=lowest[turn] / lowest[peer.turn] if peer else None,
                paired=statistics.median(pairs) if pairs else None,
                peak_share=flops / lowest[turn] / (peak_flops_per_core * turn.threads),
                error=max(x.error for x in one.measured),
                cores_busy=max(x.cores_busy for x in one.measured),
                wrong=wrong[turn],
                best_peer=peer.turn.engine if peer else "",
            )
        )
    return sorted(rows, key=lambda r: (r.turn.threads, r.lowest_s))
