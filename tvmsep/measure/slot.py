"""One board at work: a worker process with a session, and the locks that its timings need.

A slot gets whichever board the tracker lends, and after a loss perhaps another one. It decides
nothing about a candidate that its board did not survive: it raises `Lost`, and `dispatch` says who
tries again. Only for our own server on this host, which it restarts, the verdict is clear at once.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tvmsep.contracts import BoardError, Failure, Target, Task
from tvmsep.measure import host, session
from tvmsep.measure.device import fault
from tvmsep.measure.local import LocalServer
from tvmsep.measure.lock import HostLock
from tvmsep.measure.results import Board, Built, Failed, Measured
from tvmsep.measure.worker import Worker, WorkerDied, WorkerError, WorkerTimeout
from tvmsep.rpc import client

PREPARE_TIMEOUT_S = 120.0
"""For uploading a task's tensors and computing its reference, once a task."""
REMOTE_SESSION_S = 300.0
"""Seconds, asked of servers that are not ours: they would let a hung session block the board for
ever."""
LONG_SESSION_S = 3600.0
"""Seconds, asked of the same servers for a whole network: its variants take turns in one session,
for minutes on a slow board, and an hour is more than they ever need."""
HOME_RETRY_S = 0.2
"""Between two attempts to be lent a certain board: a tracker lends what waited longest."""
HANDSHAKE_S = 15.0
"""A board that a tracker lends is free and answers soon."""


class Lost(Exception):
    """The session ended under a candidate.

    Args:
        failure: `timeout` or `crash` if it may be the candidate's doing, else `link_lost` or
            `upload_error`.
        detail: what was seen.
    """

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure


@dataclass(frozen=True)
class Limits:
    """Time limits in seconds."""

    run_s: float
    """On checking and timing one candidate."""
    connect_s: float
    """On getting a session."""
    lock_s: float
    """On waiting for another tvmsep that measures on the host."""


@dataclass(frozen=True)
class Source:
    """Where a slot's boards come from: a tracker, a server, or our own server on this host."""

    board: Board
    """With the tracker's host and port where that is asked."""
    tracker: bool
    server: LocalServer | None = None
    one: bool = False
    """Whether a slot stays with the board that the tracker lends it first."""


class Slot:
    """See the module.

    Args:
        source: where its board comes from.
        target: what candidates are compiled for.
        limits: time limits.
        seed: of the random inputs.
    """

    def __init__(self, source: Source, target: Target, limits: Limits, seed: int) -> None:
        self.source, self._target, self._limits, self._seed = source, target, limits, seed
        self.board = source.board
        self.connected = False
        self._home = ""
        """The board to stay with, once there is one."""
        self.session_s = 0.0
        """How long the last session may be; infinite for our own server's."""
        self._stopped = threading.Event()
        self._here = HostLock(limits.lock_s)
        self._lock: HostLock | None = self._here if source.board.local else None
        self._worker = self._start()

    def _start(self) -> Worker:
        return Worker(session.warm, {"TVM_USE_RUNTIME_LIB": "1"})

    @property
    def own_server(self) -> LocalServer | None:
        """Our server on this host, if that is the board."""
        return self.source.server

    def connect(self, session_s: float = 0.0) -> str:
        """See that there is a fresh session that may last so long; why not, or ""."""
        try:
            if not self._worker.alive:
                self._worker.kill()
                self.connected = False
                if self._stopped.is_set():
                    return "the farm is closed"
                self._worker = self._start()
            if self.connected:
                stale = self._call(session.stale, limit_s=self._limits.run_s)
                if not stale and self.session_s >= session_s:
                    return ""
                self.drop()
            self._open_home(max(session_s, REMOTE_SESSION_S))
        except (BoardError, WorkerDied, WorkerTimeout, WorkerError) as exc:
            return str(exc)
        self.connected = True
        return ""

    def _open_home(self, session_s: float) -> None:
        """Open a session; where the slot stays with one board, with that one."""
        deadline = time.monotonic() + self._limits.connect_s
        while True:
            self._open(session_s)
            if not self.source.one or not self.source.tracker:
                return
            self._home = self._home or self.board.name
            if self.board.name == self._home:
                return
            self._call(session.disconnect, limit_s=self._limits.run_s)
            if time.monotonic() > deadline or self._stopped.wait(HOME_RETRY_S):
                raise BoardError(
                    f"board {self._home} was not lent again within {self._limits.connect_s:g} s: "
                    "it went away, or others use it"
                )

    def _open(self, session_s: float) -> None:
        board, limit_s, server = self.source.board, self._limits.connect_s, self.own_server
        if server is not None:
            if not server.alive:
                server.start()
            board = replace(board, port=server.port)
        name, ticket = board.key, board
        if self.source.tracker:
            place = (board.host, board.port)
            lent = client.request(place, board.key, limit_s, stop=self._stopped.is_set)
            ticket = replace(board, host=lent.host, port=lent.port, key=lent.key)
            board = replace(board, name=f"{name}@{lent.host}:{lent.port}", host=lent.host)
            board, limit_s = replace(board, port=lent.port), min(limit_s, HANDSHAKE_S)
        asked_s = 0.0 if server is not None else session_s
        address = session.Address(ticket.host, ticket.port, ticket.key, asked_s)
        try:
            hello = self._call(session.connect, address, self._seed, self._target, limit_s=limit_s)
        except WorkerTimeout as exc:
            raise BoardError(f"board {board.name} opened no session: {exc}") from exc
        self.session_s = asked_s or float("inf")
        machine = host.machine_of(hello.machine, board.host)
        local = self.source.board.local or machine == host.host_id()
        self.board = replace(board, cpu=hello.cpu or board.cpu, machine=machine, local=local)
        digest = hashlib.sha256(machine.encode()).hexdigest()[:16]
        self._use_lock(None if local else f"measure-{digest}")

    def _use_lock(self, name: str | None) -> None:
        """Take the lock of the board's machine; None for this host's."""
        if self._lock is not None and self._lock is not self._here:
            self._lock.close()
        self._lock = self._here if name is None else HostLock(self._limits.lock_s, name)

    def drop(self) -> None:
        """Give the board back; the next `connect` asks for one again."""
        self.connected = False
        if self._worker.alive:
            try:
                self._call(session.disconnect, limit_s=self._limits.run_s)
            except (WorkerDied, WorkerTimeout, WorkerError):
                self._worker.kill()

    def reading(self) -> dict[str, Any] | None:
        """The board's counters, see `load.reading`; None where its server is not ours.

        Raises:
            Lost: as `call`.
        """
        answer: dict[str, Any] | None = self.call(
            session.reading, limit_s=self._limits.run_s, blame=False
        )
        return answer

    def quarantine(self, why: str) -> None:
        """Tell the board why it is left out, "" that it is not, for `tvmsep boards` to show."""
        if self._worker.alive and self.own_server is None:
            try:
                self._call(session.quarantine, why, limit_s=self._limits.run_s)
            except (WorkerDied, WorkerTimeout, WorkerError):
                self._worker.kill()
                self.connected = False

    def _call(self, fn: Callable[..., Any], *args: Any, limit_s: float) -> Any:
        return self._worker.call(fn, *args, limit_s=limit_s)

    @contextmanager
    def timing(self) -> Iterator[None]:
        """While no other board of the machine, and no build on it, disturbs this one."""
        assert self._lock is not None
        with self._lock.hold(exclusive=True):
            yield

    def call(self, fn: Callable[..., Any], *args: Any, limit_s: float, blame: bool = True) -> Any:
        """Run a function in the session.

        Args:
            fn: a function of `session`.
            *args: its arguments.
            limit_s: its time limit.
            blame: whether what runs may be what ended the session.

        Raises:
            Lost: the session ended, or its time was over.
            WorkerError: the function raised, and the board still answers.
        """
        try:
            return self._call(fn, *args, limit_s=limit_s)
        except WorkerTimeout as exc:
            self.connected = False
            raise Lost("timeout" if blame else "link_lost", str(exc)) from exc
        except WorkerDied as exc:
            self.connected = False
            raise Lost("crash" if blame else "link_lost", str(exc)) from exc
        except WorkerError as exc:
            try:
                self._call(session.answers, limit_s=self._limits.run_s)
            except (WorkerDied, WorkerTimeout, WorkerError):
                self.connected = False
                raise Lost("crash" if blame else "link_lost", str(exc)) from exc
            raise

    def measure(self, task: Task, built: Built, repeats: int | None) -> Measured | Failed:
        """Check and time one candidate.

        Raises:
            Lost: the board did not survive it; never for our own server, which is started again.
            BoardError: the board cannot run the task's number of threads.
        """
        try:
            if not self.board.local:
                # References are computed on this host, on which another board may be timed.
                with self._here.hold(exclusive=False):
                    self._prepare(task)
            with self.timing():
                self._prepare(task)
                outcome = self.call(
                    session.measure, task, built, repeats, limit_s=self._limits.run_s
                )
        except WorkerError as exc:
            return self.failed(exc)
        except Lost as exc:
            if self.own_server is None:
                raise
            why = self.connect()
            if why:
                raise Lost("link_lost", f"{why}; before that: {exc}") from exc
            words = self.own_server.last_words() if exc.failure == "crash" else ""
            return Failed(exc.failure, words or str(exc), self.board.name)
        assert isinstance(outcome, Measured | Failed)
        if isinstance(outcome, Failed) and outcome.failure == "upload_error":
            self.drop()
            if self.own_server is None:
                raise Lost("upload_error", outcome.detail)
        answer: Measured | Failed = replace(outcome, board=self.board.name)
        return answer

    def failed(self, error: WorkerError) -> Failed:
        """What an error that the board reported means.

        CUDA answers every call after a kernel's illegal access with that error again, and memory
        may be short because of what a session still holds: the next job gets a session of its own.
        """
        failure = fault(str(error))
        if failure is not None:
            self.drop()
        return Failed(failure or "runtime_error", str(error), self.board.name)

    def _prepare(self, task: Task) -> None:
        self.call(session.prepare, task, self._target, limit_s=PREPARE_TIMEOUT_S, blame=False)

    def stop(self) -> None:
        """End the worker while another thread uses this slot."""
        self._stopped.set()
        self._worker.interrupt()

    def close(self) -> None:
        """End the worker and close the locks, once no other thread uses this slot."""
        self._stopped.set()
        self._worker.kill()
        if self._lock is not None and self._lock is not self._here:
            self._lock.close()
        self._here.close()
