"""Processes in the background: started or gone, found by their lock, ended or said why not."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from boards_kit import alive, run, until

from tvmsep.boards import background, remove
from tvmsep.contracts import BoardError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

DEAF = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
other = subprocess.Popen(["sleep", "60"])  # which ignores it too
open(sys.argv[1], "w").write(f"{os.getpid()} {other.pid}\\n")
print("the last words", flush=True)
time.sleep(60)
"""
"""Does not become ready, nor heed SIGTERM, and has started a process."""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(background, "_GRACE_S", 0.2)
    return tmp_path / "x.json"


def family(told: Path) -> list[int]:
    until(lambda: told.exists() and told.read_text().endswith("\n"), "the process's ids")
    return [int(pid) for pid in told.read_text().split()]


def test_what_is_not_ready_in_time_is_ended(state: Path, tmp_path: Path) -> None:
    told = tmp_path / "pids"
    command = [sys.executable, "-c", DEAF, str(told)]
    with pytest.raises(BoardError, match=r"not ready within 3 s: the last words .*x\.log"):
        background.start(command, state, 3.0)
    pids = family(told)
    until(lambda: not any(map(alive, pids)), "the end of both processes", 5)


def test_an_interrupted_start_leaves_nothing(state: Path, tmp_path: Path) -> None:
    told = tmp_path / "pids"

    def interrupt() -> None:
        family(told)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        background.start([sys.executable, "-c", DEAF, str(told)], state, 60.0)
    pids = family(told)
    until(lambda: not any(map(alive, pids)), "the end of both processes", 5)


def test_a_claim_is_never_seen_with_another_id(tmp_path: Path) -> None:
    """The id of a holder that was killed stands in the file until the next one writes its own."""
    state = tmp_path / "x.json"
    lock = state.with_suffix(".lock")
    dead = subprocess.Popen(["true"])
    dead.wait()
    lock.write_text(str(dead.pid))
    assert remove.holder(str(lock)) == 0
    with lock.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def write() -> None:
            file.seek(0)
            file.truncate()
            file.flush()
            time.sleep(0.1)
            file.write(str(os.getpid()))
            file.flush()

        late = threading.Timer(0.2, write)
        late.start()
        assert remove.holder(str(lock)) == os.getpid()
        late.join()
    claim = background.State(state)
    assert remove.holder(str(lock)) == os.getpid()
    claim.close()
    assert lock.read_text() == "" and remove.holder(str(lock)) == 0


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (None, "does not end, even when killed"),
        (ProcessLookupError, "does not end, even when killed"),
        (PermissionError, "another user's"),
    ],
)
def test_what_cannot_be_stopped(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[OSError] | None,
    says: str,
) -> None:
    sent: list[int] = []

    def kill(pid: int, number: int) -> None:
        assert pid == os.getpid()
        if number:
            sent.append(number)
            if error:
                raise error

    claim = background.State(tmp_path / "x.json")
    monkeypatch.setattr(os, "kill", kill)
    with pytest.raises(remove.CannotStop, match=f"process {os.getpid()}, .*{says}"):
        remove.stop(str(tmp_path / "x.lock"), timeout_s=0.1)
    assert sent == [signal.SIGTERM, signal.SIGKILL][: 1 if error is PermissionError else 2]
    monkeypatch.setattr(remove.stop, "__defaults__", (0.1,))
    with pytest.raises(BoardError, match=says):
        background.stop(tmp_path / "x.json")
    claim.close()


def test_another_version_makes_room(tmp_path: Path) -> None:
    state = tmp_path / "x.json"
    words = ["board", "serve", "--detach", "--key", "pi", "--port", "0", "--state", str(state)]

    def pid() -> int:
        done = run(*words)
        assert done.returncode == 0, done.stderr
        return int(json.loads(done.stdout)["pid"])

    try:
        seen = [pid(), pid()]
        assert seen[0] == seen[1]
        for change in ({"version": "0.0.1"}, {"python": "/old/python"}):
            facts = json.loads(state.read_text())
            assert change.keys() <= facts.keys()
            state.write_text(json.dumps(facts | change))
            seen.append(pid())
            assert seen[-1] != seen[-2]
    finally:
        background.stop(state)
    until(lambda: not any(map(alive, seen)), "the end of all servers", 10)
