"""Reading and appending. A torn last line, left by a crash, is ignored and then overwritten."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

from tvmsep.contracts import LogError, Trial
from tvmsep.contracts.trial import SCHEMA

_DECODER = msgspec.json.Decoder(Trial)


def _lines(path: Path) -> list[bytes]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as bundle:
                return bundle.read("log.jsonl").splitlines(keepends=True)
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
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise LogError(f"{path}, line {number}: not a trial ({error})") from error
        if trial.schema > SCHEMA:
            raise LogError(
                f"{path}, line {number}: schema {trial.schema}, this tvmsep reads up to {SCHEMA}; "
                "update tvmsep"
            )
        trials.append(trial)
    return trials


class LogFile:
    """A log open for appending: each trial is on disk before `append` returns."""

    def __init__(self, path: str | Path) -> None:
        """Open `path`, creating it and its folder when missing.

        Raises:
            LogError: it cannot be opened for writing, or holds something that is not a log.
        """
        self.path = Path(path)
        self.trials: list[Trial] = read_log(self.path) if self.path.exists() else []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(self.path, "a+b", buffering=0)  # noqa: SIM115
            self._drop_torn_line()
        except OSError as error:
            raise LogError(f"cannot write log {self.path}: {error.strerror}") from error

    def _drop_torn_line(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        content = self._file.read()
        if content and not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)
        elif size:
            self._file.seek(0, os.SEEK_END)

    def append(self, trial: Trial) -> None:
        """Add one line and flush it to the disk."""
        try:
            self._file.write(msgspec.json.encode(trial) + b"\n")
            os.fsync(self._file.fileno())
        except OSError as error:
            raise LogError(f"cannot write log {self.path}: {error.strerror}") from error
        self.trials.append(trial)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> LogFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
