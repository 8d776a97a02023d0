"""What Relay's converters share: attributes as typed values, layouts, constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmsep.contracts import ModelError

Attrs = dict[str, Any]
Converter = Callable[[Any, list[Any], Attrs], Any]


def dims(x: Any) -> tuple[int, ...]:
    """The static shape of an expression."""
    return tuple(int(d) for d in x.ty.shape)


def constant(x: Any, what: str) -> np.ndarray[Any, Any]:
    """The value of a constant argument."""
    if not isinstance(x, tvm.ir.GenericConst):
        raise ModelError(f"its {what} is computed while running: it must be a constant or a weight")
    return np.asarray(x.value.numpy())


def const(array: Any, dtype: str = "float32") -> Any:
    """A Relax constant."""
    return relax.const(np.ascontiguousarray(np.asarray(array, dtype)))


def ints(attrs: Attrs, key: str, sizes: Sequence[int], least: int) -> list[int]:
    """A list of integers of one of `sizes` lengths; a single integer is repeated."""
    value = attrs[key]
    values = [value] * sizes[0] if isinstance(value, int) else value
    ok = isinstance(values, list) and len(values) in sizes
    if not ok or not all(type(v) is int and least <= v < 1 << 20 for v in values):
        raise ModelError(f"its {key} is {value}: {sizes[0]} integers from {least} are needed")
    return list(values)


def flag(attrs: Attrs, key: str) -> bool:
    """Whether an attribute is true."""
    return attrs[key] in (True, 1)


def pads_of(attrs: Attrs, key: str = "padding") -> tuple[int, int, int, int]:
    """Top, left, bottom, right."""
    pads = ints(attrs, key, (2, 4, 1), 0)
    pads = pads * (4 // len(pads))
    return pads[0], pads[1], pads[2], pads[3]


def axes_of(given: Any, rank: int) -> list[int]:
    """Axes counted from the front; all of them where none are given."""
    if given is None:
        return list(range(rank))
    values = [given] if isinstance(given, int) else given
    if not isinstance(values, list) or not all(
        type(a) is int and -rank <= a < rank for a in values
    ):
        raise ModelError(f"its axis is {given}, and its input has {rank} dimensions")
    return [a % rank for a in values]


def axis_of(attrs: Attrs, rank: int, key: str = "axis") -> int:
    """One axis, counted from the front."""
    return axes_of([attrs[key]], rank)[0]


def only(attrs: Attrs, key: str, *allowed: Any) -> None:
    """Refuse an attribute that has none of the allowed values."""
    if attrs[key] not in allowed:
        raise ModelError(f"its {key} is {attrs[key]}, which is not supported")


# Layouts


def order_of(layout: Any, letters: str) -> list[int]:
    """The axes of `layout` in the order of `letters`."""
    if not isinstance(layout, str) or sorted(layout) != sorted(letters):
        raise ModelError(
            f"its layout is {layout}: {letters} and its permutations are supported; save the "
            "program before it is optimised for a target"
        )
    return [layout.index(c) for c in letters]


def permuted(bb: Any, x: Any, order: list[int]) -> Any:
    """`x` with its axes in another order; a constant at once."""
    if order == list(range(len(order))):
        return x
    if isinstance(x, tvm.ir.GenericConst):
        return const(x.value.numpy().transpose(order), str(x.ty.dtype))
    return bb.emit(relax.op.permute_dims(x, order))


def picture(bb: Any, x: Any, layout: Any) -> tuple[Any, Callable[[Any], Any]]:
    """`x` as NCHW, and what brings a result back to `layout`."""
    order = order_of(layout, "NCHW")
    if len(dims(x)) != 4:
        raise ModelError(f"its input has {len(dims(x))} dimensions: pictures with 4 are supported")
    back = [order.index(i) for i in range(4)]
    return permuted(bb, x, order), lambda y: permuted(bb, bb.emit(y), back)
