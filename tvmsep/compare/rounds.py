"""Rounds: fresh processes for all entrants, which then take many short turns in random order."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tvmsep.compare.cores import cores_for
from tvmsep.compare.engines import Array, Job
from tvmsep.compare.seat import Seat
from tvmsep.compare.stats import figure, log_ratio
from tvmsep.compare.watch import Watch
from tvmsep.measure.load import Load
from tvmsep.measure.lock import HostLock

ROUNDS = 12
BLOCKS = 24
"""Turns of each entrant in a round."""
BLOCK_S = 0.004
"""Timed calls of one turn: one call of most networks. What else a machine does comes and goes
within tens of milliseconds, so what stands beside each other is compared, and often."""
ROUND_S = 0.5
"""Calls of one entrant in a round, those that are not timed included: turns are fewer where a call
takes so long that they would take longer."""
FEWEST_BLOCKS = 8
"""Turns of the quickest entrant, however long its calls take."""
SLOW_BLOCKS = 4
"""An entrant whose calls take longer than the quickest one's has fewer turns, though not fewer than
this: it shall not hold up the others."""
LEAST_BLOCKS, SLOWED = 4, 1.4
"""A round ends early, though not before so many turns, where it takes so much longer than it would
have when the calls were counted: a busy machine shall not stretch a comparison."""
LOCK_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Entrant:
    """Something to compare, ready to be loaded."""

    name: str
    adapter: str
    job: Job
    ours: bool = False


@dataclass(frozen=True)
class Round:
    """What one round measured."""

    turns_s: tuple[tuple[tuple[float, ...], ...], ...]
    """For each entrant and each turn the seconds of its timed calls; none where it had no turn."""
    load: Load
    """What else the machine did meanwhile."""

    @property
    def calls_s(self) -> list[list[float]]:
        """For each entrant the seconds of its timed calls, in the order in which they were made."""
        return [[s for turn in turns for s in turn] for turns in self.turns_s]

    def log_ratio(self, i: int, j: int) -> float:
        """What it says about one entrant's time beside another's."""
        return log_ratio(self.turns_s[i], self.turns_s[j])

    @property
    def figures_s(self) -> list[float]:
        """What it says about each entrant."""
        return [figure(calls) for calls in self.calls_s]


def _turns(blocks: int, counts: Sequence[int], calls_s: Sequence[float]) -> tuple[int, list[int]]:
    """How many turns a round has, and each entrant's stride: it takes every so-manieth turn.

    Strides are powers of two, so that two entrants meet in all turns of the slower one.

    Args:
        blocks: at most so many.
        counts: timed calls of each one's turn; one more warms up.
        calls_s: seconds of one call of each.
    """
    longest = [(n + 1) * s for n, s in zip(counts, calls_s, strict=True)]
    quickest = min(longest)
    turns = min(blocks, max(FEWEST_BLOCKS, int(ROUND_S / quickest)))
    rarest = max(1, turns // SLOW_BLOCKS)
    return turns, [2 ** int(math.log2(min(rarest, t / quickest))) for t in longest]


def play(
    entrants: Sequence[Entrant],
    inputs: Sequence[Array],
    *,
    rounds: int,
    blocks: int = BLOCKS,
    seed: int = 0,
    told: Callable[[int, Round], None] = lambda *_: None,
) -> tuple[list[Round], list[str]]:
    """Time all entrants on the same inputs; the rounds, and the entrants' versions.

    Args:
        entrants: at the same thread count.
        inputs: of one call.
        rounds: how many.
        blocks: turns of each entrant in a round.
        seed: of the order of turns.
        told: called after each round with its number, from 1.

    Raises:
        InputError: an entrant does not load or does not answer.
        BoardError: another tvmsep kept measuring on this host.
    """
    shuffler = random.Random(seed)
    played: list[Round] = []
    counts: list[int] = []
    versions: list[str] = []
    turns, strides = 0, [1]
    round_s = 0.0
    lock = HostLock(LOCK_TIMEOUT_S)
    try:
        for number in range(1, rounds + 1):
            with lock.hold(exclusive=True), ExitStack() as stack:
                order = shuffler.sample(range(len(entrants)), len(entrants))
                seats: dict[int, Seat] = {}
                for i in order:
                    e = entrants[i]
                    seats[i] = Seat(e.name, e.adapter, e.job, inputs)
                    stack.callback(seats[i].close)
                cores = cores_for(max(e.job.threads for e in entrants), number)
                for i in order:
                    seats[i].begin(cores)
                versions = [seats[i].ready().version for i in range(len(entrants))]
                if not counts:
                    alone = [min(seats[i].block(2, 1)) for i in range(len(entrants))]
                    counts = [max(1, round(BLOCK_S / s)) for s in alone]
                    turns, strides = _turns(blocks, counts, alone)
                    round_s = sum(
                        -(-turns // k) * (n + 1) * s
                        for k, n, s in zip(strides, counts, alone, strict=True)
                    )
                watch = Watch([seats[i].pid for i in range(len(entrants))])
                took: list[list[tuple[float, ...]]] = [[] for _ in entrants]
                end = time.monotonic() + SLOWED * round_s
                for done in range(turns):
                    if done >= LEAST_BLOCKS and time.monotonic() > end:
                        break
                    for i in shuffler.sample(range(len(entrants)), len(entrants)):
                        its = done % strides[i] == 0
                        took[i].append(tuple(seats[i].block(counts[i], 1)) if its else ())
                played.append(Round(tuple(map(tuple, took)), watch.load()))
            told(number, played[-1])
    finally:
        lock.close()
    return played, versions
