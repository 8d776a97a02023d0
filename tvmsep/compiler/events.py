"""CUDA events between the kernels of a compiled network: what `clock.py` is on a CPU.

A host's clock says nothing about a device that runs behind it, and waiting for it between kernels
would add what it takes to launch the next one. So each function of the lowered module gets a call
of `events.c` behind its launches, which puts an event into the stream; they are read when the
network has run. The graph, its memory plan and the order of the launches stay those of the network
that ships, and the kernels' times add up to its own.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from tvmsep.codegen import compile_c
from tvmsep.contracts import Target

if TYPE_CHECKING:
    from tvm import IRModule

_SOURCE = Path(__file__).with_name("events.c")
MARKED = "tvmsep.marked"
"""Attribute of a Relax module: its functions are to be marked once it is lowered."""
MARKS = "tvmsep_marks"
"""`(ids, seconds) -> count` of a marked network, see `events.c`."""
TIME = "tvmsep_time"
"""What times a candidate, see `events.c`; the CPU's harness has this name too."""


def events_object(target: Target) -> bytes:
    """The object file of `events.c`.

    Raises:
        LinkError: there is no compiler.
    """
    return compile_c(_SOURCE, target.triple)


def mark_id(function: str) -> int:
    """The number that stands for a function in a marked network."""
    return zlib.crc32(function.encode()) & 0x7FFFFFFF


def mark(lowered: IRModule) -> IRModule:
    """The module that `lower` made, with a mark around the launches of each TIR function."""
    import tvm
    from tvm import tirx

    def call(number: int) -> tirx.Stmt:
        found = tirx.call_extern("int32", "tvmsep_mark", tirx.const(number, "int32"))
        return tirx.Evaluate(found)

    marked = {}
    for name, func in lowered.functions.items():
        if isinstance(func, tirx.PrimFunc):
            number, body = mark_id(name.name_hint), func.body
            marked[name] = func.with_body(tirx.SeqStmt([call(~number), body, call(number)]))
    out = tvm.IRModule(lowered.functions, attrs=lowered.attrs)
    for name, func in marked.items():
        out.update_func(name, func)
    return out
