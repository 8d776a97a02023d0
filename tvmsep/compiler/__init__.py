"""From a plan and the best configs to a compiled library: no measuring here."""

from tvmsep.compiler.compile import compile_library, lower, peak_bytes
from tvmsep.compiler.emit import emit

__all__ = ["compile_library", "emit", "lower", "peak_bytes"]
