"""File locks between processes; the kernel drops them with their holder, however that ends.

`HostLock`: one timing at a time on a host. Building holds it shared, timing on a local board holds
it exclusively: builds overlap each other, nothing overlaps a timing.

`Scratch`: a temporary folder that outlives a killed owner only until the next one starts.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tvmsep.contracts import BoardError

_POLL_S = 0.01


def _open(name: str) -> int:
    path = Path(tempfile.gettempdir()) / f"tvmsep-{name}.lock"
    try:
        return os.open(path, os.O_RDWR)
    except FileNotFoundError:
        old = os.umask(0)  # any user of this host may lock
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        finally:
            os.umask(old)


def _try(fd: int, mode: int) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class HostLock:
    """The host's measuring lock, opened once and taken many times.

    Args:
        timeout_s: how long to wait for others.
        name: part of the lock file's name in the temporary directory.
    """

    def __init__(self, timeout_s: float = 600.0, name: str = "measure") -> None:
        self._timeout_s = timeout_s
        self._lock = _open(name)
        self._waiting = _open(f"{name}-waiting")

    @contextmanager
    def hold(self, *, exclusive: bool) -> Iterator[None]:
        """Hold the lock for a block.

        Raises:
            BoardError: others held it for all of `timeout_s`.
        """
        mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        if not _try(self._lock, mode):
            self._wait(mode)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._give_way()

    def _wait(self, mode: int) -> None:
        deadline = time.monotonic() + self._timeout_s
        fcntl.flock(self._waiting, fcntl.LOCK_SH)
        try:
            while not _try(self._lock, mode):
                if time.monotonic() > deadline:
                    raise BoardError(
                        "another tvmsep has been measuring on this host for "
                        f"{self._timeout_s:g} s; wait for it to end, or stop it, then run again"
                    )
                time.sleep(_POLL_S)
        finally:
            fcntl.flock(self._waiting, fcntl.LOCK_UN)

    def _give_way(self) -> None:
        """Leave a waiter the time to take the lock: without it, the quickest would starve all."""
        if _try(self._waiting, fcntl.LOCK_EX):
            fcntl.flock(self._waiting, fcntl.LOCK_UN)
        else:
            time.sleep(3 * _POLL_S)

    def close(self) -> None:
        """Close the lock's files. Safe to call again."""
        for fd in (self._lock, self._waiting):
            if fd >= 0:
                os.close(fd)
        self._lock = self._waiting = -1


class Scratch:
    """A temporary folder, locked while its owner lives; folders of dead owners are removed first.

    Args:
        prefix: of the folder's name in the temporary directory.
    """

    def __init__(self, prefix: str) -> None:
        for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            _remove_if_left(old)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self._fd = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove the folder. Safe to call again."""
        if self._fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._fd)
            self._fd = -1


def _remove_if_left(folder: Path) -> None:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # another user's, or gone by now
        return
    try:
        age_s = time.time() - os.fstat(fd).st_mtime
        # A young one may be about to be locked by the owner that just made it.
        if age_s > 10 and _try(fd, fcntl.LOCK_EX):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(fd)
