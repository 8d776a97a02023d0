"""This host as a board: our own RPC server on loopback, in a process of its own."""

from __future__ import annotations

import os
import select
import subprocess
import sys

from tvmsep.codegen.cuda import emulated
from tvmsep.contracts import BoardError
from tvmsep.measure.results import shorten
from tvmsep.measure.worker import open_log, server_env

LOCAL_KEY = "tvmsep"
LOCAL_GRACE_S = 0.1


class LocalServer:
    """Our RPC server on loopback as a child process; `start` again after it died."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._proc: subprocess.Popen[bytes] | None = None
        self._log = open_log()
        self.port = 0

    @property
    def pid(self) -> int:
        """Process id of the server, 0 if there is none."""
        return self._proc.pid if self._proc else 0

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._proc is not None and self._proc.poll() is None

    def start(self, timeout_s: float = 60.0) -> None:
        """Start the server and learn its port.

        Raises:
            BoardError: it did not come up in time.
        """
        self.stop()
        command = [sys.executable, "-P", "-m", "tvmsep.measure.server", "--watch-stdin"]
        command += ["--key", LOCAL_KEY, "--threads", str(self._threads)]
        command += ["--grace", str(LOCAL_GRACE_S)]
        self._proc = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(),
            start_new_session=True,
        )
        assert self._proc.stdout is not None
        watch = select.poll()
        watch.register(self._proc.stdout, select.POLLIN)
        line = self._proc.stdout.readline().decode() if watch.poll(timeout_s * 1e3) else ""
        if not line.startswith("listening "):
            self.stop()
            raise BoardError(
                f"the local RPC server did not start within {timeout_s:g} s "
                f"({self.last_words() or 'it said nothing'}); "
                "run `python -m tvmsep.measure.server` to see why"
            )
        self.port = int(line.rsplit(":", 1)[1])

    def last_words(self) -> str:
        """What the server and its sessions have printed since the last call."""
        self._log.seek(0)
        words = self._log.read().decode(errors="replace")
        self._log.truncate(0)
        return shorten(" ".join(words.split()))

    def stop(self) -> None:
        """End the server, its session and its temporary folders. Safe to call again."""
        if self._proc is None:
            return
        assert self._proc.stdin is not None and self._proc.stdout is not None
        self._proc.terminate()
        try:
            self._proc.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._proc.kill()
            self._proc.wait(timeout=10.0)
        self._proc.stdin.close()
        self._proc.stdout.close()
        self._proc = None


def _environment() -> dict[str, str]:
    """The server's; with the emulated CUDA device where candidates are compiled for that."""
    env = server_env()
    if emulated():
        from tvmsep.emulator import stand_in

        paths = [str(stand_in()), *filter(None, [env.get("LD_LIBRARY_PATH")])]
        env["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
    return env
