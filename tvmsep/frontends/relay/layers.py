"""Convolutions, matrix products, pools and resizing: see `ops.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax

from tvmsep.contracts import ModelError
from tvmsep.frontends.relay.attrs import (
    Attrs,
    Converter,
    axis_of,
    const,
    constant,
    dims,
    flag,
    ints,
    only,
    order_of,
    pads_of,
    permuted,
    picture,
)

RESIZE: Attrs = {
    "size": None, "roi": None, "layout": "NCHW", "method": "linear",
    "coordinate_transformation_mode": "half_pixel", "rounding_method": "",
    "cubic_alpha": -0.5, "cubic_exclude": 0, "extrapolation_value": 0.0, "out_dtype": "",
}  # fmt: skip
"""Attributes of `image.resize2d` and their defaults."""

# Convolutions and matrix products


def _check_out(attrs: Attrs, layout: str) -> None:
    only(attrs, "out_dtype", "", None, "float32")
    only(attrs, "out_layout", "", None, layout)


def conv2d(bb: Any, args: list[Any], a: Attrs) -> Any:
    """A convolution, with any layouts of data and kernel."""
    _check_out(a, a["data_layout"])
    x, back = picture(bb, args[0], a["data_layout"])
    weight = constant(args[1], "kernel")
    if weight.ndim != 4:
        raise ModelError(f"its kernel has {weight.ndim} dimensions: 4 are needed")
    weight = weight.transpose(order_of(a["kernel_layout"], "OIHW"))
    (groups,) = ints(a, "groups", (1,), 1)
    if groups > 1 and groups == dims(x)[1] == weight.shape[0]:
        weight = weight.reshape(-1, 1, *weight.shape[2:])
    _agrees(a, "channels", weight.shape[0])
    _agrees(a, "kernel_size", list(weight.shape[2:]))
    return back(
        relax.op.nn.conv2d(
            x,
            const(weight, str(weight.dtype)),
            strides=ints(a, "strides", (2,), 1),
            padding=pads_of(a),
            dilation=ints(a, "dilation", (2,), 1),
            groups=groups,
        )
    )


def _agrees(a: Attrs, key: str, real: Any) -> None:
    if a[key] not in (None, real):
        raise ModelError(f"its {key} is {a[key]}, but its kernel has {real}")


def conv2d_transpose(bb: Any, args: list[Any], a: Attrs) -> Any:
    """A transposed convolution."""
    _check_out(a, a["data_layout"])
    x, back = picture(bb, args[0], a["data_layout"])
    weight = constant(args[1], "kernel")
    if weight.ndim != 4:
        raise ModelError(f"its kernel has {weight.ndim} dimensions: 4 are needed")
    # Up to 0.8 the default was named OIHW and meant IOHW: the input's channels come first.
    layout = {"OIHW": "IOHW"}.get(a["kernel_layout"], a["kernel_layout"])
    weight = weight.transpose(order_of(layout, "IOHW"))
    return back(
        relax.op.nn.conv2d_transpose(
            x,
            const(weight, str(weight.dtype)),
            strides=ints(a, "strides", (2,), 1),
            padding=pads_of(a),
            output_padding=ints(a, "output_padding", (2,), 0),
            dilation=ints(a, "dilation", (2,), 1),
            groups=ints(a, "groups", (1,), 1)[0],
        )
    )


def bias_add(bb: Any, args: list[Any], a: Attrs) -> Any:
    """One number a channel, reshaped so that the graph folds it."""
    x, bias = args
    rank = len(dims(x))
    spread = [1] * rank
    spread[axis_of(a, rank)] = -1
    if isinstance(bias, tvm.ir.GenericConst):
        return relax.op.add(x, const(bias.value.numpy().reshape(spread), str(bias.ty.dtype)))
    return relax.op.add(x, bb.emit(relax.op.reshape(bias, spread)))


def batch_norm(bb: Any, args: list[Any], a: Attrs) -> Any:
    """The output, and the unchanged mean and variance."""
    axis = axis_of(a, len(dims(args[0])))
    both = bb.emit(
        relax.op.nn.batch_norm(
            *args, axis=axis, epsilon=float(a["epsilon"]), center=flag(a, "center"),
            scale=flag(a, "scale"), training=False,
        )
    )  # fmt: skip
    return (bb.emit(relax.TupleGetItem(both, 0)), args[3], args[4])


def _swapped(bb: Any, x: Any) -> Any:
    """The last two axes exchanged."""
    order = list(range(len(dims(x))))
    return permuted(bb, x, [*order[:-2], order[-1], order[-2]])


def dense(bb: Any, args: list[Any], a: Attrs) -> Any:
    """`x @ weight.T`."""
    only(a, "out_dtype", "", None, "float32")
    _agrees(a, "units", dims(args[1])[0])
    return relax.op.matmul(args[0], _swapped(bb, args[1]))


def matmul(bb: Any, args: list[Any], a: Attrs) -> Any:
    """A matrix product, either side transposed."""
    only(a, "out_dtype", "", None, "float32")
    left = _swapped(bb, args[0]) if flag(a, "transpose_a") else args[0]
    right = _swapped(bb, args[1]) if flag(a, "transpose_b") else args[1]
    return relax.op.matmul(left, right)


# Pools


def _window(a: Attrs, size: tuple[int, ...]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Window, strides, dilation and pads, in which ceil mode is resolved."""
    window, steps = ints(a, "pool_size", (2,), 1), ints(a, "strides", (2,), 1)
    dilation, pads = ints(a, "dilation", (2,), 1), list(pads_of(a))
    if flag(a, "ceil_mode"):
        for i in range(2):
            whole = size[i] + pads[i] + pads[i + 2]
            reach = (window[i] - 1) * dilation[i] + 1
            out = -(-(whole - reach) // steps[i]) + 1
            pads[i + 2] += max(0, (out - 1) * steps[i] + reach - whole)
    return window, steps, dilation, pads


def max_pool2d(bb: Any, args: list[Any], a: Attrs) -> Any:
    """The largest of a window."""
    only(a, "out_layout", "", None, a["layout"])
    x, back = picture(bb, args[0], a["layout"])
    window, steps, dilation, pads = _window(a, dims(x)[2:])
    return back(relax.op.nn.max_pool2d(x, window, steps, pads, dilation))


def avg_pool2d(bb: Any, args: list[Any], a: Attrs) -> Any:
    """The mean of a window."""
    only(a, "out_layout", "", None, a["layout"])
    x, back = picture(bb, args[0], a["layout"])
    window, steps, dilation, pads = _window(a, dims(x)[2:])
    counted = flag(a, "count_include_pad")
    return back(relax.op.nn.avg_pool2d(x, window, steps, pads, dilation, False, counted))


def global_pool2d(reduce: Callable[..., Any]) -> Converter:
    """A reduction of whole pictures."""

    def convert(bb: Any, args: list[Any], a: Attrs) -> Any:
        only(a, "out_layout", "", None, a["layout"])
        x, back = picture(bb, args[0], a["layout"])
        return back(reduce(x, [2, 3], keepdims=True))

    return convert


def adaptive_pool2d(kind: str) -> Converter:
    """A pool that makes a given size of whole windows."""

    def convert(bb: Any, args: list[Any], a: Attrs) -> Any:
        only(a, "out_layout", "", None, a["layout"])
        x, back = picture(bb, args[0], a["layout"])
        size = dims(x)[2:]
        wanted = size if a["output_size"] is None else ints(a, "output_size", (2, 1), 1)
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


def resize2d(bb: Any, args: list[Any], a: Attrs) -> Any:
    """Resizing to a size."""
    only(a, "out_dtype", "", None, "float32")
    if a["roi"] and any(a["roi"]):
        raise ModelError(f"its roi is {a['roi']}, which is not supported")
    only(a, "coordinate_transformation_mode", "half_pixel", "align_corners", "asymmetric",
          "pytorch_half_pixel")  # fmt: skip
    only(a, "method", "linear", "nearest_neighbor", "cubic")
    x, back = picture(bb, args[0], a["layout"])
    rounding = a["rounding_method"] or (
        "round" if a["coordinate_transformation_mode"] == "align_corners" else "floor"
    )
    return back(
        relax.op.image.resize2d(
            x,
            relax.ShapeExpr(ints(a, "size", (2,), 1)),
            layout="NCHW",
            method=a["method"],
            coordinate_transformation_mode=a["coordinate_transformation_mode"],
            rounding_method=rounding,
            cubic_alpha=float(a["cubic_alpha"]),
            cubic_exclude=int(a["cubic_exclude"]),
        )
    )


def upsampling(bb: Any, args: list[Any], a: Attrs) -> Any:
    """Resizing by a factor, as TVM does it: asymmetric unless corners are aligned."""
    height, width = (dims(args[0])[order_of(a["layout"], "NCHW")[i]] for i in (2, 3))
    methods = {"nearest_neighbor": "nearest_neighbor", "bilinear": "linear", "bicubic": "cubic"}
    only(a, "method", *methods)
    rest = RESIZE | {
        "layout": a["layout"],
        "size": [round(height * float(a["scale_h"])), round(width * float(a["scale_w"]))],
        "method": methods[a["method"]],
        "coordinate_transformation_mode": (
            "align_corners" if flag(a, "align_corners") else "asymmetric"
        ),
    }
    return resize2d(bb, args, rest)


def pad(bb: Any, args: list[Any], a: Attrs) -> Any:
    """A border of a constant, or of the picture's own pixels."""
    x = args[0]
    value = float(constant(args[1], "fill value").reshape(()) if len(args) > 1 else a["pad_value"])
    rank, width = len(dims(x)), a["pad_width"]
    if not isinstance(width, list) or len(width) != rank:
        raise ModelError(f"its pad_width is {width}: a pair for each of {rank} axes is needed")
    pairs = [p for pair in width for p in ints({"pad_width": pair}, "pad_width", (2,), 0)]
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    only(a, "pad_mode", *modes)
    return relax.op.nn.pad(x, pairs, modes[a["pad_mode"]], value) if any(pairs) else x
