"""A process that is kept running: started again when it ends, with its owner to the grave.

A child says on standard output when it is ready, in a line that begins with `listening`; what it
prints later is handed to the owner. It must end when its standard input does: that is what leaves
no orphan even when the owner is killed with SIGKILL.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence

from tvmsep.contracts import BoardError

READY = "listening"
START_TIMEOUT_S = 120.0
"""A small board needs its time to import TVM."""
FIRST_WAIT_S, LAST_WAIT_S = 0.5, 15.0
STEADY_S = 30.0
"""A child that lived so long was sound: the next wait is the first again."""
CHECK_S = 5.0


def say(text: str) -> None:
    """One line for whoever reads the supervisor's log, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Supervisor:
    """Runs one child until a signal says stop.

    Args:
        name: of the child, for messages.
        command: answers the child's command line at each start.
        ready: called with the child's `listening` line, at each start.
        heard: called with each later line.
        gone: called when the child has ended.
        healthy: asked every `CHECK_S`; a child that fails twice in a row is killed.
        pass_fds: descriptors that the child inherits.
        env: the child's environment.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        *,
        ready: Callable[[str], None],
        heard: Callable[[str], None] = lambda _: None,
        gone: Callable[[], None] = lambda: None,
        healthy: Callable[[], bool] | None = None,
        pass_fds: Sequence[int] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        self._name, self._command = name, command
        self._ready, self._heard, self._gone, self._healthy = ready, heard, gone, healthy
        self._pass_fds, self._env = pass_fds, env
        self._proc: subprocess.Popen[bytes] | None = None
        self._parts: dict[int, bytes] = {}
        self._words: deque[str] = deque(maxlen=8)
        self._is_ready = self._was_ready = self._stop = False
        self._started = self._checked = self._start_at = 0.0
        self._wait_s = FIRST_WAIT_S
        self._failed_checks = 0
        self._wake, self._wake_write = os.pipe()
        for fd in (self._wake, self._wake_write):
            os.set_blocking(fd, False)

    def run(self) -> None:
        """Until SIGTERM, SIGINT or SIGHUP; then the child is gone too.

        Raises:
            BoardError: the child never became ready; with its last words.
        """
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            while not self._stop:
                self._step()
        finally:
            self._end()

    def _on_stop(self, *_: object) -> None:
        self._stop = True

    def _step(self) -> None:
        now = time.monotonic()
        if self._proc is None:
            if now >= self._start_at:
                self._start()
        elif not self._is_ready and now - self._started > START_TIMEOUT_S:
            self._words.append(f"it was not ready within {START_TIMEOUT_S:g} s")
            self._proc.kill()
        elif self._is_ready and self._healthy and now - self._checked > CHECK_S:
            self._failed_checks = 0 if self._healthy() else self._failed_checks + 1
            self._checked = time.monotonic()
            if self._failed_checks >= 2:
                say(f"{self._name} does not answer: ending it")
                self._proc.kill()
        watch = select.poll()
        for fd in (self._wake, *self._parts):
            watch.register(fd, select.POLLIN)
        wait_s = self._start_at - now if self._proc is None else CHECK_S
        ready = [fd for fd, _ in watch.poll(max(0.0, wait_s) * 1e3)]
        for fd in ready:
            self._read(fd)
        if self._proc is not None and self._proc.poll() is not None:
            self._bury()

    def _start(self) -> None:
        self._words.clear()
        try:
            command = self._command()
        except BoardError as error:
            if not self._was_ready:
                raise
            say(f"{self._name}: {error}; trying again in {self._wait_s:g} s")
            self._put_off()
            return
        self._proc = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=self._pass_fds,
            env=self._env,
            start_new_session=True,  # Ctrl-C is for us alone
        )
        assert self._proc.stdout and self._proc.stderr
        self._parts = {self._proc.stdout.fileno(): b"", self._proc.stderr.fileno(): b""}
        self._started = self._checked = time.monotonic()
        self._is_ready, self._failed_checks = False, 0

    def _put_off(self) -> None:
        self._start_at = time.monotonic() + self._wait_s
        self._wait_s = min(2 * self._wait_s, LAST_WAIT_S)

    def _read(self, fd: int) -> None:
        data = os.read(fd, 65536)
        if fd == self._wake:
            return
        if not data:
            del self._parts[fd]
            return
        assert self._proc is not None and self._proc.stdout is not None
        *lines, self._parts[fd] = (self._parts[fd] + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace").strip()
            if fd != self._proc.stdout.fileno():
                self._words.append(text)
                if self._was_ready:
                    say(f"{self._name}: {text}")
            elif self._is_ready:
                self._heard(text)
            elif text.startswith(READY):
                self._is_ready = self._was_ready = True
                self._ready(text)
        self._parts[fd] = self._parts[fd][-65536:]

    def _bury(self) -> None:
        """The child has ended: hear its last words, and say when the next one starts."""
        assert self._proc is not None
        code = self._proc.returncode
        for fd in list(self._parts):
            os.set_blocking(fd, False)
            try:
                while fd in self._parts:
                    self._read(fd)
            except BlockingIOError:
                pass  # a grandchild still holds it
        self._close()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        if not self._was_ready:
            words = " ".join(self._words) or f"it {how} and said nothing"
            raise BoardError(f"{self._name} does not start: {words}")
        if self._is_ready:
            self._gone()
        if time.monotonic() - self._started > STEADY_S:
            self._wait_s = FIRST_WAIT_S
        say(f"{self._name} {how}; starting it again in {self._wait_s:g} s")
        self._put_off()

    def _close(self) -> None:
        assert self._proc is not None
        for pipe in (self._proc.stdin, self._proc.stdout, self._proc.stderr):
            if pipe:
                pipe.close()
        self._proc, self._parts = None, {}

    def _end(self) -> None:
        if self._proc is None:
            return
        self._proc.terminate()
        try:
            self._proc.wait(timeout=3.0)
        except subprocess.TimeoutExpired:
            self._proc.kill()
            self._proc.wait(timeout=10.0)
        self._close()
