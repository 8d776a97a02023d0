"""Errors that a user can mend. The CLI prints the message alone and exits with `exit_code`.

A message says what was wrong, where, and what to do next, in that order.
"""

from __future__ import annotations


class TvmsepError(Exception):
    """A user's mistake or an outside limit: shown without a traceback."""

    exit_code = 2


class ModelError(TvmsepError):
    """The model cannot be read, or holds something that is not supported."""

    def __str__(self) -> str:
        """On one line, whatever names the model holds."""
        text = super().__str__()
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class OpenShapeError(ModelError):
    """An input's shape has dimensions that the model leaves open, and nobody gave."""


class TargetError(TvmsepError):
    """A target is unknown, malformed, or does not fit this host."""


class BundleError(TvmsepError):
    """A bundle is damaged, outdated, tampered with, or made for another target."""


class LogError(TvmsepError):
    """A tuning log cannot be read, written or merged."""


class InputError(TvmsepError):
    """An argument, picture or array does not fit what was asked."""


class BoardError(TvmsepError):
    """A board cannot be reached or cannot measure."""
