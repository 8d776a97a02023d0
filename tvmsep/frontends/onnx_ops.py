"""Our own converters from ONNX nodes to Relax, where TVM's are wrong, refuse, or hide patterns.

1. Bias, `Gemm` factors and transposed weights are folded while importing, in NumPy.
2. `Clip`, `Pad`, `Slice` and `Resize` become Relax operators with constant attributes. Stock makes
   TE functions of the first two, which no pattern matches, and misreads the last two in old opsets.
3. `auto_pad` and `ceil_mode` become explicit pads: stock emits a separate pad for the first and,
   for the second, counts windows that start in the padding.
4. `Sum`, `Min`, `Max`, `Mean` become chains of binary operators: stock stacks their inputs.

What works on pictures is in `onnx_images.py`.

A converter takes the block builder, the inputs (None where absent) and the attributes, to which
`opset` and `tvm_custom` (name and number of outputs of the node) are added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from tvmsep.contracts import ModelError
from tvmsep.frontends import onnx_images
from tvmsep.frontends.names import identifier
from tvmsep.frontends.onnx_values import Expr, const, dims, is_const, value_of

Converter = Callable[[Any, list[Any], dict[str, Any]], Any]


def _gemm(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    a, b, c = inputs[0], inputs[1], inputs[2]
    alpha, beta = attrs.get("alpha", 1.0), attrs.get("beta", 1.0)
    if attrs.get("transA", 0):
        a = relax.op.permute_dims(a, [1, 0])
    if is_const(b):
        weight = value_of(b, "weight")
        weight = weight.T if attrs.get("transB", 0) else weight
        b = const(np.ascontiguousarray(weight * np.float32(alpha)))
    else:
        b = relax.op.permute_dims(b, [1, 0]) if attrs.get("transB", 0) else b
        a = a if alpha == 1.0 else relax.op.multiply(a, const(alpha))
    out = relax.op.matmul(a, b)
    if c is None or beta == 0.0:
        return out
    if is_const(c):
        c = const(value_of(c, "bias") * np.float32(beta))
    elif beta != 1.0:
        c = relax.op.multiply(c, const(beta))
    return relax.op.add(out, c)


def _batch_norm(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    if attrs.get("training_mode", 0) or attrs["tvm_custom"]["num_outputs"] > 1:
        raise ModelError("it is in training mode: export the model for inference")
    if attrs.get("spatial", 1) != 1:
        raise ModelError("spatial=0 is not supported: export with per-channel statistics")
    eps = attrs.get("epsilon", 1e-5)
    both = bb.emit(relax.op.nn.batch_norm(*inputs[:5], axis=1, epsilon=eps, training=False))
    return bb.emit(relax.TupleGetItem(both, 0), name_hint=identifier(attrs["tvm_custom"]["name"]))


def _clip(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x = inputs[0]
    if attrs["opset"] < 11:
        low, high = attrs.get("min"), attrs.get("max")
    else:
        low, high = value_of(inputs[1], "lower bound"), value_of(inputs[2], "upper bound")
    low = None if low is None or np.isnan(low) or np.isneginf(low) else float(low)
    high = None if high is None or np.isnan(high) or np.isposinf(high) else float(high)
    if low is None and high is None:
        return x
    dtype = x.ty.dtype.dtype
    if high is None:
        return relax.op.nn.relu(x) if low == 0 else relax.op.maximum(x, const(low, dtype))
    if low is None:
        return relax.op.minimum(x, const(high, dtype))
    return relax.op.clip(x, low, high)


def _reshape(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x = inputs[0]
    wanted = [int(d) for d in value_of(inputs[1], "target shape")]
    own = dims(x)
    if not attrs.get("allowzero", 0):
        wanted = [own[i] if d == 0 else d for i, d in enumerate(wanted)]
    if -1 in wanted:
        rest = int(np.prod([d for d in wanted if d != -1]))
        wanted[wanted.index(-1)] = int(np.prod(own)) // rest
    return x if tuple(wanted) == own else relax.op.reshape(x, wanted)


def _split(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x, parts = inputs[0], attrs["tvm_custom"]["num_outputs"]
    axis = attrs.get("axis", 0) % len(dims(x))
    given = value_of(inputs[1], "list of sizes") if attrs["opset"] >= 13 else attrs.get("split")
    if given is None:
        chunk = -(-dims(x)[axis] // attrs.get("num_outputs", parts))
        given = [chunk] * (parts - 1)
        ends = np.cumsum(given)
    else:
        ends = np.cumsum(np.asarray(given))[:-1]
    return relax.op.split(x, [int(e) for e in ends], axis) if len(ends) else x


def _fold_pairs(bb: Any, inputs: list[Any], pair: Callable[[Expr, Expr], Expr]) -> Expr:
    """`pair` over any number of inputs, left to right: stock stacks them in memory."""
    total = inputs[0]
    for other in inputs[1:]:
        total = bb.emit(pair(total, other))
    return total


def _sum(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    return _fold_pairs(bb, inputs, relax.op.add)


def _mean(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    return relax.op.multiply(_sum(bb, inputs, attrs), const(1 / len(inputs)))


def _max(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    return _fold_pairs(bb, inputs, relax.op.maximum)


def _min(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    return _fold_pairs(bb, inputs, relax.op.minimum)


def _prelu(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x, slope = inputs[0], value_of(inputs[1], "slope")
    wide = np.broadcast_to(slope, (1,) * (len(dims(x)) - slope.ndim) + slope.shape)
    varying = [axis for axis, size in enumerate(wide.shape) if size != 1]
    if len(varying) <= 1:
        axis = varying[0] if varying else 1 % wide.ndim
        per_entry = np.broadcast_to(wide.reshape(-1), dims(x)[axis])
        return relax.op.nn.prelu(x, const(np.ascontiguousarray(per_entry)), axis)
    negative = relax.op.less(x, const(0))
    return relax.op.where(negative, relax.op.multiply(x, const(slope)), x)


def _swish(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x, alpha = inputs[0], attrs.get("alpha", 1.0)
    scaled = x if alpha == 1.0 else relax.op.multiply(x, const(alpha))
    return relax.op.multiply(x, relax.op.sigmoid(scaled))


def _slice(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x = inputs[0]
    if attrs["opset"] < 10:
        starts, ends, axes, steps = attrs["starts"], attrs["ends"], attrs.get("axes"), None
    else:
        parts = ("starts", "ends", "axes", "steps")
        starts, ends, axes, steps = (value_of(inputs[i + 1], p) for i, p in enumerate(parts))
    own = dims(x)
    axes = range(len(starts)) if axes is None else [int(a) % len(own) for a in axes]
    steps = [1] * len(starts) if steps is None else [int(s) for s in steps]
    begin, end = [], []
    for axis, low, high, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0:
            raise ModelError(f"its step {step} is negative: only forward slices are supported")
        first, last, _ = slice(int(low), int(high), step).indices(own[axis])
        begin.append(first)
        end.append(max(first, last))
    return relax.op.strided_slice(x, list(axes), begin, end, steps)


def _gather(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x, axis = inputs[0], attrs.get("axis", 0) % len(dims(inputs[0]))
    indices = value_of(inputs[1], "list of indices")
    size = dims(x)[axis]
    if ((indices < -size) | (indices >= size)).any():
        raise ModelError(f"it reads past the {size} entries of axis {axis}")
    return relax.op.take(x, const(indices % size, "int64"), axis=axis, mode="clip")


def _softmax(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x = inputs[0]
    own = dims(x)
    flat = attrs["opset"] < 13  # early softmax runs over all axes from `axis` on
    axis = attrs.get("axis", 1 if flat else -1) % len(own)
    if not flat or axis == len(own) - 1:
        return relax.op.nn.softmax(x, axis=axis)
    rows = bb.emit(relax.op.reshape(x, [int(np.prod(own[:axis])), int(np.prod(own[axis:]))]))
    return relax.op.reshape(bb.emit(relax.op.nn.softmax(rows, axis=-1)), list(own))


def _pow(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    base, exponent = inputs[0], inputs[1]
    if is_const(exponent):
        exponent = const(value_of(exponent, "exponent"), base.ty.dtype.dtype)
    return relax.op.power(base, exponent)


def _dropout(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    training = value_of(inputs[2], "training flag") if attrs["opset"] >= 12 else None
    if (training is not None and training.any()) or attrs["tvm_custom"]["num_outputs"] > 1:
        raise ModelError("it is in training mode: export the model for inference")
    return inputs[0]


def _identity(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    return inputs[0]


CONVERTERS: dict[str, Converter] = {
    "AveragePool": onnx_images.average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Conv": onnx_images.conv,
    "Dropout": _dropout,
    "Gather": _gather,
    "Gemm": _gemm,
    "Identity": _identity,
    "Max": _max,
    "MaxPool": onnx_images.max_pool,
    "Mean": _mean,
    "Min": _min,
    "PRelu": _prelu,
    "Pad": onnx_images.pad,
    "Pow": _pow,
    "Reshape": _reshape,
    "Resize": onnx_images.resize,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sum": _sum,
    "Swish": _swish,
    "Upsample": onnx_images.upsample,
}
