"""A warm worker: a fresh Python process that runs module-level functions on request.

Own processes rather than a pool from a library, for reasons that matter here:

- `multiprocessing`'s spawn (and every pool on it) imports the caller's `__main__` again, so a
  plain script without a main guard, or one piped into Python, would start itself over;
- each role needs its own environment before TVM is imported (runtime library only, threads);
- the one process that talks to a board needs exactly what a builder needs: a time limit per
  call, a kill that takes the whole process group, a restart;
- a worker notices that its owner has died (the socket hangs up) even while it is busy.

Workers sit in their own process group: Ctrl-C reaches the owner alone, which then kills them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, BinaryIO

from tvmsep.contracts import TvmsepError
from tvmsep.measure.results import shorten

STARTUP_TIMEOUT_S = 120.0
_LARGE_PAGE = 5 << 20
"""Bytes of a huge page by which a heap had better not grow."""


class WorkerDied(Exception):
    """The worker process ended before it answered; the message says how."""


class WorkerTimeout(Exception):
    """The worker did not answer in time and was killed."""


class WorkerStartError(TvmsepError):
    """A worker process does not come up: something is missing from this installation."""


class WorkerError(Exception):
    """The function raised; the message holds the exception's type and text."""


def child_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of our child processes: the owner's, its import path, no stray threads."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
    # BLAS pools would compete with what is being timed, and must not exist before a fork.
    env["OPENBLAS_NUM_THREADS"] = env["MKL_NUM_THREADS"] = "1"
    env.update(extra or {})
    return env


def server_env() -> dict[str, str]:
    """The environment of a board's server: its heap and large tensors lie on huge pages.

    So do all weights of a bundle. Dense layers of 1 to 5 MB take up to 13 % more on small pages,
    and what they gain from a knob is another matter there. glibc from 2.35 does it, by whole huge
    pages: where those are large, small boards had better not. What the owner set wins.
    """
    env = child_env()
    if _huge_page_bytes() in range(1, _LARGE_PAGE):
        given = [t for t in [env.get("GLIBC_TUNABLES")] if t]
        env["GLIBC_TUNABLES"] = ":".join(["glibc.malloc.hugetlb=1", *given])
    return env


def _huge_page_bytes() -> int:
    """Size of a huge page, 0 where there are none."""
    try:
        return int(Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0


def open_log() -> BinaryIO:
    """An unnamed file for a child's words: every write goes to its end, also after a truncate."""
    log: BinaryIO = tempfile.TemporaryFile()
    fcntl.fcntl(log, fcntl.F_SETFL, fcntl.fcntl(log, fcntl.F_GETFL) | os.O_APPEND)
    return log


class Worker:
    """The owner's end of one worker process.

    Args:
        warm: a module-level function, run once at the start within `STARTUP_TIMEOUT_S`.
        env: environment variables for the process, on top of the owner's.
    """

    def __init__(self, warm: Callable[[], None], env: Mapping[str, str] | None = None) -> None:
        ours, theirs = Pipe(duplex=True)
        self._log = open_log()
        self.conn: Connection = ours
        with theirs:
            self._proc = subprocess.Popen(
                [sys.executable, "-P", "-m", "tvmsep.measure.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                env=child_env(env),
                start_new_session=True,
            )
        self._warm = False
        self._limit_s = self._deadline = 0.0
        self.submit(warm, limit_s=STARTUP_TIMEOUT_S)

    @property
    def pid(self) -> int:
        """Process id, also the id of the process group."""
        return self._proc.pid

    @property
    def deadline(self) -> float:
        """When, on the monotonic clock, the running call is overdue."""
        return self._deadline

    def submit(self, fn: Callable[..., Any], *args: Any, limit_s: float) -> None:
        """Start `fn(*args)`; the time limit counts from here."""
        self._log.truncate(0)
        self._limit_s = limit_s
        self._deadline = time.monotonic() + limit_s
        try:
            self.conn.send((fn, args))
        except (BrokenPipeError, ConnectionResetError) as exc:
            raise WorkerDied(self._obituary()) from exc

    def result(self) -> Any:
        """Wait for the call's answer.

        Raises:
            WorkerTimeout: the limit passed; the worker has been killed.
            WorkerDied: the process ended.
            WorkerError: the function raised.
            TvmsepError: the function raised one: the user's matter, passed on as it is.
        """
        if not self.conn.poll(max(0.0, self._deadline - time.monotonic())):
            self.kill()
            raise WorkerTimeout(f"no answer within {self._limit_s:g} s")
        try:
            kind, value = self.conn.recv()
        except (EOFError, ConnectionResetError) as exc:
            raise WorkerDied(self._obituary()) from exc
        if kind == "ok":
            return value
        if isinstance(value, TvmsepError):
            raise value
        raise WorkerError(value)

    def call(self, fn: Callable[..., Any], *args: Any, limit_s: float) -> Any:
        """`submit`, then `result`; the first call also waits for the start."""
        self.ready()
        self.submit(fn, *args, limit_s=limit_s)
        return self.result()

    def ready(self) -> None:
        """Wait until the process has started and warmed up.

        Raises:
            WorkerStartError: it did not.
        """
        if not self._warm:
            try:
                self.result()
            except (WorkerDied, WorkerTimeout, WorkerError) as exc:
                raise WorkerStartError(
                    f"a worker process does not start: {exc}; tuning needs TVM and a linker: "
                    "`pip install 'tvmsep[tune]'`"
                ) from exc
            self._warm = True

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._proc.poll() is None

    def _obituary(self) -> str:
        """How the process ended, with the last words it printed."""
        try:
            code = self._proc.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        words = b"" if self._log.closed else self._last_words()
        self.kill()
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        text = shorten(words.decode(errors="replace"))
        return f"process ended with {how}" + (f": {text}" if text else "")

    def _last_words(self) -> bytes:
        self._log.seek(0)
        return self._log.read()

    def interrupt(self) -> None:
        """Kill the process while another thread may wait for it: `result` then says it died."""
        if self._proc.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._proc.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End the process group at once. Safe to call again."""
        if self._proc.poll() is None:
            try:
                os.killpg(self._proc.pid, signal.SIGKILL)
            except ProcessLookupError:
                self._proc.kill()
            self._proc.wait(timeout=10)
        self.conn.close()
        self._log.close()


class Pool:
    """`count` workers that share a list of calls; crashed and hung ones are replaced.

    Args:
        count: worker processes.
        warm: what each runs at its start (imports).
        env: environment variables for each.
    """

    def __init__(
        self, count: int, warm: Callable[[], None], env: Mapping[str, str] | None = None
    ) -> None:
        self._warm, self._env = warm, env
        self._closed = False
        self.workers = [self._start() for _ in range(count)]

    def _start(self) -> Worker:
        return Worker(self._warm, self._env)

    def map(
        self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]], limit_s: float
    ) -> list[Any]:
        """Run `fn(*args)` for each of `calls`; answers in their order.

        An answer is the function's value, or the `WorkerDied`, `WorkerTimeout` or `WorkerError`
        that took its place. A `TvmsepError` is raised, after the calls that still ran were dropped.
        """
        answers: list[Any] = [None] * len(calls)
        queue: Iterator[int] = iter(range(len(calls)))
        busy: dict[int, int] = {}  # slot -> call
        try:
            for slot in range(min(len(self.workers), len(calls))):
                self._next(slot, fn, calls, queue, busy, limit_s)
            while busy:
                first = min(self.workers[s].deadline for s in busy)
                conns = {self.workers[s].conn: s for s in busy}
                wait(list(conns), timeout=max(0.0, first - time.monotonic()))
                now = time.monotonic()
                for slot in list(busy):
                    worker = self.workers[slot]
                    if not worker.conn.poll(0) and now < worker.deadline:
                        continue
                    call = busy.pop(slot)
                    try:
                        answers[call] = worker.result()
                    except WorkerError as exc:
                        answers[call] = exc
                    except (WorkerDied, WorkerTimeout) as exc:
                        answers[call] = exc  # `_next` replaces the worker
                    self._next(slot, fn, calls, queue, busy, limit_s)
        finally:
            for slot in busy:  # only after an exception: their answers would confuse the next map
                self.workers[slot].kill()
        return answers

    def _next(
        self,
        slot: int,
        fn: Callable[..., Any],
        calls: Sequence[tuple[Any, ...]],
        queue: Iterator[int],
        busy: dict[int, int],
        limit_s: float,
    ) -> None:
        call = next(queue, None)
        if call is None:
            return
        if self._closed:
            raise RuntimeError("this pool is closed")
        if not self.workers[slot].alive:
            self.workers[slot].kill()
            self.workers[slot] = self._start()
        self.workers[slot].ready()
        self.workers[slot].submit(fn, *calls[call], limit_s=limit_s)
        busy[slot] = call

    def close(self) -> None:
        """Kill every worker, also while another thread waits for them."""
        self._closed = True
        for worker in self.workers:
            worker.interrupt()
        for worker in self.workers:
            worker.kill()


def _die_with_owner(fd: int) -> None:
    """Wait for the owner's end of the socket to hang up, then end this process group."""
    watch = select.poll()
    watch.register(fd, 0)  # POLLHUP and POLLERR alone
    while not watch.poll():
        pass
    os.killpg(0, signal.SIGKILL)


def _serve(fd: int) -> None:
    # The builder and the runner never need torch, and importing it takes seconds.
    sys.modules["torch"] = None  # type: ignore[assignment]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_owner, args=(fd,), daemon=True).start()
    conn = Connection(fd)
    while True:
        try:
            fn, args = conn.recv()
        except EOFError:
            return
        try:
            answer = ("ok", fn(*args))
        except TvmsepError as exc:
            answer = ("error", exc)
        except Exception as exc:
            where = traceback.extract_tb(exc.__traceback__)[-1]
            text = f"{type(exc).__name__}: {shorten(str(exc))}"
            answer = ("error", f"{text} ({os.path.basename(where.filename)}:{where.lineno})")
        conn.send(answer)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
