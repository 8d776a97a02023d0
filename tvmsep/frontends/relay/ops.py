"""Relay's operators as Relax, in the forms that the graph knows from ONNX.

1. Pictures are NCHW inside: other layouts are transposed around the operator, and the graph cancels
   the transposes between two of them (`graph/transposes.py`).
2. Kernels become OIHW. A depthwise one, whose O is the input's channels and whose I is the
   multiplier, becomes the ordinary one of as many groups.
3. Ceil mode becomes explicit padding, which is what TVM makes of it.

A converter takes the block builder, the arguments and the attributes, with their defaults filled
in. An attribute that is not in the table is refused: dropping it could change the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmsep.contracts import ModelError

Attrs = dict[str, Any]
Converter = Callable[[Any, list[Any], Attrs], Any]


@dataclass(frozen=True)
class Op:
    """How one operator is converted."""

    convert: Converter
    args: int
    """Arguments it takes."""
    attrs: Attrs
    """Attributes it may have, with their defaults."""
    least: int | None = None
    """Arguments it needs; None for all."""


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


def _ints(attrs: Attrs, key: str, sizes: Sequence[int], least: int) -> list[int]:
    """A list of integers of one of `sizes` lengths; a single integer is repeated."""
    value = attrs[key]
    values = [value] * sizes[0] if isinstance(value, int) else value
    ok = isinstance(values, list) and len(values) in sizes
    if not ok or not all(type(v) is int and least <= v < 1 << 20 for v in values):
        raise ModelError(f"its {key} is {value}: {sizes[0]} integers from {least} are needed")
    return list(values)


def _flag(attrs: Attrs, key: str) -> bool:
    return attrs[key] in (True, 1)


def _pads(attrs: Attrs, key: str = "padding") -> tuple[int, int, int, int]:
    """Top, left, bottom, right."""
    pads = _ints(attrs, key, (2, 4, 1), 0)
    pads = pads * (4 // len(pads))
    return pads[0], pads[1], pads[2], pads[3]


def _axes(given: Any, rank: int) -> list[int]:
    """Axes counted from the front; all of them where none are given."""
    if given is None:
        return list(range(rank))
    values = [given] if isinstance(given, int) else given
    if not isinstance(values, list) or not all(
        type(a) is int and -rank <= a < rank for a in values
    ):
        raise ModelError(f"its axis is {given}, and its input has {rank} dimensions")
    return [a % rank for a in values]


def _axis(attrs: Attrs, rank: int, key: str = "axis") -> int:
    return _axes([attrs[key]], rank)[0]


def _only(attrs: Attrs, key: str, *allowed: Any) -> None:
    if attrs[key] not in allowed:
        raise ModelError(f"its {key} is {attrs[key]}, which is not supported")


# Layouts


def _order(layout: Any, letters: str) -> list[int]:
    """The axes of `layout` in the order of `letters`."""
    if not isinstance(layout, str) or sorted(layout) != sorted(letters):
        raise ModelError(
            f"its layout is {layout}: {letters} and its permutations are supported; save the "
            "program before it is optimised for a target"
        )
    return [layout.index(c) for c in letters]


def _permuted(bb: Any, x: Any, order: list[int]) -> Any:
    if order == list(range(len(order))):
        return x
    if isinstance(x, tvm.ir.GenericConst):
        return const(x.value.numpy().transpose(order))
    return bb.emit(relax.op.permute_dims(x, order))


def _picture(bb: Any, x: Any, layout: Any) -> tuple[Any, Callable[[Any], Any]]:
    """`x` as NCHW, and what brings a result back to `layout`."""
    order = _order(layout, "NCHW")
    if len(dims(x)) != 4:
        raise ModelError(f"its input has {len(dims(x))} dimensions: pictures with 4 are supported")
    back = [order.index(i) for i in range(4)]
    return _permuted(bb, x, order), lambda y: _permuted(bb, bb.emit(y), back)


# Convolutions and matrix products


def _check_out(attrs: Attrs, layout: str) -> None:
    _only(attrs, "out_dtype", "", None, "float32")
    _only(attrs, "out_layout", "", None, layout)


def _conv2d(bb: Any, args: list[Any], a: Attrs) -> Any:
    _check_out(a, a["data_layout"])
    x, back = _picture(bb, args[0], a["data_layout"])
    weight = constant(args[1], "kernel")
    if weight.ndim != 4:
        raise ModelError(f"its kernel has {weight.ndim} dimensions: 4 are needed")
    weight = weight.transpose(_order(a["kernel_layout"], "OIHW"))
    (groups,) = _ints(a, "groups", (1,), 1)
    if groups > 1 and groups == dims(x)[1] == weight.shape[0]:
        weight = weight.reshape(-1, 1, *weight.shape[2:])
    _agrees(a, "channels", weight.shape[0])
    _agrees(a, "kernel_size", list(weight.shape[2:]))
    return back(
        relax.op.nn.conv2d(
            x,
            const(weight, str(weight.dtype)),
            strides=_ints(a, "strides", (2,), 1),
            padding=_pads(a),
            dilation=_ints(a, "dilation", (2,), 1),
            groups=groups,
        )
    )


def _agrees(a: Attrs, key: str, real: Any) -> None:
    if a[key] not in (None, real):
        raise ModelError(f"its {key} is {a[key]}, but its kernel has {real}")


def _conv2d_transpose(bb: Any, args: list[Any], a: Attrs) -> Any:
    _check_out(a, a["data_layout"])
    x, back = _picture(bb, args[0], a["data_layout"])
    weight = constant(args[1], "kernel")
    if weight.ndim != 4:
        raise ModelError(f"its kernel has {weight.ndim} dimensions: 4 are needed")
    # Up to 0.8 the default was named OIHW and meant IOHW: the input's channels come first.
    layout = {"OIHW": "IOHW"}.get(a["kernel_layout"], a["kernel_layout"])
    weight = weight.transpose(_order(layout, "IOHW"))
    return back(
        relax.op.nn.conv2d_transpose(
            x,
            const(weight, str(weight.dtype)),
            strides=_ints(a, "strides", (2,), 1),
            padding=_pads(a),
            output_padding=_ints(a, "output_padding", (2,), 0),
            dilation=_ints(a, "dilation", (2,), 1),
            groups=_ints(a, "groups", (1,), 1)[0],
        )
    )


def _bias_add(bb: Any, args: list[Any], a: Attrs) -> Any:
    x, bias = args
    rank = len(dims(x))
    spread = [1] * rank
    spread[_axis(a, rank)] = -1
    if isinstance(bias, tvm.ir.GenericConst):
        return relax.op.add(x, const(bias.value.numpy().reshape(spread)))
    return relax.op.add(x, bb.emit(relax.op.reshape(bias, spread)))


def _batch_norm(bb: Any, args: list[Any], a: Attrs) -> Any:
    axis = _axis(a, len(dims(args[0])))
    both = bb.emit(
        relax.op.nn.batch_norm(
            *args, axis=axis, epsilon=float(a["epsilon"]), center=_flag(a, "center"),
            scale=_flag(a, "scale"), training=False,
        )
    )  # fmt: skip
    return (bb.emit(relax.TupleGetItem(both, 0)), args[3], args[4])


def _swapped(bb: Any, x: Any) -> Any:
    """The last two axes exchanged."""
    order = list(range(len(dims(x))))
    return _permuted(bb, x, [*order[:-2], order[-1], order[-2]])


def _dense(bb: Any, args: list[Any], a: Attrs) -> Any:
    _only(a, "out_dtype", "", None, "float32")
    _agrees(a, "units", dims(args[1])[0])
    return relax.op.matmul(args[0], _swapped(bb, args[1]))


def _matmul(bb: Any, args: list[Any], a: Attrs) -> Any:
    _only(a, "out_dtype", "", None, "float32")
    left = _swapped(bb, args[0]) if _flag(a, "transpose_a") else args[0]
    right = _swapped(bb, args[1]) if _flag(a, "transpose_b") else args[1]
    return relax.op.matmul(left, right)


# Pools


def _window(a: Attrs, size: tuple[int, ...]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Window, strides, dilation and pads, in which ceil mode is resolved."""
    window, steps = _ints(a, "pool_size", (2,), 1), _ints(a, "strides", (2,), 1)
    dilation, pads = _ints(a, "dilation", (2,), 1), list(_pads(a))
    if _flag(a, "ceil_mode"):
        for i in range(2):
            whole = size[i] + pads[i] + pads[i + 2]
            reach = (window[i] - 1) * dilation[i] + 1
            out = -(-(whole - reach) // steps[i]) + 1
            pads[i + 2] += max(0, (out - 1) * steps[i] + reach - whole)
    return window, steps, dilation, pads


def _max_pool2d(bb: Any, args: list[Any], a: Attrs) -> Any:
    _only(a, "out_layout", "", None, a["layout"])
    x, back = _picture(bb, args[0], a["layout"])
    window, steps, dilation, pads = _window(a, dims(x)[2:])
    return back(relax.op.nn.max_pool2d(x, window, steps, pads, dilation))


def _avg_pool2d(bb: Any, args: list[Any], a: Attrs) -> Any:
    _only(a, "out_layout", "", None, a["layout"])
    x, back = _picture(bb, args[0], a["layout"])
    window, steps, dilation, pads = _window(a, dims(x)[2:])
    counted = _flag(a, "count_include_pad")
    return back(relax.op.nn.avg_pool2d(x, window, steps, pads, dilation, False, counted))


def _global(reduce: Callable[..., Any]) -> Converter:
    def convert(bb: Any, args: list[Any], a: Attrs) -> Any:
        _only(a, "out_layout", "", None, a["layout"])
        x, back = _picture(bb, args[0], a["layout"])
        return back(reduce(x, [2, 3], keepdims=True))

    return convert


def _adaptive(kind: str) -> Converter:
    def convert(bb: Any, args: list[Any], a: Attrs) -> Any:
        _only(a, "out_layout", "", None, a["layout"])
        x, back = _picture(bb, args[0], a["layout"])
        size = dims(x)[2:]
        wanted = size if a["output_size"] is None else _ints(a, "output_size", (2, 1), 1)
        wanted = list(wanted) * (2 // len(wanted))
        if wanted == [1, 1]:
            reduce = relax.op.mean if kind == "avg" else relax.op.max
            return back(reduce(x, [2, 3], keepdims=True))
        if any(n % w for n, w in zip(size, wanted, strict=True)):
            raise ModelError(f"it makes {wanted} of {list(size)}: only whole windows are supported")
        window = [n // w for n, w in zip(size, wanted, strict=True)]
        pool = relax.op.nn.avg_pool2d if kind == "avg" else relax.op.nn.max_pool2d
        return back(pool(x, window, window))

    return convert


# Pictures


def _resize2d(bb: Any, args: list[Any], a: Attrs) -> Any:
    _only(a, "out_dtype", "", None, "float32")
    if a["roi"] and any(a["roi"]):
        raise ModelError(f"its roi is {a['roi']}, which is not supported")
    _only(a, "coordinate_transformation_mode", "half_pixel", "align_corners", "asymmetric",
          "pytorch_half_pixel")  # fmt: skip
    _only(a, "method", "linear", "nearest_neighbor", "cubic")
    x, back = _picture(bb, args[0], a["layout"])
    rounding = a["rounding_method"] or (
        "round" if a["coordinate_transformation_mode"] == "align_corners" else "floor"
    )
    return back(
        relax.op.image.resize2d(
            x,
            relax.ShapeExpr(_ints(a, "size", (2,), 1)),
            layout="NCHW",
            method=a["method"],
            coordinate_transformation_mode=a["coordinate_transformation_mode"],
            rounding_method=rounding,
            cubic_alpha=float(a["cubic_alpha"]),
            cubic_exclude=int(a["cubic_exclude"]),
        )
    )


def _upsampling(bb: Any, args: list[Any], a: Attrs) -> Any:
    height, width = (dims(args[0])[_order(a["layout"], "NCHW")[i]] for i in (2, 3))
    methods = {"nearest_neighbor": "nearest_neighbor", "bilinear": "linear", "bicubic": "cubic"}
    _only(a, "method", *methods)
    rest = OPS["image.resize2d"].attrs | {
        "layout": a["layout"],
        "size": [round(height * float(a["scale_h"])), round(width * float(a["scale_w"]))],
        "method": methods[a["method"]],
        "coordinate_transformation_mode": (
            "align_corners" if _flag(a, "align_corners") else "asymmetric"
        ),
    }
    return _resize2d(bb, args, rest)


def _pad(bb: Any, args: list[Any], a: Attrs) -> Any:
    x = args[0]
    value = float(constant(args[1], "fill value").reshape(()) if len(args) > 1 else a["pad_value"])
    rank, width = len(dims(x)), a["pad_width"]
    if not isinstance(width, list) or len(width) != rank:
        raise ModelError(f"its pad_width is {width}: a pair for each of {rank} axes is needed")
    pairs = [p for pair in width for p in _ints({"pad_width": pair}, "pad_width", (2,), 0)]
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    _only(a, "pad_mode", *modes)
    return relax.op.nn.pad(x, pairs, modes[a["pad_mode"]], value) if any(pairs) else x


# Shapes


def _reshape(bb: Any, args: list[Any], a: Attrs) -> Any:
    """0 keeps a dimension, -1 takes what is left, -2 copies the rest, -3 merges two, -4 splits."""
    own, wanted = list(dims(args[0])), a["newshape"]
    wanted = [wanted] if isinstance(wanted, int) else wanted
    if not isinstance(wanted, list) or not all(type(d) is int and d >= -4 for d in wanted):
        raise ModelError(f"its newshape is {wanted}: constant integers are needed")
    result, at, rest = [], 0, iter(wanted)
    for d in rest:
        if d == 0 and not _flag(a, "allowzero"):
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


def _transpose(bb: Any, args: list[Any], a: Attrs) -> Any:
    rank = len(dims(args[0]))
    order = _axes(a["axes"], rank) if a["axes"] else list(range(rank))[::-1]
    if sorted(order) != list(range(rank)):
        raise ModelError(f"its axes are {a['axes']}: each of {rank} once is needed")
    return _permuted(bb, args[0], order)


def _layout_transform(bb: Any, args: list[Any], a: Attrs) -> Any:
    source, wanted = a["src_layout"], a["dst_layout"]
    if not isinstance(wanted, str):
        raise ModelError(f"its dst_layout is {wanted}: a layout is needed")
    return _permuted(bb, args[0], _order(source, wanted))


def _squeeze(bb: Any, args: list[Any], a: Attrs) -> Any:
    own = dims(args[0])
    gone = (
        [i for i, d in enumerate(own) if d == 1]
        if a["axis"] is None
        else _axes(a["axis"], len(own))
    )
    return relax.op.squeeze(args[0], gone)


def _expand_dims(bb: Any, args: list[Any], a: Attrs) -> Any:
    rank = len(dims(args[0]))
    first = a["axis"] + (rank + 1 if a["axis"] < 0 else 0)
    (count,) = _ints(a, "num_newaxis", (1,), 0)
    if not 0 <= first <= rank or count > 8:
        raise ModelError(f"its axis is {a['axis']} and num_newaxis {count}: out of range")
    return relax.op.expand_dims(args[0], [first + i for i in range(count)]) if count else args[0]


def _flatten(bb: Any, args: list[Any], a: Attrs) -> Any:
    own = dims(args[0])
    return relax.op.reshape(args[0], [own[0], math.prod(own[1:])])


def _concatenate(bb: Any, args: list[Any], a: Attrs) -> Any:
    fields = list(args[0]) if isinstance(args[0], tuple) else [args[0]]
    return relax.op.concat(fields, _axis(a, len(dims(fields[0]))))


def _split(bb: Any, args: list[Any], a: Attrs) -> Any:
    axis = _axis(a, len(dims(args[0])))
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


def _strided_slice(bb: Any, args: list[Any], a: Attrs) -> Any:
    own = dims(args[0])
    begin, end, steps = a["begin"], a["end"], a["strides"]
    axes = list(range(len(begin))) if a["axes"] is None else _axes(a["axes"], len(own))
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


def _take(bb: Any, args: list[Any], a: Attrs) -> Any:
    if a["axis"] is None:
        raise ModelError("it has no axis: give one")
    axis = _axis(a, len(dims(args[0])))
    size, indices = dims(args[0])[axis], constant(args[1], "list of indices")
    if indices.dtype.kind not in "iu" or ((indices < -size) | (indices >= size)).any():
        raise ModelError(f"it reads past the {size} entries of axis {axis}")
    return relax.op.take(args[0], const(indices % size, "int64"), axis=axis)


def _cast(bb: Any, args: list[Any], a: Attrs) -> Any:
    return relax.op.astype(args[0], a["dtype"])


# Numbers


def _clip(bb: Any, args: list[Any], a: Attrs) -> Any:
    return relax.op.clip(args[0], float(a["a_min"]), float(a["a_max"]))


def _softmax(op: Callable[..., Any]) -> Converter:
    return lambda bb, args, a: op(args[0], axis=_axis(a, len(dims(args[0]))))


def _leaky_relu(bb: Any, args: list[Any], a: Attrs) -> Any:
    return relax.op.nn.leakyrelu(args[0], float(a["alpha"]))


def _prelu(bb: Any, args: list[Any], a: Attrs) -> Any:
    return relax.op.nn.prelu(args[0], args[1], _axis(a, len(dims(args[0]))))


def _dropout(bb: Any, args: list[Any], a: Attrs) -> Any:
    return (args[0], None)


def _reduce(op: Callable[..., Any]) -> Converter:
    def convert(bb: Any, args: list[Any], a: Attrs) -> Any:
        rank = len(dims(args[0]))
        axes = _axes(a["axis"], rank)
        if _flag(a, "exclude"):
            axes = [i for i in range(rank) if i not in axes]
        return op(args[0], axes, keepdims=_flag(a, "keepdims"))

    return convert


def _unary(op: Callable[[Any], Any]) -> Op:
    return Op(lambda bb, args, a: op(args[0]), 1, {})


def _binary(op: Callable[[Any, Any], Any]) -> Op:
    return Op(lambda bb, args, a: op(args[0], args[1]), 2, {})


_SAME = Op(lambda bb, args, a: args[0], 1, {})
_AXIS = {"axis": -1}
_OUT = {"out_dtype": "", "out_layout": ""}
_CONV = {
    "strides": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1, "channels": None,
    "kernel_size": None, "data_layout": "NCHW", **_OUT,
}  # fmt: skip
_POOL = {
    "pool_size": None, "strides": [1, 1], "dilation": [1, 1], "padding": [0, 0], "layout": "NCHW",
    "out_layout": "", "ceil_mode": False,
}  # fmt: skip
_GLOBAL = {"layout": "NCHW", "out_layout": ""}
_ADAPTIVE = {"output_size": None, **_GLOBAL}
_REDUCE = {"axis": None, "keepdims": False, "exclude": False}

OPS: dict[str, Op] = {
    "nn.conv2d": Op(_conv2d, 2, {**_CONV, "kernel_layout": "OIHW"}),
    "nn.conv2d_transpose": Op(
        _conv2d_transpose, 2, {**_CONV, "kernel_layout": "IOHW", "output_padding": [0, 0]}
    ),
    "nn.bias_add": Op(_bias_add, 2, {"axis": 1}),
    "nn.batch_norm": Op(
        _batch_norm, 5, {"axis": 1, "epsilon": 1e-5, "center": True, "scale": True}
    ),
    "nn.dense": Op(_dense, 2, {"units": None, "out_dtype": ""}),
    "nn.matmul": Op(
        _matmul, 2,
        {"units": None, "out_dtype": "", "transpose_a": False, "transpose_b": False},
    ),
    "nn.batch_matmul": Op(
        _matmul, 2, {"out_dtype": "", "transpose_a": False, "transpose_b": True}
    ),
    "nn.max_pool2d": Op(_max_pool2d, 1, _POOL),
    "nn.avg_pool2d": Op(_avg_pool2d, 1, {**_POOL, "count_include_pad": False}),
    "nn.global_avg_pool2d": Op(_global(relax.op.mean), 1, _GLOBAL),
    "nn.global_max_pool2d": Op(_global(relax.op.max), 1, _GLOBAL),
    "nn.adaptive_avg_pool2d": Op(_adaptive("avg"), 1, _ADAPTIVE),
    "nn.adaptive_max_pool2d": Op(_adaptive("max"), 1, _ADAPTIVE),
    "image.resize2d": Op(
        _resize2d, 1,
        {
            "size": None, "roi": None, "layout": "NCHW", "method": "linear",
            "coordinate_transformation_mode": "half_pixel", "rounding_method": "",
            "cubic_alpha": -0.5, "cubic_exclude": 0, "extrapolation_value": 0.0, "out_dtype": "",
        },
    ),
    "nn.upsampling": Op(
        _upsampling, 1,
        {
            "scale_h": 1.0, "scale_w": 1.0, "layout": "NCHW", "method": "nearest_neighbor",
            "align_corners": False,
        },
    ),
    "nn.pad": Op(  # up to 0.7 the value was an attribute
        _pad, 2, {"pad_width": None, "pad_mode": "constant", "pad_value": 0.0}, least=1
    ),
    "nn.relu": _unary(relax.op.nn.relu),
    "nn.leaky_relu": Op(_leaky_relu, 1, {"alpha": 0.01}),
    "nn.prelu": Op(_prelu, 2, {"axis": 1}),
    "clip": Op(_clip, 1, {"a_min": None, "a_max": None}),
    "nn.softmax": Op(_softmax(relax.op.nn.softmax), 1, _AXIS),
    "nn.log_softmax": Op(_softmax(relax.op.nn.log_softmax), 1, _AXIS),
    "nn.dropout": Op(_dropout, 1, {"rate": 0.5}),
    "nn.batch_flatten": Op(_flatten, 1, {}),
    "reshape": Op(_reshape, 1, {"newshape": None, "allowzero": False}),
    "transpose": Op(_transpose, 1, {"axes": None}),
    "layout_transform": Op(_layout_transform, 1, {"src_layout": None, "dst_layout": None}),
    "squeeze": Op(_squeeze, 1, {"axis": None}),
    "expand_dims": Op(_expand_dims, 1, {"axis": 0, "num_newaxis": 1}),
    "concatenate": Op(_concatenate, 1, {"axis": 0}),
    "split": Op(_split, 1, {"indices_or_sections": None, "axis": 0}),
    "strided_slice": Op(
        _strided_slice, 1,
        {"begin": None, "end": None, "strides": None, "axes": None, "slice_mode": "end"},
    ),
    "take": Op(_take, 2, {"axis": None, "mode": "clip", "batch_dims": 0}),
    "cast": Op(_cast, 1, {"dtype": None}),
    "mean": Op(_reduce(relax.op.mean), 1, _REDUCE),
    "sum": Op(_reduce(relax.op.sum), 1, _REDUCE),
    "max": Op(_reduce(relax.op.max), 1, _REDUCE),
    "min": Op(_reduce(relax.op.min), 1, _REDUCE),
    "add": _binary(relax.op.add),
    "subtract": _binary(relax.op.subtract),
    "multiply": _binary(relax.op.multiply),
    "divide": _binary(relax.op.divide),
    "maximum": _binary(relax.op.maximum),
    "minimum": _binary(relax.op.minimum),
    "power": _binary(relax.op.power),
    "sigmoid": _unary(relax.op.sigmoid),
    "tanh": _unary(relax.op.tanh),
    "exp": _unary(relax.op.exp),
    "log": _unary(relax.op.log),
    "sqrt": _unary(relax.op.sqrt),
    "rsqrt": _unary(relax.op.rsqrt),
    "abs": _unary(relax.op.abs),
    "negative": _unary(relax.op.negative),
    "erf": _unary(relax.op.erf),
    "floor": _unary(relax.op.floor),
    "ceil": _unary(relax.op.ceil),
    "round": _unary(relax.op.round),
    "copy": _SAME,
    "annotation.stop_fusion": _SAME,
    "on_device": Op(lambda bb, args, a: args[0], 1, {
        "virtual_device": None, "constrain_result": False, "constrain_body": True,
        "param_virtual_devices": None, "result_virtual_device": None,
    }),
}  # fmt: skip
