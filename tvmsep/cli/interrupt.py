"""Ctrl-C, also where it reaches TVM: its callbacks turn a KeyboardInterrupt into a RuntimeError."""

from __future__ import annotations

import signal
from types import FrameType

_pending = False


def install() -> None:
    """Notice Ctrl-C from now on, unless this process was started to ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal's handler."""
    global _pending
    _pending = True
    signal.default_int_handler(number, frame)


def survived() -> None:
    """The last interrupt was dealt with: the command goes on."""
    global _pending
    _pending = False


def pending() -> bool:
    """Whether an error may be the last interrupt's doing."""
    return _pending


def no_more() -> None:
    """Take no notice from now on: the command is over, and its last steps are not to be torn."""
    if signal.getsignal(signal.SIGINT) is interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
