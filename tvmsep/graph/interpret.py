"""Relax operators in NumPy: to fold constants, and, in float64, as a network's reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tvmsep.contracts import ModelError, Workload
from tvmsep.graph.ir import Array, Graph, Node
from tvmsep.graph.numeric import convolve, convolve_transposed, pool, resize

_Fn = Callable[[Node, Sequence[Any]], Any]


def attributes(call: Any, op: str) -> dict[str, Any]:
    """A Relax call's attributes and non-tensor arguments as Python values."""
    found: dict[str, Any] = {}
    if call.attrs is not None:
        for key in _ATTRS.get(op, ()):
            found[key] = _python(getattr(call.attrs, key))
    if op in ("clip", "reshape", "broadcast_to", "strided_slice", "take"):
        found["args"] = [_python(a) for a in call.args[1:]]
    return found


_ATTRS: dict[str, tuple[str, ...]] = {
    "nn.conv2d": ("strides", "padding", "dilation", "groups", "data_layout", "kernel_layout"),
    "nn.conv2d_transpose": (
        "strides", "padding", "output_padding", "dilation", "groups", "data_layout",
        "kernel_layout",
    ),
    "image.resize2d": (
        "roi", "layout", "method", "coordinate_transformation_mode", "rounding_method",
        "cubic_alpha", "cubic_exclude",
    ),
    "nn.max_pool2d": ("pool_size", "strides", "padding", "dilation", "ceil_mode", "layout"),
    "nn.avg_pool2d": (
        "pool_size", "strides", "padding", "dilation", "ceil_mode", "count_include_pad", "layout",
    ),
    "nn.adaptive_avg_pool2d": ("output_size", "layout"),
    "nn.batch_norm": ("axis", "epsilon", "center", "scale"),
    "nn.pad": ("pad_width", "pad_value", "pad_mode"),
    "nn.softmax": ("axis",),
    "nn.log_softmax": ("axis",),
    "nn.leakyrelu": ("alpha",),
    "nn.prelu": ("axis",),
    "mean": ("axis", "keepdims"),
    "sum": ("axis", "keepdims"),
    "max": ("axis", "keepdims"),
    "min": ("axis", "keepdims"),
    "concat": ("axis",),
    "permute_dims": ("axes",),
    "squeeze": ("axis",),
    "expand_dims": ("axis",),
    "split": ("indices_or_sections", "axis"),
    "astype": ("dtype",),
    "take": ("axis",),
}  # fmt: skip


def _python(value: Any) -> Any:
    """TVM's containers and scalars as Python's."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "fields"):  # a Relax tuple: the axes of a slice
        return [_python(v) for v in value.fields]
    if hasattr(value, "values") and not isinstance(value, Mapping):
        return [_python(v) for v in value.values]
    if hasattr(value, "value"):
        return _python(value.value)
    if isinstance(value, Sequence) or type(value).__name__ in ("Array", "List"):
        return [_python(v) for v in value]
    return value if isinstance(value, np.generic) else str(value)


def _axes(node: Node) -> tuple[int, ...] | None:
    axis = node.attrs.get("axis")
    if axis is None:
        return None
    return tuple(axis) if isinstance(axis, list) else (axis,)


def conv_workload(node: Node, x: tuple[int, ...], weight: tuple[int, ...]) -> Workload:
    """The convolution's shapes as a workload with plain layouts."""
    a = node.attrs
    top, left, bottom, right = a["padding"] if len(a["padding"]) == 4 else a["padding"] * 2
    return Workload(
        op="conv", n=x[0], ic=x[1], ih=x[2], iw=x[3], oc=weight[0], kh=weight[2], kw=weight[3],
        sh=a["strides"][0], sw=a["strides"][1], dh=a["dilation"][0], dw=a["dilation"][1],
        pads=(top, left, bottom, right), groups=a["groups"], in_block=0, out_block=0,
    )  # fmt: skip


def pool_workload(node: Node, x: tuple[int, ...]) -> Workload:
    """The pooling window as a workload with plain layouts; ceil mode is read off the shape."""
    a = node.attrs
    if node.op in ("mean", "nn.adaptive_avg_pool2d"):
        window: dict[str, Any] = {"kh": x[2], "kw": x[3], "kind": "global_avg"}
        return Workload(
            op="pool", n=x[0], ic=x[1], ih=x[2], iw=x[3], oc=x[1], in_block=0, out_block=0, **window
        )
    kh, kw = a["pool_size"]
    sh, sw = a["strides"]
    dh, dw = a["dilation"]
    top, left, bottom, right = a["padding"] if len(a["padding"]) == 4 else a["padding"] * 2
    kind = "max"
    if node.op == "nn.avg_pool2d":
        kind = "avg" if a["count_include_pad"] else "avg_valid"
    # Ceil mode: the last window may hang over; that is as much more padding as it needs.
    _, _, oh, ow = node.shape
    over_h = max(0, (oh - 1) * sh + (kh - 1) * dh + 1 - x[2] - top - bottom)
    over_w = max(0, (ow - 1) * sw + (kw - 1) * dw + 1 - x[3] - left - right)
    return Workload(
        op="pool", kind=kind, n=x[0], ic=x[1], ih=x[2], iw=x[3], oc=x[1], kh=kh, kw=kw, sh=sh,
        sw=sw, dh=dh, dw=dw, pads=(top, left, bottom + over_h, right + over_w),
        in_block=0, out_block=0,
    )  # fmt: skip


def _conv(node: Node, v: Sequence[Array]) -> Array:
    return convolve(v[0], v[1], conv_workload(node, v[0].shape, v[1].shape))


def _pool(node: Node, v: Sequence[Array]) -> Array:
    return pool(v[0], pool_workload(node, v[0].shape))


def _mean(node: Node, v: Sequence[Array]) -> Array:
    return np.asarray(np.mean(v[0], axis=_axes(node), keepdims=bool(node.attrs["keepdims"])))


def channel_affine(node: Node, v: Sequence[Array]) -> tuple[Array, Array]:
    """A batch norm's scale and shift, float64, one value a channel."""
    gamma, beta, mean, var = (np.asarray(a, np.float64) for a in v[1:5])
    scale = 1.0 / np.sqrt(var + node.attrs["epsilon"])
    if node.attrs.get("scale", True):
        scale = scale * gamma
    shift = -mean * scale
    if node.attrs.get("center", True):
        shift = shift + beta
    return scale, shift


def _batch_norm(node: Node, v: Sequence[Array]) -> tuple[Array, Array, Array]:
    scale, shift = channel_affine(node, v)
    shape = [1] * v[0].ndim
    shape[node.attrs["axis"]] = -1
    return v[0] * scale.reshape(shape) + shift.reshape(shape), v[3], v[4]


def _softmax(node: Node, v: Sequence[Array]) -> Array:
    axis = node.attrs["axis"]
    e = np.exp(v[0] - v[0].max(axis=axis, keepdims=True))
    result: Array = e / e.sum(axis=axis, keepdims=True)
    return result


def _pad(node: Node, v: Sequence[Array]) -> Array:
    w = node.attrs["pad_width"]
    pairs = list(zip(w[::2], w[1::2], strict=True))
    mode = node.attrs["pad_mode"]
    if mode == "constant":
        return np.pad(v[0], pairs, constant_values=node.attrs["pad_value"])
    return np.pad(v[0], pairs, mode=_PAD_MODES[mode])


_PAD_MODES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _prelu(node: Node, v: Sequence[Array]) -> Array:
    shape = [1] * v[0].ndim
    shape[node.attrs["axis"]] = -1
    return np.where(v[0] > 0, v[0], v[0] * v[1].reshape(shape))


def _slice(node: Node, v: Sequence[Array]) -> Array:
    axes, begin, end, *strides = node.attrs["args"]
    steps = strides[0] if strides and strides[0] is not None else [1] * len(axes)
    index = [slice(None)] * v[0].ndim
    for axis, first, last, step in zip(axes, begin, end, steps, strict=True):
        index[axis] = slice(first, last, step)
    return v[0][tuple(index)]


_erf = np.vectorize(math.erf, otypes=[float])


def _clip(node: Node, v: Sequence[Array]) -> Array:
    low, high = node.attrs["args"]
    return np.clip(v[0], low, high)


def _split(node: Node, v: Sequence[Array]) -> list[Array]:
    parts = node.attrs["indices_or_sections"]
    return np.split(v[0], parts, axis=node.attrs["axis"])


def _binary(fn: Callable[[Any, Any], Any]) -> _Fn:
    return lambda _, v: fn(v[0], v[1])


def _unary(fn: Callable[[Any], Any]) -> _Fn:
    return lambda _, v: fn(v[0])


_OPS: dict[str, _Fn] = {
    "nn.conv2d": _conv,
    "nn.conv2d_transpose": lambda n, v: convolve_transposed(v[0], v[1], n.attrs),
    "image.resize2d": lambda n, v: resize(v[0], n.shape[2:], n.attrs),
    "nn.max_pool2d": _pool,
    "nn.avg_pool2d": _pool,
    "nn.batch_norm": _batch_norm,
    "nn.softmax": _softmax,
    "nn.log_softmax": lambda n, v: np.log(_softmax(n, v)),
    "nn.pad": _pad,
    "nn.relu": _unary(lambda x: np.maximum(x, 0)),
    "nn.relu6": _unary(lambda x: np.clip(x, 0, 6)),
    "nn.silu": _unary(lambda x: x / (1 + np.exp(-x))),
    "nn.leakyrelu": lambda n, v: np.where(v[0] > 0, v[0], v[0] * n.attrs["alpha"]),
    "nn.prelu": _prelu,
    "nn.gelu": _unary(lambda x: x * (1 + _erf(x / 2**0.5)) / 2),
    "erf": _unary(_erf),
    "strided_slice": _slice,
    "nn.dropout": lambda _, v: (v[0], np.ones_like(v[0])),
    "sigmoid": _unary(lambda x: 1 / (1 + np.exp(-x))),
    "tanh": _unary(np.tanh),
    "exp": _unary(np.exp),
    "log": _unary(np.log),
    "sqrt": _unary(np.sqrt),
    "rsqrt": _unary(lambda x: 1 / np.sqrt(x)),
    "abs": _unary(np.abs),
    "negative": _unary(np.negative),
    "isnan": _unary(np.isnan),
    "logical_not": _unary(np.logical_not),
    "round": _unary(np.round),
    "floor": _unary(np.floor),
    "ceil": _unary(np.ceil),
    "clip": _clip,
    "add": _binary(np.add),
    "subtract": _binary(np.subtract),
    "multiply": _binary(np.multiply),
    "divide": _binary(lambda a, b: a / b if np.asarray(a).dtype.kind == "f" else a // b),
    "maximum": _binary(np.maximum),
    "minimum": _binary(np.minimum),
    "power": _binary(np.power),
    "matmul": _binary(np.matmul),
    "where": lambda _, v: np.where(v[0], v[1], v[2]),
    "mean": _mean,
    "sum": lambda n, v: np.sum(v[0], axis=_axes(n), keepdims=bool(n.attrs["keepdims"])),
    "max": lambda n, v: np.max(v[0], axis=_axes(n), keepdims=bool(n.attrs["keepdims"])),
    "min": lambda n, v: np.min(v[0], axis=_axes(n), keepdims=bool(n.attrs["keepdims"])),
    "nn.adaptive_avg_pool2d": _pool,
    "reshape": lambda n, v: v[0].reshape(n.shape),
    "squeeze": lambda n, v: v[0].reshape(n.shape),
    "expand_dims": lambda n, v: v[0].reshape(n.shape),
    "flatten": lambda n, v: v[0].reshape(n.shape),
    "nn.batch_flatten": lambda n, v: v[0].reshape(n.shape),
    "broadcast_to": lambda n, v: np.broadcast_to(v[0], n.shape),
    "permute_dims": lambda n, v: np.transpose(v[0], n.attrs["axes"]),
    "take": lambda n, v: np.take(v[0], np.asarray(v[1], np.int64), axis=n.attrs["axis"]),
    "concat": lambda n, v: np.concatenate(v, axis=n.attrs["axis"]),
    "split": _split,
    "tuple_get": lambda n, v: v[0][n.attrs["index"]],
    "astype": lambda n, v: np.asarray(v[0]).astype(n.dtype),
}


def can_interpret(node: Node) -> bool:
    """Whether NumPy can run this node here."""
    if node.op == "nn.conv2d":
        return bool(node.attrs["data_layout"] == "NCHW" and node.attrs["kernel_layout"] == "OIHW")
    if node.op == "nn.conv2d_transpose":
        return bool(node.attrs["data_layout"] == "NCHW" and node.attrs["kernel_layout"] == "IOHW")
    if node.op == "image.resize2d":
        return bool(node.attrs["layout"] == "NCHW" and len(node.shape) == 4)
    if node.op == "nn.adaptive_avg_pool2d":
        return node.attrs["output_size"] in ([1], [1, 1])
    return node.op in _OPS


def interpret(node: Node, values: Sequence[Any]) -> Any:
    """Run one node on NumPy arrays, in their precision."""
    return _OPS[node.op](node, values)


def evaluate(graph: Graph, inputs: Mapping[str, Array], *, dtype: str = "float64") -> list[Array]:
    """Run an imported (not normalised) graph in `dtype`: what errors are told against.

    Raises:
        ModelError: the graph holds an operator without a NumPy form; says which.
    """

    def widen(a: Array) -> Array:
        return a.astype(dtype) if a.dtype == np.float32 else a

    values: dict[str, Any] = {n: widen(np.asarray(a)) for n, a in inputs.items()}
    uses = graph.uses()
    for node in graph.nodes.values():
        if not can_interpret(node):
            raise ModelError(f"no NumPy reference for operator {node.op} ({node.name})")
        args = [values[i] if i in values else widen(graph.constants[i]) for i in node.inputs]
        values[node.name] = interpret(node, args)
        for i in node.inputs:
            uses[i] -= 1
            if uses[i] == 0:
                values.pop(i, None)
    return [np.asarray(values[o] if o in values else graph.constants[o]) for o in graph.outputs]
