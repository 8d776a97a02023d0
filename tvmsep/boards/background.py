"""Processes that outlive the command that started them, found again by a state file.

`NAME.lock` is locked by the process while it lives, `NAME.json` appears when it is ready and says
what it does, `NAME.log` holds what it prints.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvmsep.boards import remove
from tvmsep.contracts import BoardError

START_TIMEOUT_S = 150.0


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
        os.close(self._fd)


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

    Raises:
        BoardError: it ended, or was not ready in time; with its last words.
    """
    log = path.with_suffix(".log")
    with log.open("wb") as words:
        proc = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            start_new_session=True,
        )
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        facts = running(path)
        if facts is not None and facts["pid"] == proc.pid:
            return facts
        if proc.poll() is not None:
            break
        time.sleep(0.05)
    else:
        proc.terminate()
        proc.wait(timeout=10.0)
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    raise BoardError(f"{last[0].removeprefix('error: ')} (all of it: {log})")


def stop(path: Path) -> bool:
    """End the process behind a state file; whether there was one."""
    return remove.stop(str(path.with_suffix(".lock")))
