"""From a plan and the best configs to a compiled library: no measuring here."""

from tvmsep.compiler.clock import clock_call, stamps_dtype, stamps_shape
from tvmsep.compiler.compile import compile_library, lower, peak_bytes
from tvmsep.compiler.emit import emit

__all__ = [
    "clock_call",
    "compile_library",
    "emit",
    "lower",
    "peak_bytes",
    "stamps_dtype",
    "stamps_shape",
]
