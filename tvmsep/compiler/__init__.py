"""From a plan and the best configs to a compiled library: no measuring here."""

from tvmsep.compiler.clock import clock_call, stamps_dtype, stamps_shape
from tvmsep.compiler.compile import (
    SYSTEM_LIB,
    compile_library,
    compile_object,
    lower,
    peak_bytes,
)
from tvmsep.compiler.emit import emit
from tvmsep.compiler.events import MARKED, MARKS, TIME, events_object, mark, mark_id
from tvmsep.compiler.stamped import (
    PROBE_RUNS,
    PROBES,
    Part,
    Stamped,
    kernel_names,
    parts,
    read_relax,
    stamp,
)

__all__ = [
    "MARKED",
    "MARKS",
    "PROBES",
    "PROBE_RUNS",
    "Part",
    "SYSTEM_LIB",
    "Stamped",
    "TIME",
    "clock_call",
    "compile_library",
    "compile_object",
    "emit",
    "events_object",
    "kernel_names",
    "lower",
    "mark",
    "mark_id",
    "parts",
    "peak_bytes",
    "read_relax",
    "stamp",
    "stamps_dtype",
    "stamps_shape",
]
