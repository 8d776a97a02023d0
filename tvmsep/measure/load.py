"""What a machine does while it measures, from what Linux says; elsewhere nothing is known.

It imports nothing of ours or of others: our RPC server answers `reading` on boards.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FUNCTION = "tvmsep.load"
"""The function under which our RPC server answers `reading()` of its session, as JSON."""
_CPU = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Load:
    """A stretch of time. Shares are of all cores' time; None where the system does not say."""

    seconds: float
    steal: float | None = None
    """Taken by the host of a virtual machine."""
    others: float | None = None
    """Used by processes that are not measured."""
    mhz: float | None = None
    """Mean frequency of the cores at the end."""
    throttled: int | None = None
    """How often a core was throttled because of heat."""


def reading(pids: Sequence[int] | None = None) -> dict[str, Any]:
    """Counters since the machine started.

    Args:
        pids: what is measured, whose time is told apart; None for this process.
    """
    mine = [os.getpid()] if pids is None else pids
    return {
        "ticks": _ticks(), "own": sum(map(_process_ticks, mine)), "mhz": _mhz(), "hot": _throttled()
    }  # fmt: skip


def between(before: dict[str, Any] | None, after: dict[str, Any] | None, seconds: float) -> Load:
    """What happened between two readings of one machine, `seconds` apart; None is not known."""
    if before is None or after is None:
        return Load(seconds)
    steal = others = None
    if before["ticks"] and after["ticks"]:
        user, nice, system, idle, iowait, irq, softirq, stolen = (
            b - a for a, b in zip(before["ticks"], after["ticks"], strict=True)
        )
        busy = user + nice + system + irq + softirq
        total = max(1, busy + idle + iowait + stolen)
        steal = stolen / total
        others = max(0.0, (busy - after["own"] + before["own"]) / total)
    known = before["hot"] is not None and after["hot"] is not None
    heat = after["hot"] - before["hot"] if known else None
    return Load(seconds, steal, others, after["mhz"], heat)


def _ticks() -> list[int] | None:
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    return list(map(int, words[1:9]))


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
