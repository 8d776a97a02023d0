"""Which of a tracker's boards a run uses: those of one kind, under which sessions last.

A board whose reference kernel differs is left out for the whole run. One under which several
sessions ended in a row, while others measured, is *quarantined* for a while: each of its losses
costs a time-out, and two of them would put the blame on a sound candidate.
"""

from __future__ import annotations

import math
import time
from collections import Counter

TOLERANCE = 0.10
"""Boards whose reference kernels differ by more are not of one kind."""
STRIKES = 3
"""Sessions in a row that end under a board before it is quarantined."""
QUARANTINE_S = 60.0
"""How long the first time; twice as long each time after."""


class Roster:
    """What is known of boards, by name. Its owner holds the lock."""

    def __init__(self) -> None:
        self.flops: dict[str, tuple[str, float]] = {}
        """CPU and FLOP/s of one core, for all that were measured."""
        self.notes: list[str] = []
        """What the user should know: boards that were left out."""
        self._group: tuple[str, float] | None = None
        self._strikes: Counter[str] = Counter()
        self._struck_at: dict[str, float] = {}
        """When the first of a board's strikes was."""
        self._served_at: dict[str, float] = {}
        self._times: Counter[str] = Counter()
        self._until: dict[str, float] = {}
        self._why: dict[str, str] = {}

    @property
    def grouped(self) -> bool:
        """Whether it is known of which kind the run's boards are."""
        return self._group is not None

    def ungroup(self) -> None:
        """Before boards are compared anew."""
        self._group = None

    def group(self) -> dict[str, float]:
        """Choose the largest group of boards of one kind; FLOP/s of those."""
        self._group = largest(list(self.flops.values()))
        for board in sorted(self.flops):
            self._note_misfit(board)
        return {b: flops for b, (_, flops) in self.flops.items() if not self._misfit(b)}

    def measured(self, board: str, cpu: str, flops: float) -> None:
        """A board's reference kernel has been timed."""
        self.flops[board] = cpu, flops
        self._note_misfit(board)

    def lost(self, board: str) -> None:
        """A session ended under a board."""
        self._strikes[board] += 1
        first = self._struck_at.setdefault(board, time.monotonic())
        others = any(at > first for b, at in self._served_at.items() if b != board)
        if self._strikes[board] >= STRIKES and others:
            count = self._strikes[board]
            self._forgive(board)
            self._times[board] += 1
            wait_s = QUARANTINE_S * 2 ** (self._times[board] - 1)
            self._until[board] = time.monotonic() + wait_s
            self._why[board] = f"{count} sessions in a row ended under it"
            self.notes.append(
                f"board {board} is quarantined for {wait_s:g} s: {self._why[board]}, while other "
                "boards measured; `tvmsep board doctor` examines it"
            )

    def served(self, board: str) -> None:
        """A board has answered."""
        self._served_at[board] = time.monotonic()
        self._forgive(board)

    def why_out(self, board: str, *, last: bool = False) -> str:
        """Why a board is not used now, or "". The last one there is never in quarantine."""
        if not last and self._until.get(board, -math.inf) > time.monotonic():
            return self._why[board]
        return self._misfit(board)

    def out(self) -> set[str]:
        """Boards that are not used now."""
        return {b for b in {*self.flops, *self._until} if self.why_out(b)}

    def _forgive(self, board: str) -> None:
        self._strikes[board] = 0
        self._struck_at.pop(board, None)

    def _misfit(self, board: str) -> str:
        found = self.flops.get(board)
        if found is None or self._group is None or alike(found, self._group):
            return ""
        (cpu, flops), (ours, usual) = found, self._group
        what = f" ({cpu or 'CPU unknown'} beside {ours or 'CPU unknown'})" if cpu != ours else ""
        return (
            f"its reference kernel runs at {flops / 1e9:.1f} GFLOP/s, "
            f"the others' at {usual / 1e9:.1f}{what}"
        )

    def _note_misfit(self, board: str) -> None:
        why = self._misfit(board)
        if why:
            self.notes.append(f"board {board} is left out: {why}")


def alike(one: tuple[str, float], other: tuple[str, float]) -> bool:
    """Whether two boards, by CPU and FLOP/s, are of one kind."""
    (cpu, flops), (cpu_too, flops_too) = one, other
    return cpu == cpu_too and abs(flops - flops_too) <= TOLERANCE * max(flops, flops_too)


def largest(found: list[tuple[str, float]]) -> tuple[str, float]:
    """The board that most others are like; of equals the fastest."""
    return max(found, key=lambda f: (sum(alike(f, g) for g in found), f[1]))
