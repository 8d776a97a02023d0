"""Keeps a board registered at a tracker, whatever happens to either.

The tracker's rules, as TVM's own server follows them: a server announces itself (UPDATE_INFO) and
offers one ticket at a time (PUT of a *match key*, `KEY:NUMBER`). The tracker hands the ticket to a
client, which names it when it connects. After the session the server offers a new one, and also
when a ticket was taken and nobody came. When the connection closes, the tracker forgets both.

Beyond those rules: a board that is used by somebody who did not ask the tracker is withdrawn
meanwhile, and what the announcement says beside the address (CPU, versions, since when the board
is busy, free or quarantined, trials per minute) is for `tvmsep boards` and for refusing a board
that does not fit.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvmsep.rpc.protocol import (
    PENDING_KEYS,
    PUT,
    SUCCESS,
    UPDATE_INFO,
    NotATracker,
    Place,
    TrackerLine,
    show,
    why_not,
)

PING_S = 2.0
CLAIM_S = 8.0
"""A ticket that was taken and not used for so long is replaced."""
REPORT_S = 10.0
"""How often a busy board tells its trials: rarely, for it is measuring."""
FIRST_WAIT_S, LAST_WAIT_S = 0.5, 5.0


@dataclass(frozen=True)
class _State:
    port: int = 0
    """The server's, 0 while it is down."""
    ticket: str = ""
    """What the running session's client named."""
    since: float = 0.0
    """Unix time at which the session began, 0 for none."""
    loads: int = 0
    """Libraries that the session has loaded; between sessions those of the last one."""
    per_min: float | None = None
    """Of the last session."""
    idle_since: float = 0.0
    """Unix time at which the last session ended, or the server began to listen."""

    def rate(self) -> float | None:
        """Libraries a minute of the session; between sessions of the last one."""
        busy_s = time.time() - self.since
        if not self.since:
            return self.per_min
        return round(60 * self.loads / busy_s, 1) if busy_s > 1 else None


class Registrar(threading.Thread):
    """The thread that speaks to the tracker; the server's owner tells it what happens.

    Args:
        tracker: where it listens.
        key: the board's.
        advertise: host (and port) that clients shall connect to; None for the address that the
            tracker sees us come from, and the server's own port.
        about: what else to announce.
        say: told when the registration comes and goes.
    """

    def __init__(
        self,
        tracker: Place,
        key: str,
        *,
        advertise: tuple[str | None, int | None],
        about: dict[str, Any],
        say: Callable[[str], None],
    ) -> None:
        super().__init__(daemon=True, name="registrar")
        self._tracker, self._key, self._advertise = tracker, key, advertise
        self._about, self._say = about, say
        self._state = _State()
        self._quarantine: dict[str, Any] | None = None
        self._over = False
        self._said = ""
        self._wake, self._wake_write = socket.socketpair()
        for end in (self._wake, self._wake_write):
            end.setblocking(False)

    # Called by the owner

    def up(self, port: int) -> None:
        """The server listens, and has no session."""
        self._tell(_State(port, idle_since=time.time()))

    def down(self) -> None:
        """The server is gone."""
        self._quarantine = None
        self._tell(_State())

    def session(self, ticket: str) -> None:
        """A session began."""
        self._tell(_State(self._state.port, ticket, time.time()))

    def loaded(self) -> None:
        """The session loaded a library: one trial. Wakes nobody, for a timing follows."""
        s = self._state
        self._state = replace(s, loads=s.loads + 1)

    def quarantine(self, why: str) -> None:
        """The session's client leaves the board out, or, with no reason, takes it back.

        It is told when the session ends, and forgotten when the server is started anew.
        """
        self._quarantine = {"since": time.time(), "why": why} if why else None

    def ended(self) -> None:
        """The session is over."""
        s = self._state
        self._tell(_State(s.port, loads=s.loads, per_min=s.rate(), idle_since=time.time()))

    def stop(self) -> None:
        """Withdraw the board and end the thread."""
        self._over = True
        self._tell(_State())
        self.join(timeout=2.0)

    def _tell(self, state: _State) -> None:
        self._state = state
        with contextlib.suppress(BlockingIOError):  # full: it will wake anyway
            self._wake_write.send(b"x")

    # The thread

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(text)

    def _sleep(self, limit_s: float, *socks: socket.socket) -> bool:
        """Until something is told or a socket is readable; whether one is."""
        ready, _, _ = select.select([self._wake, *socks], [], [], limit_s)
        if self._wake in ready:
            self._wake.recv(4096)
        return any(s in ready for s in socks)

    def run(self) -> None:
        """Register, again and again, until stopped."""
        wait_s = FIRST_WAIT_S
        where = f"the tracker at {show(self._tracker)}"
        while not self._over:
            if not self._state.port:
                self._sleep(60.0)
                continue
            try:
                with TrackerLine(self._tracker) as line:
                    self._announce(line)
                    self._say_once(f"registered as {self._key} with {where}")
                    wait_s = FIRST_WAIT_S
                    self._lend(line)
                continue
            except OSError as error:
                why = why_not(error)
            except NotATracker as error:
                why = str(error)
            self._say_once(f"no registration with {where}: {why}; trying again")
            until = time.monotonic() + wait_s
            while not self._over and time.monotonic() < until:
                self._sleep(until - time.monotonic())
            wait_s = min(2 * wait_s, LAST_WAIT_S)

    def _address(self) -> tuple[str | None, int]:
        host, port = self._advertise
        return host, port or self._state.port

    def _announce(self, line: TrackerLine) -> None:
        s = self._state
        ours = {
            **self._about,
            "since": s.since or None,
            "idle_since": s.idle_since or None,
            "trials": s.loads,
            "trials_per_min": s.rate(),
            "quarantine": self._quarantine,
        }
        info = {"key": f"server:{self._key}", "addr": self._address(), "tvmsep": ours}
        self._ask(line, UPDATE_INFO, info)

    @staticmethod
    def _ask(line: TrackerLine, code: int, *args: Any) -> None:
        answer = line.call(code, *args)
        if answer != SUCCESS:
            raise NotATracker(f"the tracker refused ({answer!r})")

    def _lend(self, line: TrackerLine) -> None:
        """Offer tickets until told to stop, the server is down, or somebody came without one."""
        ticket, taken_at, told, was_busy = "", 0.0, time.monotonic(), self._state.since > 0
        port = self._state.port
        while not self._over and (s := self._state).port == port:
            now = time.monotonic()
            busy = s.since > 0
            if busy and ticket and s.ticket != ticket:
                return
            if busy != was_busy or (busy and now - told > REPORT_S):
                self._announce(line)
                told, was_busy = now, busy
            if busy:
                ticket = ""
            elif not ticket or (taken_at and now - taken_at > CLAIM_S):
                ticket, taken_at = f"{self._key}:{random.random()}", 0.0
                host, port_ = self._address()
                self._ask(line, PUT, self._key, [port_, ticket], host)
            else:
                pending = line.call(PENDING_KEYS)
                if not isinstance(pending, list):
                    raise NotATracker(f"the tracker's answer makes no sense ({pending!r})")
                taken_at = 0.0 if ticket in pending else taken_at or now
            if self._sleep(REPORT_S if busy else PING_S, line.sock):
                raise ConnectionResetError(0, "the tracker has gone")
