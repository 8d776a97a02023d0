"""Operators that rearrange: see `ops.py`."""

from __future__ import annotations

import math
from typing import Any

from tvm import relax

from tvmsep.contracts import ModelError
from tvmsep.frontends.relay.attrs import (
    Attrs,
    axes_of,
    axis_of,
    const,
    constant,
    dims,
    flag,
    ints,
    order_of,
    permuted,
)

# Shapes


def reshape(bb: Any, args: list[Any], a: Attrs) -> Any:
    """0 keeps a dimension, -1 takes what is left, -2 copies the rest, -3 merges two, -4 splits."""
    own, wanted = list(dims(args[0])), a["newshape"]
    wanted = [wanted] if isinstance(wanted, int) else wanted
    if not isinstance(wanted, list) or not all(type(d) is int and d >= -4 for d in wanted):
        raise ModelError(f"its newshape is {wanted}: constant integers are needed")
    result, at, rest = [], 0, iter(wanted)
    for d in rest:
        if d == 0 and not flag(a, "allowzero"):
            result.append(own[at])
        elif d == -2:
            result += own[at:]
            at = len(own)
        elif d == -3:
            result.append(own[at] * own[at + 1])
            at += 1
        elif d == -4:
            first, second = next(rest), next(rest)
            first = own[at] // second if first == -1 else first
            result += [first, own[at] // first]
        else:
            result.append(d)
        at += 1
    if result.count(-1) == 1:
        known = math.prod(d for d in result if d != -1)
        result[result.index(-1)] = math.prod(own) // known if known else 0
    if math.prod(result) != math.prod(own) or min(result, default=1) < 1:
        raise ModelError(f"it makes {result} of {own}: the sizes do not agree")
    return args[0] if result == own else relax.op.reshape(args[0], result)


def transpose(bb: Any, args: list[Any], a: Attrs) -> Any:
    """Axes in another order; reversed where none is given."""
    rank = len(dims(args[0]))
    order = axes_of(a["axes"], rank) if a["axes"] else list(range(rank))[::-1]
    if sorted(order) != list(range(rank)):
        raise ModelError(f"its axes are {a['axes']}: each of {rank} once is needed")
    return permuted(bb, args[0], order)


def layout_transform(bb: Any, args: list[Any], a: Attrs) -> Any:
    """A permutation, named by layouts."""
    source, wanted = a["src_layout"], a["dst_layout"]
    if not isinstance(wanted, str):
        raise ModelError(f"its dst_layout is {wanted}: a layout is needed")
    return permuted(bb, args[0], order_of(source, wanted))


def squeeze(bb: Any, args: list[Any], a: Attrs) -> Any:
    """Without axes of one element."""
    own = dims(args[0])
    gone = (
        [i for i, d in enumerate(own) if d == 1]
        if a["axis"] is None
        else axes_of(a["axis"], len(own))
    )
    return relax.op.squeeze(args[0], gone)


def expand_dims(bb: Any, args: list[Any], a: Attrs) -> Any:
    """With axes of one element."""
    rank = len(dims(args[0]))
    first = a["axis"] + (rank + 1 if a["axis"] < 0 else 0)
    (count,) = ints(a, "num_newaxis", (1,), 0)
    if not 0 <= first <= rank or count > 8:
        raise ModelError(f"its axis is {a['axis']} and num_newaxis {count}: out of range")
    return relax.op.expand_dims(args[0], [first + i for i in range(count)]) if count else args[0]


def batch_flatten(bb: Any, args: list[Any], a: Attrs) -> Any:
    """A row for each picture."""
    own = dims(args[0])
    return relax.op.reshape(args[0], [own[0], math.prod(own[1:])])


def concatenate(bb: Any, args: list[Any], a: Attrs) -> Any:
    """Several tensors as one."""
    fields = list(args[0]) if isinstance(args[0], tuple) else [args[0]]
    return relax.op.concat(fields, axis_of(a, len(dims(fields[0]))))


def split(bb: Any, args: list[Any], a: Attrs) -> Any:
    """One tensor as several: the parts."""
    axis = axis_of(a, len(dims(args[0])))
    size, parts = dims(args[0])[axis], a["indices_or_sections"]
    if isinstance(parts, int):
        if parts < 1 or size % parts:
            raise ModelError(f"it cuts {size} entries into {parts} parts: they do not divide")
        parts = [size // parts * i for i in range(1, parts)]
    if (
        not isinstance(parts, list)
        or parts != sorted(set(parts))
        or not all(0 < p < size for p in parts)
    ):
        raise ModelError(f"it cuts {size} entries at {parts}: rising places inside are needed")
    if not parts:
        return (args[0],)
    both = bb.emit(relax.op.split(args[0], parts, axis))
    return tuple(bb.emit(relax.TupleGetItem(both, i)) for i in range(len(parts) + 1))


def strided_slice(bb: Any, args: list[Any], a: Attrs) -> Any:
    """A part of a tensor, forwards."""
    own = dims(args[0])
    begin, end, steps = a["begin"], a["end"], a["strides"]
    axes = list(range(len(begin))) if a["axes"] is None else axes_of(a["axes"], len(own))
    steps = (steps or [1]) * (len(axes) if len(steps or [1]) == 1 else 1)
    firsts, lasts = [], []
    for axis, low, high, step in zip(axes, begin, end, steps, strict=True):
        if a["slice_mode"] == "size":
            high = own[axis] if high < 0 else low + high
        if step < 1:
            raise ModelError(f"its stride {step} is not positive: only forward slices are read")
        first, last, _ = slice(low, high, step).indices(own[axis])
        firsts.append(first)
        lasts.append(max(first, last))
    if any(f >= n for f, n in zip(firsts, lasts, strict=True)):
        raise ModelError("it keeps nothing")
    return relax.op.strided_slice(args[0], axes, firsts, lasts, steps)


def take(bb: Any, args: list[Any], a: Attrs) -> Any:
    """Entries at constant places."""
    if a["axis"] is None:
        raise ModelError("it has no axis: give one")
    axis = axis_of(a, len(dims(args[0])))
    size, indices = dims(args[0])[axis], constant(args[1], "list of indices")
    if indices.dtype.kind not in "iu" or ((indices < -size) | (indices >= size)).any():
        raise ModelError(f"it reads past the {size} entries of axis {axis}")
    return relax.op.take(args[0], const(indices % size, "int64"), axis=axis)


def cast(bb: Any, args: list[Any], a: Attrs) -> Any:
    """Another dtype."""
    return relax.op.astype(args[0], a["dtype"])
