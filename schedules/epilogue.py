"""What happens to an accumulator before it is stored: bias, activations, residual adds.

An activation is named by a string with its parameters behind colons, e.g. `clip:0:6`, so that
it can stand in a workload, a log line and a table alike. The exponentials are polynomials:
LLVM lowers `exp` of a vector to one libm call an element, a polynomial stays in vector registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tvm.tirx import PrimExpr

_LOG2E = 1.4426950408889634
# ln(2) in two parts, so that x - k * ln(2) keeps its bits (Cody and Waite, 1980).
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# exp(r) on [-ln(2)/2, ln(2)/2], highest power first (the coefficients of Cephes' expf).
_EXP_POLY = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)


def _f32(value: float) -> PrimExpr:
    from tvm import tirx

    return tirx.const(value, "float32")


def _clip(x: PrimExpr, low: float, high: float) -> PrimExpr:
    from tvm import te

    if low > -3e38:
        x = te.max(x, _f32(low))
    return te.min(x, _f32(high)) if high < 3e38 else x


def _exp(x: PrimExpr) -> PrimExpr:
    """e**x in fp32, relative error below 2e-7, clamped to the finite range."""
    from tvm import tirx

    x = _clip(x, -87.0, 88.0)
    k = tirx.floor(x * _f32(_LOG2E) + _f32(0.5))
    r = x - k * _f32(_LN2_HIGH) - k * _f32(_LN2_LOW)
    poly = _f32(_EXP_POLY[0])
    for c in _EXP_POLY[1:]:
        poly = poly * r + _f32(c)
    poly = poly * r * r + r + _f32(1.0)
    exponent = tirx.Cast("int32", k) + tirx.const(127, "int32")
    power = tirx.reinterpret("float32", exponent << tirx.const(23, "int32"))
    return poly * power


def _sigmoid(x: PrimExpr) -> PrimExpr:
    return _f32(1.0) / (_f32(1.0) + _exp(_f32(0.0) - x))


def _hard_sigmoid(x: PrimExpr, alpha: float = 1 / 6, beta: float = 0.5) -> PrimExpr:
    return _clip(x * _f32(alpha) + _f32(beta), 0.0, 1.0)


def _leaky(x: PrimExpr, alpha: float) -> PrimExpr:
    from tvm import te

    return te.max(x, _f32(0.0)) + te.min(x, _f32(0.0)) * _f32(alpha)


_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu": lambda x: _clip(x, 0.0, 3.4e38),
    "relu6": lambda x: _clip(x, 0.0, 6.0),
    "clip": _clip,
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": lambda x: x * _hard_sigmoid(x),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "leaky_relu": _leaky,
}

_NUMPY: dict[str, Callable[..., Any]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "clip": np.clip,
    "hard_sigmoid": lambda x, a=1 / 6, b=0.5: np.clip(x * a + b, 0, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "leaky_relu": lambda x, a: np.where(x > 0, x, a * x),
}


def _call(table: dict[str, Callable[..., Any]], name: str, x: Any) -> Any:
    head, *params = name.split(":")
    if head not in table:
        raise KeyError(f"unknown activation {name!r}; known: {', '.join(table)}")
    return table[head](x, *map(float, params))


def activate(name: str, x: PrimExpr) -> PrimExpr:
    """The activation as a TE expression."""
    return _call(_ACTIVATIONS, name, x)


def activate_numpy(name: str, x: np.ndarray) -> np.ndarray:
    """The same in NumPy, in the precision of `x`: the reference."""
    result: np.ndarray = _call(_NUMPY, name, x)
    return result


def finish(epilogue: Sequence[str], acc: Any, bias: Any, residual: Any) -> Any:
    """Run an epilogue on one accumulator value."""
    for step in epilogue:
        if step == "bias":
            acc = acc + bias
        elif step == "add":
            acc = acc + residual
        else:
            acc = activate(step, acc)
    return acc
