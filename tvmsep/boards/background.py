"""Processes that outlive the command that started them, found again by a state file.

`NAME.lock` is locked by the process while it lives, `NAME.json` appears when it is ready and says
what it does, `NAME.log` holds what it prints.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvmsep import __version__
from tvmsep.boards import remove
from tvmsep.contracts import BoardError

START_TIMEOUT_S = 150.0
"""Above the limit of the supervisor within, which knows better what went wrong."""
_GRACE_S = 10.0


class State:
    """The process's own end: claimed for its life.

    Args:
        path: of the state file, `NAME.json`.

    Raises:
        BoardError: another process has claimed it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lock = path.with_suffix(".lock")
        try:
            self._fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BoardError(f"cannot write {lock}: {error.strerror}; choose another") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise BoardError(
                f"process {remove.holder(str(lock))} runs with {path} already"
            ) from None
        self._path.unlink(missing_ok=True)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def write(self, **facts: Any) -> None:
        """Say that the process is ready, and how to reach it."""
        new = self._path.with_suffix(".new")
        with new.open("w") as file:
            json.dump({"pid": os.getpid(), **facts}, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)

    def close(self) -> None:
        """Give the claim back. The lock's file stays: another process may be waiting for it."""
        self._path.unlink(missing_ok=True)
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def program(words: Sequence[str]) -> dict[str, Any]:
    """What a process runs: one that runs something else has to make room.

    Args:
        words: of its command line.
    """
    return {"words": list(words), "version": __version__, "python": sys.executable}


def running(path: Path) -> dict[str, Any] | None:
    """What the process behind a state file says, None if none runs or it is not ready."""
    pid = remove.holder(str(path.with_suffix(".lock")))
    try:
        facts = json.loads(path.read_text()) if pid else None
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.get("pid") == pid else None


def start(command: Sequence[str], path: Path, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
    """Start a process in the background and wait until it is ready; answers its state.

    Nothing of it is left if this does not succeed, nor if it is interrupted.

    Raises:
        BoardError: it ended, or was not ready in time; with its last words.
    """
    log = path.with_suffix(".log")
    try:
        words = log.open("wb")
    except OSError as error:
        raise BoardError(f"cannot write {log}: {error.strerror}; choose another") from error
    with words:
        proc = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            start_new_session=True,
        )
    try:
        return _wait(proc, path, log, timeout_s)
    except BaseException:
        _end(proc)
        raise


def _wait(proc: subprocess.Popen[bytes], path: Path, log: Path, timeout_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    late = ""
    while True:
        facts = running(path)
        if facts is not None and facts["pid"] == proc.pid:
            return facts
        if proc.poll() is not None:
            break
        if time.monotonic() > deadline:
            late = f"not ready within {timeout_s:g} s: "
            break
        time.sleep(0.05)
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    raise BoardError(f"{late}{last[0].removeprefix('error: ')} (all of it: {log})")


def _end(proc: subprocess.Popen[bytes]) -> None:
    """A process and its group: asked to end, and killed if it is still there."""
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(proc.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            proc.wait(timeout=_GRACE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(proc.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            proc.wait(timeout=_GRACE_S)


def stop(path: Path) -> bool:
    """End the process behind a state file; whether there was one.

    Raises:
        BoardError: it goes on.
    """
    try:
        return remove.stop(str(path.with_suffix(".lock")))
    except remove.CannotStop as error:
        raise BoardError(str(error)) from error
