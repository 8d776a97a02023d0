"""Building candidates in warm workers and measuring them on a board, over TVM's RPC.

`Farm` is the way in; see its docstring. Its parts:

- `worker`: processes that run functions under a time limit and can be killed;
- `cluster`: builders on other machines;
- `builder`, `harness`: from a config to a shared library that times its own kernel;
- `server`: the RPC server that survives its candidates;
- `peak`, `bandwidth`: what the board can do at most;
- `session`, `network`: the board's end, run in a worker: candidates alone, and in their network;
- `slot`: one board at work; `errands`: what it is sent to do; `dispatch`: the queue for all of
  them, and what happens when they go; `roster`: which of them are used;
- `host`: which boards share a machine; `load`: what a machine does meanwhile;
- `offline`: boards that measure nothing, for tests and for comparing strategies; `modelled`: one
  whose times come from a model;
- `lock`: nothing overlaps a timing on a host.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvmsep.measure.farm import Farm
    from tvmsep.measure.modelled import ModelBoard
    from tvmsep.measure.network import NetworkTimes
    from tvmsep.measure.offline import Measuring, NullBoard, ReplayBoard
    from tvmsep.measure.results import Board, Built, Failed, Measured

# Imported when asked for: every worker process begins by importing this package, and few of them
# need all of it.
_HOME = {
    "Board": "results",
    "Built": "results",
    "Failed": "results",
    "Farm": "farm",
    "Measured": "results",
    "Measuring": "offline",
    "ModelBoard": "modelled",
    "NetworkTimes": "network",
    "NullBoard": "offline",
    "ReplayBoard": "offline",
}

__all__ = [
    "Board",
    "Built",
    "Failed",
    "Farm",
    "Measured",
    "Measuring",
    "ModelBoard",
    "NetworkTimes",
    "NullBoard",
    "ReplayBoard",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
