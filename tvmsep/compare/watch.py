"""What the machine did while it was measured, from what Linux says; elsewhere nothing is known."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_CPU = Path("/sys/devices/system/cpu")
STEAL, OTHERS, FREQUENCY, DRIFT, NOISE = 0.02, 0.05, 0.05, 0.05, 0.25
"""Shares above which a warning is due."""


@dataclass(frozen=True)
class Load:
    """One round. Shares are of all cores' time; None where the system does not say."""

    seconds: float
    steal: float | None = None
    """Taken by the host of a virtual machine."""
    others: float | None = None
    """Used by processes that are not compared."""
    mhz: float | None = None
    """Mean frequency of the cores at the end."""
    throttled: int | None = None
    """How often a core was throttled because of heat."""


class Watch:
    """From its making to `load()`.

    Args:
        pids: the leaders of the process groups that are compared.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = list(pids)
        self._begin = time.monotonic()
        self._ticks, self._ours, self._hot = _ticks(), self._own(), _throttled()

    def _own(self) -> int:
        return sum(map(_process_ticks, self._pids))

    def load(self) -> Load:
        """What happened since."""
        seconds = time.monotonic() - self._begin
        now, ours, hot = _ticks(), self._own() - self._ours, _throttled()
        steal = others = None
        if now is not None and self._ticks is not None:
            user, nice, system, idle, iowait, irq, softirq, stolen = (
                b - a for a, b in zip(self._ticks, now, strict=True)
            )
            busy = user + nice + system + irq + softirq
            total = max(1, busy + idle + iowait + stolen)
            steal, others = stolen / total, max(0.0, (busy - ours) / total)
        heat = None if hot is None or self._hot is None else hot - self._hot
        return Load(seconds, steal, others, _mhz(), heat)


def _ticks() -> tuple[int, ...] | None:
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    return tuple(map(int, words[1:9]))


def _process_ticks(pid: int) -> int:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(words[11]) + int(words[12])


def _mhz() -> float | None:
    found = []
    for cpu in range(os.cpu_count() or 1):
        try:
            text = (_CPU / f"cpu{cpu}/cpufreq/scaling_cur_freq").read_text()
        except OSError:
            return None
        found.append(int(text) / 1000)
    return sum(found) / len(found)


def _throttled() -> int | None:
    counts = list(_CPU.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    try:
        return sum(int(c.read_text()) for c in counts) if counts else None
    except OSError:
        return None


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
            f"a middling call took {spread:.0%} longer than a quick one: neighbours disturb; "
            "quick calls are compared"
        )
    return found
