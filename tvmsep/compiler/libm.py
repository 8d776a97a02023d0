"""Calls of mathematical functions become arithmetic that LLVM vectorises.

Left to LLVM, `exp` of a vector is one call of libm's `expf` an element. Replaced are exp, sigmoid,
tanh and erf (`tvmsep.schedules.vector_math`), and powers with the exponents of `_POWERS`. A power
with another exponent, a logarithm and the rarer functions still call libm; so does a function of
another one's result in the same expression (`vector_math` says why), which schedules avoid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvmsep.schedules import vector_math

if TYPE_CHECKING:
    from tvm import tirx

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "tirx.exp": vector_math.exp,
    "tirx.sigmoid": vector_math.sigmoid,
    "tirx.tanh": vector_math.tanh,
    "tirx.erf": vector_math.erf,
}


def _sqrt(x: Any) -> Any:
    from tvm import tirx

    return tirx.sqrt(x)  # an instruction everywhere


# As `pow`, but that a root of minus infinity is NaN, and of -0 is -0.
_POWERS: dict[float, Callable[[Any], Any]] = {
    -1.0: lambda x: 1.0 / x,
    -0.5: lambda x: 1.0 / _sqrt(x),
    0.5: _sqrt,
    1.0: lambda x: x,
    2.0: lambda x: x * x,
    3.0: lambda x: x * x * x,
}


def without_libm(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with what can be replaced of its fp32 calls of libm replaced."""
    import tvm_ffi
    from tvm import ir

    body = tvm_ffi.structural_map(func.body, (ir.Call, _replaced))
    return func if body.same_as(func.body) else func.with_body(body)


def _replaced(call: Any) -> Any:
    import tvm_ffi
    from tvm import tirx

    name = getattr(call.op, "name", "")
    if name not in (*FUNCTIONS, "tirx.pow") or str(call.ty.dtype) != "float32":
        return call
    bound: list[Any] = []
    tvm_ffi.structural_walk(call.args[0], (tirx.Let, bound.append))
    if bound:
        return call
    if name in FUNCTIONS:
        return FUNCTIONS[name](call.args[0])
    if isinstance(call.args[1], tirx.FloatImm):
        form = _POWERS.get(float(call.args[1].value))
        return vector_math.let(call.args[0], form) if form else call
    return call
