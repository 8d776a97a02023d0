"""Two texts side by side, or one below the other where there is no room."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

_LEAST = 50
"""Columns that a side needs to be read."""


def print_sides(head_a: str, a: Sequence[str], head_b: str, b: Sequence[str]) -> None:
    """Print both; on a terminal in columns, elsewhere with every line whole."""
    widest = max(map(len, (head_a, *a)), default=0)
    room = 10_000
    if sys.stdout.isatty():
        room = (shutil.get_terminal_size().columns - 3) // 2
        widest = min(widest, room)
    if room < _LEAST:
        for head, lines in ((head_a, a), (head_b, b)):
            print(head, *lines, "", sep="\n")
        return
    left, right = _wrap((head_a, *a), room), _wrap((head_b, *b), room)
    for i in range(max(len(left), len(right))):
        one = left[i] if i < len(left) else ""
        two = right[i] if i < len(right) else ""
        print(f"{one.ljust(widest)} | {two}".rstrip())


def _wrap(lines: Sequence[str], room: int) -> list[str]:
    """Lines cut to `room`, what is left indented below."""
    found = []
    for line in lines:
        indent = " " * min(len(line) - len(line.lstrip()) + 4, room // 2)
        found.append(line[:room])
        rest = line[room:]
        while rest:
            found.append((indent + rest)[:room])
            rest = (indent + rest)[room:]
    return found
