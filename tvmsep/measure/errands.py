"""What a farm sends to a board: calls that get the slot they run on as their last argument."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tvmsep.codegen.reference import Array
from tvmsep.contracts import Target, Task, Workload
from tvmsep.measure import session
from tvmsep.measure.bandwidth import Bandwidth
from tvmsep.measure.load import Load, between
from tvmsep.measure.network import NetworkJob
from tvmsep.measure.results import Built, Failed, Measured
from tvmsep.measure.slot import LONG_SESSION_S, Lost, Slot
from tvmsep.measure.worker import WorkerError

if TYPE_CHECKING:
    from tvmsep.graph import Plan

NETWORK_TIMEOUT_S = 120.0
"""For compiling a whole network, and for a dozen runs of it."""


def measure(task: Task, built: Built, repeats: int | None, slot: Slot) -> Measured | Failed:
    """Check and time one candidate."""
    return slot.measure(task, built, repeats)


def reference(library: Path, target: Target, limit_s: float, slot: Slot) -> float:
    """FLOP/s of the reference kernel on one core."""
    with slot.timing():
        return float(slot.call(session.peak_flops, library, target, limit_s=limit_s))


def bandwidths(
    library: Path, target: Target, threads: int, network_bytes: int, limit_s: float, slot: Slot
) -> list[Bandwidth] | Failed:
    """Of each level of its memory, the fastest first."""
    try:
        with slot.timing():
            call = (library, target, threads, network_bytes)
            found = slot.call(session.bandwidths, *call, limit_s=limit_s)
    except WorkerError as exc:
        return slot.failed(exc)
    return list(found)


def time_networks(
    job: NetworkJob, target: Target, turns: list[int | None], rounds: int, slot: Slot
) -> tuple[str, dict[int | None, list[Array]]] | Failed:
    """Seconds of each step by variant, and on which board; all turns on the same one.

    Each round begins with another variant and every second one goes backwards: none is always the
    first, or after the same one.
    """
    found: dict[int | None, list[Array]] = {turn: [] for turn in turns}
    try:
        with slot.timing():
            slot.call(session.open_network, job, target, limit_s=NETWORK_TIMEOUT_S)
            for k in range(rounds):
                step = 1 if k % 2 == 0 else -1
                for turn in (turns[(k + step * i) % len(turns)] for i in range(len(turns))):
                    times = slot.call(session.time_network, turn, limit_s=NETWORK_TIMEOUT_S)
                    found[turn].append(times)
    except WorkerError as exc:
        return slot.failed(exc)
    return slot.board.name, found


def _renew(slot: Slot) -> None:
    """Our server forks a child for each session: a fresh session is a fresh process."""
    slot.drop()
    if why := slot.connect(LONG_SESSION_S):
        raise Lost("link_lost", why)


def measure_turns(
    jobs: list[tuple[Task, Built]], turns: list[int], slot: Slot
) -> tuple[list[Measured | Failed], Load]:
    """Candidates in turns, in one fresh session, and what else the machine did."""
    _renew(slot)
    begin, before = time.monotonic(), slot.reading()
    answers = [slot.measure(*jobs[i], None) for i in turns]
    load = between(before, slot.reading(), time.monotonic() - begin)
    # On this host the check of outputs is our own work, and cannot be told from that of others.
    return answers, dataclasses.replace(load, others=None) if slot.board.local else load


def time_turns(
    jobs: list[NetworkJob], turns: list[int], target: Target, slot: Slot
) -> tuple[list[Array], list[list[Array]], Load] | Failed:
    """Seconds of each run of each turn, the networks' outputs, and what else the machine did."""
    _renew(slot)
    try:
        with slot.timing():
            limit_s = NETWORK_TIMEOUT_S * (len(jobs) + len(turns))
            found = slot.call(session.time_turns, jobs, turns, target, limit_s=limit_s)
    except WorkerError as exc:
        return slot.failed(exc)
    return found  # type: ignore[no-any-return]


def by_workload(plan: Plan, times: Array) -> dict[Workload, tuple[float, ...]]:
    """Seconds of each workload in each run, averaged over its steps, from seconds of each step."""
    at: dict[Workload, list[int]] = {}
    for i, step in enumerate(plan.steps):
        if step.workload is not None:
            at.setdefault(step.workload, []).append(i)
    return {w: tuple(times[:, places].mean(axis=1).tolist()) for w, places in at.items()}
