"""What the tests of board runtimes share: built once, kept from run to run, served."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from boards_kit import run, tree

KEPT = Path(os.environ.get("TVMSEP_BOARDS", "/var/cache/tvmsep-boards"))
BUILD_TIMEOUT_S = 900.0


def cache() -> dict[str, str]:
    """Where builds are kept: beside the emulated boards' files, else in the user's cache."""
    try:
        KEPT.mkdir(parents=True, exist_ok=True)
    except OSError:
        return {}
    return {"XDG_CACHE_HOME": str(KEPT / "cache")} if os.access(KEPT, os.W_OK) else {}


def build(target: str, out: Path) -> Path:
    words = ["board", "build-runtime", "--target", target, "-o", str(out)]
    done = run(*words, timeout=BUILD_TIMEOUT_S, **cache())
    assert done.returncode == 0, done.stderr
    return out


class Server:
    """`tvmsep-server WORDS` of a runtime, its words in a file; `front` is an emulator."""

    def __init__(
        self, runtime: Path, scratch: Path, *words: str, front: tuple[str, ...] = (),
        within: Path | None = None,
    ) -> None:  # fmt: skip
        self.runtime, self.scratch, self.emulated = runtime, within or scratch, bool(front)
        self.scratch.mkdir(exist_ok=True)
        self.log = scratch.with_suffix(".log")
        with self.log.open("wb") as log:
            self.proc = subprocess.Popen(
                [*front, str(runtime / "tvmsep-server"), "--key", "k", "--port", "0", *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "TMPDIR": str(self.scratch)},
            )  # fmt: skip
        self.port = int(self.hears(r"board k at 127\.0\.0\.1:(\d+)")[1])

    def hears(self, pattern: str, limit_s: float = 30) -> re.Match[str]:
        deadline = time.monotonic() + limit_s
        while not (found := re.search(pattern, self.log.read_text())):
            assert self.proc.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.log.read_text()!r}"
            time.sleep(0.05)
        return found

    def sessions(self) -> list[int]:
        return tree(self.proc.pid)[1:]

    def stop(self, *, empty: bool = True) -> None:
        """End it: it leaves neither process nor file (unless others have files there)."""
        family = self.sessions()
        self.proc.terminate()
        try:
            code = self.proc.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            raise
        assert code == 0, self.log.read_text()
        assert not [p for p in family if Path(f"/proc/{p}").exists()]
        # A 32-bit program under qemu-user cannot list a folder of this host (EOVERFLOW).
        assert self.emulated or not empty or not list(self.scratch.iterdir())
