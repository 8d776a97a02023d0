"""Ends what `tvmsep board serve --detach` started: `python remove.py stop|remove FOLDER`.

Standard library only, and nothing that Python 3.7 cannot read: `tvmsep board undeploy` sends this
very file to the board, where the installation may be broken or half-made.

A background process holds a lock on `NAME.lock`, which contains its process id, for as long as it
lives: an id is never trusted without the lock.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import time

MARK = "tvmsep-board.txt"
"""A folder without this file is not ours, and is not removed."""
SERVE = "serve"


def holder(lock: str) -> int:
    """Process id of a lock's holder, 0 if nobody holds it."""
    try:
        fd = os.open(lock, os.O_RDWR)
    except OSError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return 0
    except BlockingIOError:
        return int(os.pread(fd, 32, 0) or 0)
    finally:
        os.close(fd)


def stop(lock: str, timeout_s: float = 10.0) -> bool:
    """End a lock's holder and wait until it has gone; whether there was one."""
    pid = holder(lock)
    if not pid:
        return False
    number: signal.Signals | None = signal.SIGTERM
    deadline = time.monotonic() + timeout_s
    while holder(lock) == pid:
        if number is not None:
            os.kill(pid, number)
            number = None
        time.sleep(0.05)
        if time.monotonic() > deadline:
            number, deadline = signal.SIGKILL, time.monotonic() + timeout_s
    return True


def main() -> None:
    """Stop the server in a folder; with `remove`, delete the folder too."""
    what, folder = sys.argv[1], os.path.expanduser(sys.argv[2])
    if not os.path.exists(os.path.join(folder, MARK)):
        print("absent")
        return
    stopped = stop(os.path.join(folder, SERVE + ".lock"))
    if what == "remove":
        shutil.rmtree(folder)
    print("stopped" if stopped else "was not running")


if __name__ == "__main__":
    main()
