"""What happens to an accumulator before it is stored: bias, activations, residual adds.

An activation is named by a string with its parameters behind colons, e.g. `clip:0:6`, so that
it can stand in a workload, a log line and a table alike. Exponentials are the polynomials of
`vector_math`: LLVM lowers `exp` of a vector to one libm call an element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmsep.schedules import vector_math

if TYPE_CHECKING:
    from tvm.tirx import PrimExpr


def _dtype(x: Any) -> str:
    """Of an expression, or of an element of a tensor."""
    return str(x.dtype if hasattr(x, "dtype") else x.ty.dtype)


def _like(x: PrimExpr, value: float) -> PrimExpr:
    from tvm import tirx

    return tirx.const(value, _dtype(x))


def _clip(x: PrimExpr, low: float, high: float) -> PrimExpr:
    from tvm import te

    if low > -3e38:
        x = te.max(x, _like(x, low))
    return te.min(x, _like(x, high)) if high < 3e38 else x


def _hard_sigmoid(x: PrimExpr, alpha: float = 1 / 6, beta: float = 0.5) -> PrimExpr:
    return _clip(x * _like(x, alpha) + _like(x, beta), 0.0, 1.0)


def _leaky(x: PrimExpr, alpha: float) -> PrimExpr:
    from tvm import te

    zero = _like(x, 0.0)
    return te.max(x, zero) + te.min(x, zero) * _like(x, alpha)


_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu": lambda x: _clip(x, 0.0, 3.4e38),
    "relu6": lambda x: _clip(x, 0.0, 6.0),
    "clip": _clip,
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": lambda x: x * _hard_sigmoid(x),
    "sigmoid": vector_math.sigmoid,
    "silu": lambda x: x * vector_math.sigmoid(x),
    "leaky_relu": _leaky,
}

EXPONENTIAL = ("sigmoid", "silu")
"""Activations of which a kernel takes one at most, see `vector_math`."""

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
    """Run an epilogue on one accumulator value, in its precision; exponentials are float32."""
    dtype = "float32" if any(step in EXPONENTIAL for step in epilogue) else _dtype(acc)
    acc = acc.astype(dtype)
    binds = False
    for step in epilogue:
        if step == "bias":
            acc = acc + bias.astype(dtype)
        elif step == "add":
            acc = acc + residual.astype(dtype)
        else:
            run = partial(activate, step)
            acc = vector_math.let(acc, run) if binds else run(acc)
            binds = binds or step in EXPONENTIAL
    return acc
