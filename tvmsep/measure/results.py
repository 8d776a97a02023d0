"""What building and measuring hand back: plain values that travel between processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tvmsep.contracts import Failure


@dataclass(frozen=True)
class Board:
    """One device that measures.

    `cpu` is the model name as the board reports it, or "" until a session has been opened, or
    where the board's server cannot say.
    """

    name: str
    host: str
    port: int
    key: str
    cpu: str
    local: bool
    """Whether it is this host: builds and other boards of this host wait for its timings."""
    machine: str = ""
    """Boards of one machine are timed in turn; see `tvmsep.measure.host`."""


@dataclass(frozen=True)
class Built:
    """A candidate that compiled: kernel and timing harness in one shared library.

    `program` is a hash of the kernel's object code: equal for configs that lower to the same
    program, whatever process built them.
    """

    so: Path
    program: str
    object: Path | None = None
    """The kernel alone, for linking it into a network; None where nothing was compiled."""


@dataclass(frozen=True)
class Measured:
    """Seconds of one run, one value per repeat, of an output that was checked.

    `error` is the largest difference from the reference, relative to the reference's largest
    magnitude.
    """

    times_s: tuple[float, ...]
    error: float
    board: str = ""
    """Which one, where the farm has several."""


@dataclass(frozen=True)
class Failed:
    """Why a candidate has no times; `detail` is for a reader, cut to a few lines."""

    failure: Failure
    detail: str
    board: str = ""


DETAIL_CHARS = 600


def shorten(text: str, limit: int = DETAIL_CHARS) -> str:
    """The beginning and end of `text` in at most `limit` characters."""
    text = text.strip()
    if len(text) <= limit:
        return text
    head = limit // 3
    return f"{text[:head]} [...] {text[-(limit - head - 7) :]}"
