"""A tracker and boards as a user starts them, each board behind a link that can be hurt."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from campaign.link import Link

MARK = "TVMSEP_CAMPAIGN"
"""Environment variable that every process of a campaign inherits."""
KEY = "loopback"
START_S = 60.0
DUTY_S = (0.001, 0.009)
"""A board that is slowed down ten times runs, and stands, so long in turn."""


def wait_for(true: Callable[[], Any], what: str, limit_s: float = START_S) -> Any:
    """Wait for something that must happen."""
    deadline = time.monotonic() + limit_s
    while not (found := true()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit_s:g} s: {what}")
        time.sleep(0.05)
    return found


def family(pid: int, word: str = "") -> list[int]:
    """Processes that descend from one, those whose command line holds `word`."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if fields[0] != "Z":
                    parents[int(entry.name)] = int(fields[1])
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return [p for p in found[1:] if word in _read(p, "cmdline")]


def marked(token: str) -> list[int]:
    """Processes of a campaign that live, this one aside."""
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and int(entry.name) != os.getpid()
        and f"{MARK}={token}" in _read(int(entry.name), "environ").split("\0")
    ]


def _read(pid: int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes().decode(errors="replace")
    except OSError:
        return ""


class _Command:
    """`tvmsep WORDS` in the background, its words in a file."""

    def __init__(self, folder: Path, name: str, *words: str) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.proc = subprocess.Popen(
                [sys.executable, "-m", "tvmsep.cli", *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def says(self, text: str) -> list[str]:
        """Its lines with a text."""
        if self.proc.poll() is not None:
            raise RuntimeError(f"it ended: {self.log.read_text()}")
        return [line for line in self.log.read_text().splitlines() if text in line]

    def end(self) -> None:
        """As a user ends it."""
        self.proc.terminate()
        self.proc.wait(timeout=20)


class Board:
    """One supervised board.

    Args:
        folder: for what it says.
        name: of its file there.
        tracker: `host:port`.
    """

    def __init__(self, folder: Path, name: str, tracker: str) -> None:
        self.link = Link(lambda: self._port)
        self._command = _Command(
            folder, name, "board", "serve", "--key", KEY, "--tracker", tracker, "--port", "0",
            "--threads", "1", "--advertise", f"127.0.0.1:{self.link.port}",
        )  # fmt: skip
        (line,) = wait_for(lambda: self._command.says(f"board {KEY} at"), "a board")
        self._port = int(line.rsplit(":", 1)[1])
        wait_for(lambda: self._command.says("registered as"), "a registration")

    @property
    def pids(self) -> list[int]:
        """Its server and that one's sessions, oldest first."""
        return family(self._command.proc.pid, "measure.server")

    def kill(self) -> None:
        """Its server ends as by a power cut; the supervisor stays."""
        _signal(self.pids[:1], signal.SIGKILL)

    def freeze(self) -> list[int]:
        """Stop server and sessions; answers what to wake."""
        pids = self.pids
        _signal(pids, signal.SIGSTOP)
        return pids

    @staticmethod
    def wake(pids: list[int]) -> None:
        """Let what was stopped go on."""
        _signal(pids, signal.SIGCONT)

    def slow_down(self, seconds: float) -> None:
        """Stand nine tenths of the time."""
        runs_s, stands_s = DUTY_S
        end = time.monotonic() + seconds
        pids, looked_at = self.pids, time.monotonic()
        while time.monotonic() < end:
            if time.monotonic() - looked_at > 0.5:
                pids, looked_at = self.pids, time.monotonic()
            _signal(pids, signal.SIGSTOP)
            time.sleep(stands_s)
            _signal(pids, signal.SIGCONT)
            time.sleep(runs_s)

    def end(self) -> None:
        """Stop it all."""
        self.wake(self.pids)
        self._command.end()
        self.link.close()


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Park:
    """A tracker and so many boards, all on loopback; use it in a `with`.

    Args:
        folder: for what they say.
        count: how many boards.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count = folder, count
        self.boards: list[Board] = []

    def __enter__(self) -> Self:
        self._tracker = _Command(self._folder, "tracker", "tracker", "--port", "0")
        (line,) = wait_for(lambda: self._tracker.says("tracker at"), "the tracker")
        at = line.split()[-1]
        self.place = ("127.0.0.1", int(at.rsplit(":", 1)[1]))
        try:
            for i in range(self._count):
                self.boards.append(Board(self._folder, f"board{i}", at))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for board in self.boards:
            board.end()
        self._tracker.end()

    def restart_tracker(self) -> None:
        """Kill it; its supervisor starts it again."""
        _signal(family(self._tracker.proc.pid, "tracker_child"), signal.SIGKILL)
