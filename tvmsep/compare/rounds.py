"""Rounds: fresh processes for all entrants, which then take many short turns in random order."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tvmsep.compare.engines import Array, Job
from tvmsep.compare.seat import Seat
from tvmsep.compare.stats import figure
from tvmsep.compare.watch import Watch
from tvmsep.measure.load import Load
from tvmsep.measure.lock import HostLock

ROUNDS = 16
BLOCKS = 14
"""Turns of each entrant in a round."""
BLOCK_S = 0.03
"""Timed calls of one turn."""
SLOW_BLOCKS = 4
"""An entrant whose single call takes longer has so much fewer turns, though not fewer than this: it
shall not hold up the others."""
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

    calls_s: tuple[tuple[float, ...], ...]
    """For each entrant the seconds of its timed calls, in the order in which they were made."""
    load: Load
    """What else the machine did meanwhile."""

    @property
    def figures_s(self) -> list[float]:
        """What it says about each entrant."""
        return [figure(calls) for calls in self.calls_s]


def _turns(blocks: int, call_s: float) -> int:
    """How many of a round's turns an entrant takes."""
    return min(blocks, max(SLOW_BLOCKS, round(blocks * BLOCK_S / call_s)))


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
    turns: list[int] = []
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
                for i in order:
                    seats[i].begin()
                versions = [seats[i].ready().version for i in range(len(entrants))]
                if not counts:
                    alone = [min(seats[i].block(2, 1)) for i in range(len(entrants))]
                    counts = [max(1, round(BLOCK_S / s)) for s in alone]
                    turns = [_turns(blocks, s) for s in alone]
                    round_s = sum(
                        k * (n + 1) * s for k, n, s in zip(turns, counts, alone, strict=True)
                    )
                watch = Watch([seats[i].pid for i in range(len(entrants))])
                calls: list[list[float]] = [[] for _ in entrants]
                end = time.monotonic() + SLOWED * round_s
                for done in range(blocks):
                    if done >= LEAST_BLOCKS and time.monotonic() > end:
                        break
                    for i in shuffler.sample(range(len(entrants)), len(entrants)):
                        if done * turns[i] % blocks < turns[i]:  # evenly spread
                            calls[i] += seats[i].block(counts[i], 1)
                played.append(Round(tuple(map(tuple, calls)), watch.load()))
            told(number, played[-1])
    finally:
        lock.close()
    return played, versions
