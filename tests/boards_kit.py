"""What the tests of boards share: commands in the background, their trees, their sockets, sshd."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 90.0


def until(true: Callable[[], Any], what: str, limit_s: float = TIMEOUT_S) -> Any:
    """Wait for something that must happen."""
    deadline = time.monotonic() + limit_s
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.05)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(*words: str, timeout: float = TIMEOUT_S, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tvmsep.cli", *words],
        capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
    )  # fmt: skip


class Running:
    """`tvmsep WORDS` in the background, its words in files; `python` may be another one's."""

    def __init__(self, folder: Path, *words: str, python: str = sys.executable) -> None:
        self.out, self.err = (folder / f"{words[0]}-{free_port()}.{n}" for n in ("out", "err"))
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.proc = subprocess.Popen(
                [python, "-m", "tvmsep.cli", *words],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip

    def said(self, text: str) -> bool:
        return text in self.out.read_text() + self.err.read_text()

    def hears(self, text: str) -> None:
        def true() -> bool:
            assert self.said(text) or self.proc.poll() is None, self.err.read_text()
            return self.said(text)

        until(true, f"{text!r} in {self.err.read_text()!r}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it, and see that nothing of it is left."""
        family = tree(self.proc.pid)
        self.proc.send_signal(number)
        code = self.proc.wait(timeout=15)
        until(lambda: not [p for p in family if alive(p)], f"the end of {family}", 10)
        return code


@contextlib.contextmanager
def running(folder: Path, *words: str) -> Iterator[Running]:
    it = Running(folder, *words)
    try:
        yield it
    finally:
        if it.proc.poll() is None:
            it.stop()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry.name)] = int(stat[1])
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def children(pid: int, word: str) -> list[int]:
    """Descendants whose command line holds a word."""
    found = []
    for member in tree(pid)[1:]:
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{member}/cmdline").read_text():
                found.append(member)
    return found


def listening(pids: list[int]) -> set[str]:
    """Addresses (hexadecimal, as the kernel lists them) on which processes listen."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(os.readlink(fd))
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                found.add(words[1])
    return found


LOOPBACK = ("0100007F:", "00000000000000000000000001000000:")
"""127.0.0.1 and ::1, in the kernel's byte order on little-endian machines."""


@dataclass
class Sshd:
    """An SSH server on loopback that knows one key."""

    port: int
    options: list[str]
    """For `tvmsep board deploy`."""
    folder: Path
    proc: subprocess.Popen[bytes]


@contextlib.contextmanager
def sshd(folder: Path) -> Iterator[Sshd]:
    """An sshd of our own, as this user, with its own keys and configuration."""
    program = shutil.which("sshd") or next(iter(Path("/usr/sbin").glob("sshd")), None)
    if program is None or shutil.which("ssh") is None:
        pytest.skip("no sshd: install the package openssh-server to test deployment")
    folder.chmod(0o700)
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
        )
    shutil.copy(folder / "user.pub", folder / "authorized")
    if os.geteuid() == 0:  # sshd insists on its folder when it is root
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    port = free_port()
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n"
    )
    host_key = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    (folder / "ssh_config").write_text(
        f"Host *\n  Port {port}\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder}/known\n  GlobalKnownHostsFile /dev/null\n"
    )
    with (folder / "sshd.log").open("wb") as log:
        proc = subprocess.Popen(
            [str(program), "-D", "-e", "-f", str(folder / "sshd_config")],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip

    def up() -> bool:
        assert proc.poll() is None, (folder / "sshd.log").read_text()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        return False

    try:
        until(up, "sshd")
        yield Sshd(port, ["--ssh-option", f"-F {folder}/ssh_config"], folder, proc)
    finally:
        proc.terminate()
        proc.wait(timeout=10)
