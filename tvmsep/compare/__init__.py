"""Comparing: which is faster, whether that can be told, and what differs.

- `entrants`, `engines`, `stock`: from the command line's words to something that a process loads;
- `seat`, `rounds`, `watch`: fresh processes in turn, and what the machine did meanwhile;
- `stats`: from rounds to a verdict;
- `comparison`, `run`: the whole, as values that become JSON;
- `board`: the same over RPC, for networks and single kernels of ours;
- `kernels`, `listing`: the configs of one task, and what they become;
- `changes`: two logs, without measuring.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvmsep.compare.changes import Change
    from tvmsep.compare.comparison import Claim, Comparison, PairRow, Row
    from tvmsep.compare.listing import Diff, diff
    from tvmsep.compare.rounds import ROUNDS

_HOME = {
    "Change": "changes",
    "Claim": "comparison",
    "Comparison": "comparison",
    "Diff": "listing",
    "PairRow": "comparison",
    "ROUNDS": "rounds",
    "Row": "comparison",
    "diff": "listing",
}

__all__ = [
    "ROUNDS",
    "Change",
    "Claim",
    "Comparison",
    "Diff",
    "PairRow",
    "Row",
    "diff",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
