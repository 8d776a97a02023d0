"""Reading and appending. A torn last line, left by a crash, is ignored and then overwritten."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

from tvmsep.contracts import LogError, Trial
from tvmsep.contracts.trial import SCHEMA

_DECODER = msgspec.json.Decoder(Trial)
_STARTS = (b'{"workload":', b'{"schema":')
FULL_WAIT_S = 120.0
"""How long a tuning run waits for space when the disk of its log is full."""
FULL_POLL_S = 1.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


def _is_torn(line: bytes) -> bool:
    """Whether a last line is one that a crash cut off, and not some other file's text."""
    if line.endswith(b"\n"):
        return False
    return any(line.startswith(s) or s.startswith(line) for s in _STARTS)


def _check_regular(path: Path) -> None:
    """A device or a pipe would be read for ever."""
    if path.exists() and not path.is_file():
        raise LogError(f"{path} is no file: give a tuning log, or a bundle")


def _lines(path: Path) -> list[bytes]:
    _check_regular(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as bundle:
                return bundle.read("log.jsonl").splitlines(keepends=True)
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise LogError(f"{path} is a damaged bundle, cut short or changed: copy it again")
        return path.read_bytes().splitlines(keepends=True)
    except KeyError as error:
        raise LogError(f"{path}: this archive holds no log.jsonl") from error
    except OSError as error:
        raise LogError(f"cannot read log {path}: {error.strerror}") from error


def read_log(path: str | Path) -> list[Trial]:
    """Every trial of a log, or of the log inside a bundle.

    Raises:
        LogError: unreadable, a malformed line that is not the torn last one, a newer schema.
    """
    path = Path(path)
    lines = _lines(path)
    trials = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            trial = _DECODER.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if number == len(lines) and _is_torn(line):
                break
            raise LogError(
                f"{path}, line {number}: not a trial ({error}); give a log that tvmsep wrote"
            ) from error
        if trial.schema > SCHEMA:
            raise LogError(
                f"{path}, line {number}: schema {trial.schema}, this tvmsep reads up to {SCHEMA}; "
                "update tvmsep"
            )
        trials.append(trial)
    return trials


class LogFile:
    """A log open for appending: each trial is on disk before `append` returns.

    The file is made by the first trial, so a run that fails before that leaves none behind. One
    process at a time may append to a log.

    Args:
        path: the log; its folder is made when missing.
        target: the only target whose trials it may hold; None for any.
        measured: whether its trials come from real boards; others must not be among them, nor
            they among others.
        say: told when the disk is full; `append` then waits up to `FULL_WAIT_S` for space, so that
            a trial that was measured is not lost. Without it a full disk is an error at once.

    Raises:
        LogError: it cannot be read or written, another process is appending to it, or it holds
            something that is not a log, or trials of another target or kind (measured or not, on a
            real device or an emulated one).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        target: str | None = None,
        measured: bool = True,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.trials: list[Trial] = []
        self._target, self._measured, self._say = target, measured, say
        self._file: BinaryIO | None = None
        try:
            _check_regular(self.path)
            if self.path.exists():
                self._open()
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.path.parent):
                    pass
        except OSError as error:
            raise self._trouble(error) from error

    def _trouble(self, error: OSError) -> LogError:
        why = error.strerror or str(error)
        return LogError(f"cannot write log {self.path}: {why}; choose another with --log")

    def _open(self) -> None:
        """Lock the file, read what it holds, and cut a torn last line off."""
        file: BinaryIO = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LogError(
                    f"another tvmsep is writing log {self.path}: wait for it to end, or give "
                    "another with --log"
                ) from None
            if zipfile.is_zipfile(self.path):
                raise LogError(
                    f"{self.path} is a bundle: its log can be read but not appended to; give a "
                    ".jsonl file with --log"
                )
            self.trials = read_log(self.path)
            self._check(self.trials)
            file.seek(0)
            content = file.read()
            if _is_torn(content[content.rfind(b"\n") + 1 :]):
                file.truncate(content.rfind(b"\n") + 1)
        except BaseException:
            file.close()
            raise
        self._file = file

    def _check(self, trials: Sequence[Trial]) -> None:
        others = {t.target for t in trials} - {self._target}
        if self._target is not None and others:
            raise LogError(
                f"log {self.path} is for {', '.join(sorted(others))}, this run is for "
                f"{self._target}: give another with --log"
            )
        odd = sorted({t.board for t in trials if t.measured != self._measured})
        if odd:
            kind = "measures" if self._measured else "measures nothing"
            raise LogError(
                f"log {self.path} holds trials of board {', '.join(odd)}, this run {kind}: "
                "give another with --log"
            )

        if len({t.emulated for t in [*self.trials[:1], *trials]}) > 1:
            raise LogError(
                f"log {self.path} would hold times of an emulated device beside those of a real "
                "one: give another with --log"
            )

    def append(self, trial: Trial) -> None:
        """Add one line and flush it to the disk.

        Raises:
            LogError: it could not be written whole; the log ends with the line before it.
        """
        self._check([trial])
        line = msgspec.json.encode(trial) + b"\n"
        deadline, told = time.monotonic() + FULL_WAIT_S, False
        while True:
            try:
                self._write(line)
                break
            except OSError as error:
                say = self._say if error.errno in _FULL else None
                if say is None or time.monotonic() > deadline:
                    raise self._trouble(error) from error
                if not told:
                    say(f"the disk of log {self.path} is full: waiting {FULL_WAIT_S:g} s for space")
            told = True
            time.sleep(FULL_POLL_S)
        self.trials.append(trial)

    def _write(self, line: bytes) -> None:
        """Add a line that is on the disk afterwards, or not in the file at all."""
        if self._file is None:
            self._open()
        assert self._file is not None
        end = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        """Close the file. Safe to call again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> LogFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
