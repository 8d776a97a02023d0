"""Tables for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, title: str = ""
) -> None:
    """Print a table: the first `left` columns left-aligned, the others right-aligned.

    On a terminal rich draws it; elsewhere it is plain aligned text that `grep` and `awk` can read.
    """
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title or None, title_justify="left")
        for i, name in enumerate(head):
            table.add_column(name, justify="left" if i < left else "right", no_wrap=i < left)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    if title:
        print(title)
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = (
            c.ljust(n) if i < left else c.rjust(n)
            for i, (c, n) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())
