"""Which of a host's cores a round is played on.

Cores of one machine differ: in their neighbours (on a shared host the other half of a physical core
may belong to somebody else), in their clock, in kind. Whoever gets the better one for a round wins
it. So where engines use fewer threads than there are cores, all of a round's processes stay on the
same ones, and each round takes others in turn.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

_CPU = Path("/sys/devices/system/cpu")


def cores_for(threads: int, number: int) -> frozenset[int] | None:
    """The CPUs of one round; None where every core is used, or where the system cannot say.

    Args:
        threads: of each engine.
        number: of the round.
    """
    if sys.platform != "linux":
        return None
    return choose(one_a_core(sorted(os.sched_getaffinity(0))), threads, number)


def choose(cpus: Sequence[int], threads: int, number: int) -> frozenset[int] | None:
    """`threads` neighbours of `cpus`, from another one in each round.

    Args:
        cpus: one of each core.
        threads: how many are needed.
        number: of the round.
    """
    if threads >= len(cpus):
        return None
    begin = number * threads % len(cpus)
    return frozenset(cpus[(begin + k) % len(cpus)] for k in range(threads))


def one_a_core(cpus: Sequence[int], root: Path = _CPU) -> list[int]:
    """Of CPUs that share a core the first; of cores that differ in their highest clock the fastest.

    Args:
        cpus: that may be used.
        root: where Linux describes them.
    """
    first: dict[str, int] = {}
    for cpu in cpus:
        first.setdefault(_word(root / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu), cpu)
    clocks = {cpu: int(_word(root / f"cpu{cpu}/cpufreq/cpuinfo_max_freq") or 0)
              for cpu in first.values()}  # fmt: skip
    return [cpu for cpu, clock in clocks.items() if clock >= 0.9 * max(clocks.values())]


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
