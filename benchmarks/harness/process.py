"""One child process at a time, with a time limit, and what became of it as data."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

_TAIL = 400
"""Characters of a failed process's last words that are kept."""


@dataclass(frozen=True)
class Failure:
    """Why there is no figure."""

    kind: Literal["install", "unsupported", "crash", "timeout", "wrong"]
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


def run(
    command: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> Failure | None:
    """Run a command to its end; None where it ended well.

    The command leads a process group, and all of the group ends with it: converters start
    children of their own. Its output goes to a file, so that a child that outlives it cannot
    keep us waiting on a pipe.
    """
    with tempfile.TemporaryFile() as words:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=words, stderr=words,
            env=None if env is None else dict(env), cwd=cwd, start_new_session=True,
        )  # fmt: skip
        try:
            status = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return Failure("timeout", f"no end after {timeout_s:g} s")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if status == 0:
            return None
        words.seek(0)
        said = words.read().decode(errors="replace").strip()[-_TAIL:]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return Failure("crash", f"{how}: {lines[-1]}" if lines else how)
