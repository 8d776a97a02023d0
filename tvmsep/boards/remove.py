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


_NAMED_S = 1.0
"""How long a holder may take from its lock to its id."""


class CannotStop(Exception):
    """A process goes on; the message says why, and what to do."""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def holder(lock: str) -> int:
    """Process id of a lock's holder, 0 if nobody holds it.

    A holder locks first and then writes its id: what a dead one has left is not taken for it.
    """
    try:
        fd = os.open(lock, os.O_RDWR)
    except OSError:
        return 0
    deadline = time.monotonic() + _NAMED_S
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return 0
            except BlockingIOError:
                text = os.pread(fd, 32, 0)
            pid = int(text) if text.isdigit() else 0
            if (pid and _exists(pid)) or time.monotonic() > deadline:
                return pid
            time.sleep(0.01)
    finally:
        os.close(fd)


def stop(lock: str, timeout_s: float = 10.0) -> bool:
    """End a lock's holder and wait until it has gone; whether there was one.

    Args:
        lock: its file.
        timeout_s: wait after SIGTERM, and once more after SIGKILL.

    Raises:
        CannotStop: it is another user's, or stays even so.
    """
    pid = holder(lock)
    if not pid:
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass  # it has just ended
        except PermissionError as error:
            raise CannotStop(
                f"process {pid}, which holds {lock}, is another user's: end it as that user"
            ) from error
        deadline = time.monotonic() + timeout_s
        while holder(lock) == pid:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return True
    raise CannotStop(
        f"process {pid}, which holds {lock}, does not end, even when killed: restart its machine"
    )


def main() -> None:
    """Stop the server in a folder; with `remove`, delete the folder too."""
    what, folder = sys.argv[1], os.path.expanduser(sys.argv[2])
    if not os.path.exists(os.path.join(folder, MARK)):
        print("absent")
        return
    try:
        stopped = stop(os.path.join(folder, SERVE + ".lock"))
    except CannotStop as error:
        sys.exit(str(error))
    if what == "remove":
        shutil.rmtree(folder)
    print("stopped" if stopped else "was not running")


if __name__ == "__main__":
    main()
