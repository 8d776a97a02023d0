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
from tvmsep.compiler.stamped import PROBE_RUNS, PROBES, Part, Stamped, parts, read_relax, stamp

__all__ = [
    "PROBES",
    "PROBE_RUNS",
    "Part",
    "SYSTEM_LIB",
    "Stamped",
    "clock_call",
    "compile_library",
    "compile_object",
    "emit",
    "lower",
    "parts",
    "peak_bytes",
    "read_relax",
    "stamp",
    "stamps_dtype",
    "stamps_shape",
]
