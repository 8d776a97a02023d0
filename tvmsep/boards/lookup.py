"""What a tracker knows about its boards, and whether they can be lent for a target.

Our own servers announce CPU, versions and what they are doing; a stock TVM server announces its
key and address, and the tracker only counts how many of a key are free.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec

from tvmsep.boards.address import host_port
from tvmsep.boards.facts import Facts, misfit, version_mismatch
from tvmsep.contracts import BoardError, InputError, Target
from tvmsep.rpc.protocol import (
    SUCCESS,
    SUMMARY,
    NotATracker,
    TrackerLine,
    is_server,
    show,
    why_not,
)


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One board that is registered with a tracker."""

    key: str
    address: str
    state: str
    """`free`, `busy`, `quarantined`, or `unknown` where the tracker's count does not tell."""
    ours: bool
    """Whether our server runs there, so that the rest is known."""
    state_s: float | None = None
    """Seconds that it has been in that state."""
    why: str = ""
    """Why it is quarantined: what the tuning run says that leaves it out."""
    trials: int | None = None
    """Of the running session; between sessions, of the last one."""
    trials_per_min: float | None = None
    facts: Facts = Facts()


class Queue(msgspec.Struct, frozen=True):
    """What the tracker counts for one key."""

    free: int = 0
    pending: int = 0
    """Clients that wait for a board."""


@dataclass(frozen=True)
class Summary:
    """A tracker's answer."""

    boards: tuple[Listed, ...]
    queues: dict[str, Queue]

    def of(self, key: str) -> list[Listed]:
        """The boards under a key."""
        return [b for b in self.boards if b.key == key]


def summary(place: tuple[str, int], flag: str = "--rpc") -> Summary:
    """Ask a tracker, within some seconds.

    Raises:
        BoardError: nothing answers, or it is no tracker; says what to do.
    """
    text = f"{flag} {show(place)}"
    try:
        with TrackerLine(place) as line:
            answer = line.call(SUMMARY)
    except NotATracker as error:
        raise BoardError(f"{text}: {error}") from error
    except OSError as error:
        raise BoardError(
            f"{text}: {why_not(error)}; check the address and that a tracker runs there "
            "(`tvmsep tracker` starts one)"
        ) from error
    try:
        return _read(answer)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise BoardError(f"{text}: the tracker's answer makes no sense ({error})") from error


def _read(answer: Any) -> Summary:
    code, found = answer
    if code != SUCCESS:
        raise ValueError(f"it answered {code!r}")
    queues = {k: msgspec.convert(q, Queue) for k, q in found.get("queue_info", {}).items()}
    boards = [_listed(info) for info in found["server_info"]]
    ours_free = Counter(b.key for b in boards if b.ours and b.state != "busy")
    stock = Counter(b.key for b in boards if not b.ours)
    states = {}
    for key, total in stock.items():
        free = queues.get(key, Queue()).free - ours_free[key]
        states[key] = "free" if free >= total else "busy" if free <= 0 else "unknown"
    named = [b if b.ours else msgspec.structs.replace(b, state=states[b.key]) for b in boards]
    return Summary(tuple(sorted(named, key=lambda b: (b.key, b.address))), queues)


def _listed(info: dict[str, Any]) -> Listed:
    host, port = info.get("addr", ("?", 0))
    key, about = info["key"].removeprefix("server:"), info.get("tvmsep")
    address = show((str(host), int(port)))
    if about is None:
        return Listed(key=key, address=address, state="unknown", ours=False)
    busy, shut = about.get("since"), about.get("quarantine")
    since = busy or (shut or {}).get("since") or about.get("idle_since")
    return Listed(
        key=key,
        address=address,
        state="busy" if busy else "quarantined" if shut else "free",
        ours=True,
        state_s=max(0.0, time.time() - since) if since else None,
        why="" if busy or not shut else str(shut["why"]),
        trials=about.get("trials"),
        trials_per_min=about.get("trials_per_min"),
        facts=msgspec.convert(about, Facts),
    )


def known(found: Summary, text: str, key: str) -> list[Listed]:
    """The boards that a tracker lends under a key: at least one.

    Raises:
        InputError: no key was given.
        BoardError: there is none; says which keys there are.
    """
    if not key:
        raise InputError("--rpc needs the boards' key: add --key NAME, as their servers have it")
    boards = found.of(key)
    if not boards:
        keys = sorted({b.key for b in found.boards})
        others = f"it has {', '.join(keys)}" if keys else "no board has registered there"
        raise BoardError(f"the tracker at {text} lends no board {key}: {others}")
    return boards


def suitable(boards: list[Listed], target: Target, tvm: str) -> None:
    """See that every board runs code for a target that was compiled here.

    Raises:
        BoardError: one does not; the tracker might lend just that one.
    """
    for board in boards:
        why = version_mismatch(board.facts.tvm, tvm) or misfit(board.facts, target)
        if why:
            raise BoardError(
                f"board {board.key} at {board.address}: {why}; "
                f"`tvmsep board doctor` tells what it is, `tvmsep targets` what there is"
            )


@dataclass(frozen=True)
class Reached:
    """Where a session can be had."""

    host: str
    port: int
    key: str
    tracker: bool

    @property
    def name(self) -> str:
        """For messages."""
        what = "the tracker" if self.tracker else "the server"
        return f"board {self.key} of {what} at {show((self.host, self.port))}"


def reach(text: str, key: str) -> Reached:
    """Find out what listens at an address: a tracker that lends `key`, or a server that has it.

    Raises:
        InputError: no address, or no key.
        BoardError: nothing answers within some seconds, or neither of the two, or the tracker
            has other keys. A server's key shows in the session.
    """
    host, port = host_port(text, "--rpc")
    try:
        known(summary((host, port)), text, key)
        return Reached(host, port, key, True)
    except BoardError as error:
        if isinstance(error.__cause__, TimeoutError):
            raise BoardError(
                f"{error}; a board's server that is in use answers nobody else meanwhile"
            ) from error
        if not isinstance(error.__cause__, NotATracker):
            raise
    try:
        found = is_server((host, port))
    except OSError as error:
        why = why_not(error)
        raise BoardError(f"--rpc {text}: neither a tracker nor a server: {why}") from error
    if not found:
        raise BoardError(
            f"--rpc {text}: what listens there is not a TVM RPC tracker, nor a board's server"
        )
    return Reached(host, port, key, False)
