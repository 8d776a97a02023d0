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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import relax

from tvmsep.frontends.relay import layers, shapes
from tvmsep.frontends.relay.attrs import (
    Attrs,
    Converter,
    axes_of,
    axis_of,
    dims,
    flag,
)


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


# Numbers


def _clip(bb: Any, args: list[Any], a: Attrs) -> Any:
    return relax.op.clip(args[0], float(a["a_min"]), float(a["a_max"]))


def _softmax(op: Callable[..., Any]) -> Converter:
    return lambda bb, args, a: op(args[0], axis=axis_of(a, len(dims(args[0]))))


def _leaky_relu(bb: Any, args: list[Any], a: Attrs) -> Any:
    return relax.op.nn.leakyrelu(args[0], float(a["alpha"]))


def _prelu(bb: Any, args: list[Any], a: Attrs) -> Any:
    return relax.op.nn.prelu(args[0], args[1], axis_of(a, len(dims(args[0]))))


def _dropout(bb: Any, args: list[Any], a: Attrs) -> Any:
    return (args[0], None)


def _reduce(op: Callable[..., Any]) -> Converter:
    def convert(bb: Any, args: list[Any], a: Attrs) -> Any:
        rank = len(dims(args[0]))
        axes = axes_of(a["axis"], rank)
        if flag(a, "exclude"):
            axes = [i for i in range(rank) if i not in axes]
        return op(args[0], axes, keepdims=flag(a, "keepdims"))

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
    "nn.conv2d": Op(layers.conv2d, 2, {**_CONV, "kernel_layout": "OIHW"}),
    "nn.conv2d_transpose": Op(
        layers.conv2d_transpose, 2, {**_CONV, "kernel_layout": "IOHW", "output_padding": [0, 0]}
    ),
    "nn.bias_add": Op(layers.bias_add, 2, {"axis": 1}),
    "nn.batch_norm": Op(
        layers.batch_norm, 5, {"axis": 1, "epsilon": 1e-5, "center": True, "scale": True}
    ),
    "nn.dense": Op(layers.dense, 2, {"units": None, "out_dtype": ""}),
    "nn.matmul": Op(
        layers.matmul, 2,
        {"units": None, "out_dtype": "", "transpose_a": False, "transpose_b": False},
    ),
    "nn.batch_matmul": Op(
        layers.matmul, 2, {"out_dtype": "", "transpose_a": False, "transpose_b": True}
    ),
    "nn.max_pool2d": Op(layers.max_pool2d, 1, _POOL),
    "nn.avg_pool2d": Op(layers.avg_pool2d, 1, {**_POOL, "count_include_pad": False}),
    "nn.global_avg_pool2d": Op(layers.global_pool2d(relax.op.mean), 1, _GLOBAL),
    "nn.global_max_pool2d": Op(layers.global_pool2d(relax.op.max), 1, _GLOBAL),
    "nn.adaptive_avg_pool2d": Op(layers.adaptive_pool2d("avg"), 1, _ADAPTIVE),
    "nn.adaptive_max_pool2d": Op(layers.adaptive_pool2d("max"), 1, _ADAPTIVE),
    "image.resize2d": Op(
        layers.resize2d, 1,
        layers.RESIZE,
    ),
    "nn.upsampling": Op(
        layers.upsampling, 1,
        {
            "scale_h": 1.0, "scale_w": 1.0, "layout": "NCHW", "method": "nearest_neighbor",
            "align_corners": False,
        },
    ),
    "nn.pad": Op(  # up to 0.7 the value was an attribute
        layers.pad, 2, {"pad_width": None, "pad_mode": "constant", "pad_value": 0.0}, least=1
    ),
    "nn.relu": _unary(relax.op.nn.relu),
    "nn.leaky_relu": Op(_leaky_relu, 1, {"alpha": 0.01}),
    "nn.prelu": Op(_prelu, 2, {"axis": 1}),
    "clip": Op(_clip, 1, {"a_min": None, "a_max": None}),
    "nn.softmax": Op(_softmax(relax.op.nn.softmax), 1, _AXIS),
    "nn.log_softmax": Op(_softmax(relax.op.nn.log_softmax), 1, _AXIS),
    "nn.dropout": Op(_dropout, 1, {"rate": 0.5}),
    "nn.batch_flatten": Op(shapes.batch_flatten, 1, {}),
    "reshape": Op(shapes.reshape, 1, {"newshape": None, "allowzero": False}),
    "transpose": Op(shapes.transpose, 1, {"axes": None}),
    "layout_transform": Op(shapes.layout_transform, 1, {"src_layout": None, "dst_layout": None}),
    "squeeze": Op(shapes.squeeze, 1, {"axis": None}),
    "expand_dims": Op(shapes.expand_dims, 1, {"axis": 0, "num_newaxis": 1}),
    "concatenate": Op(shapes.concatenate, 1, {"axis": 0}),
    "split": Op(shapes.split, 1, {"indices_or_sections": None, "axis": 0}),
    "strided_slice": Op(
        shapes.strided_slice, 1,
        {"begin": None, "end": None, "strides": None, "axes": None, "slice_mode": "end"},
    ),
    "take": Op(shapes.take, 2, {"axis": None, "mode": "clip", "batch_dims": 0}),
    "cast": Op(shapes.cast, 1, {"dtype": None}),
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
