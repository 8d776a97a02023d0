"""Numbers with their nouns, for messages."""

from __future__ import annotations


def counted(noun: str, *counts: int) -> str:
    """`1 thread`, `2 threads`, `1, 2 threads`."""
    text = ", ".join(map(str, counts))
    return f"{text} {noun}" if counts == (1,) else f"{text} {noun}s"
