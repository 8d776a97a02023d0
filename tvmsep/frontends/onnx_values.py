"""What converters from ONNX read of a node's inputs and attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmsep.contracts import ModelError

Expr = Any


def dims(x: Expr) -> tuple[int, ...]:
    """The static shape of an expression."""
    return tuple(int(d) for d in x.ty.shape)


def value_of(x: Expr | None, what: str) -> Any:
    """The NumPy value of a constant input; None for an absent one."""
    if x is None:
        return None
    if not isinstance(x, tvm.ir.GenericConst):
        raise ModelError(f"its {what} is computed while running: it must be a constant")
    return x.value.numpy()


def const(array: Any, dtype: str = "float32") -> Expr:
    """A Relax constant."""
    return relax.const(np.asarray(array, dtype))


def is_const(x: Expr) -> bool:
    """Whether an expression is one."""
    return isinstance(x, tvm.ir.GenericConst)


def text_of(attrs: dict[str, Any], key: str, default: str) -> str:
    """A string attribute, which ONNX keeps as bytes."""
    value = attrs.get(key, default)
    return value.decode() if isinstance(value, bytes) else str(value)
