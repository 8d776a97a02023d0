"""What the machine did while it was measured, and what a reader must be told of it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from tvmsep.measure.load import Load, between, reading

STEAL, OTHERS, FREQUENCY, DRIFT, NOISE = 0.02, 0.05, 0.05, 0.05, 0.25
"""Shares above which a warning is due."""


class Watch:
    """From its making to `load()`.

    Args:
        pids: the leaders of the process groups that are compared.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = list(pids)
        self._begin, self._before = time.monotonic(), reading(self._pids)

    def load(self) -> Load:
        """What happened since."""
        return between(self._before, reading(self._pids), time.monotonic() - self._begin)


def warnings(
    loads: Sequence[Load], figures_s: Sequence[Sequence[float]], calls_s: Sequence[Sequence[float]]
) -> list[str]:
    """What a reader must know of the machine.

    Args:
        loads: one a round.
        figures_s: for each round one figure an entrant.
        calls_s: every timed call of each entrant, over all rounds.
    """
    found = []

    def mean(values: Sequence[float | None]) -> float:
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if known else 0.0

    if (share := mean([x.steal for x in loads])) > STEAL:
        found.append(f"the virtual machine's host took {share:.0%} of the cores' time")
    if (share := mean([x.others for x in loads])) > OTHERS:
        found.append(f"other programs used {share:.0%} of the cores' time: stop them")
    if (times := sum(x.throttled or 0 for x in loads)) > 0:
        found.append(f"the cores were throttled by heat {times} times: cool the machine")
    mhz = [x.mhz for x in loads if x.mhz is not None]
    if mhz and max(mhz) > (1 + FREQUENCY) * min(mhz):
        found.append(
            f"the cores' frequency went from {min(mhz):.0f} to {max(mhz):.0f} MHz: fix it with "
            "`cpupower frequency-set -g performance`"
        )
    logs = np.log(np.asarray(figures_s, float))
    if len(logs) >= 6:
        level = (logs - np.median(logs, axis=0)).mean(axis=1)
        third = len(level) // 3
        drift = float(np.median(level[-third:]) - np.median(level[:third]))
        if abs(drift) > DRIFT:
            word = "slower" if drift > 0 else "faster"
            found.append(f"everything became {abs(np.expm1(drift)):.0%} {word} meanwhile (drift)")
    spread = max(float(np.median(c) / np.quantile(c, 0.05) - 1) for c in calls_s)
    if spread > NOISE:
        found.append(
            f"a middling call took {spread:.0%} longer than a quick one: neighbours disturb; only "
            "calls that stand beside each other are compared"
        )
    return found
