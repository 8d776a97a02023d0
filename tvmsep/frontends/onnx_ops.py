"""Our own converters from ONNX nodes to Relax, where TVM's are wrong, refuse, or hide patterns.

1. Bias, `Gemm` factors and transposed weights are folded while importing, in NumPy.
2. `Clip`, `Pad`, `Slice` and `Resize` become Relax operators with constant attributes. Stock makes
   TE functions of the first two, which no pattern matches, and misreads the last two in old opsets.
3. `auto_pad` and `ceil_mode` become explicit pads: stock emits a separate pad for the first and,
   for the second, counts windows that start in the padding.
4. `Sum`, `Min`, `Max`, `Mean` become chains of binary operators: stock stacks their inputs.

A converter takes the block builder, the inputs (None where absent) and the attributes, to which
`opset` and `tvm_custom` (name and number of outputs of the node) are added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmsep.contracts import ModelError
from tvmsep.frontends.names import identifier
from tvmsep.schedules.resample import COORDINATES, ROUNDINGS

Expr = Any
Converter = Callable[[Any, list[Any], dict[str, Any]], Any]


def _dims(x: Expr) -> tuple[int, ...]:
    """The static shape of an expression."""
    return tuple(int(d) for d in x.ty.shape)


def _value(x: Expr | None, what: str) -> Any:
    """The NumPy value of a constant input; None for an absent one."""
    if x is None:
        return None
    if not isinstance(x, tvm.ir.GenericConst):
        raise ModelError(f"its {what} is computed while running: it must be a constant")
    return x.value.numpy()


def _const(array: Any, dtype: str = "float32") -> Expr:
    return relax.const(np.asarray(array, dtype))


def _is_const(x: Expr) -> bool:
    return isinstance(x, tvm.ir.GenericConst)


def _text(attrs: dict[str, Any], key: str, default: str) -> str:
    value = attrs.get(key, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _pads(
    attrs: dict[str, Any], shape: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[list[int], list[int]]:
    """Pads before and after each spatial axis, `auto_pad` resolved."""
    rank = len(kernel)
    mode = _text(attrs, "auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * rank, [0] * rank
    if mode == "NOTSET":
        pads = list(attrs.get("pads", [0] * 2 * rank))
        return pads[:rank], pads[rank:]
    steps = attrs.get("strides", [1] * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, _dilations(attrs, rank), strict=True)]
    total = [
        max(0, (-(-n // s) - 1) * s + r - n) for n, s, r in zip(shape, steps, reach, strict=True)
    ]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def _dilations(attrs: dict[str, Any], rank: int) -> list[int]:
    return list(attrs.get("dilations", [1] * rank))


def check_kernel(data: Expr, weight: Expr, attrs: dict[str, Any], *, transposed: bool) -> None:
    """TVM takes a convolution whose kernel does not fit, and computes something else.

    Raises:
        ModelError: the kernel does not fit the input, the groups or `kernel_shape`.
    """
    (channels, *_), (first, second, *image) = _dims(data)[1:], _dims(weight)
    groups = attrs.get("group", 1)
    into, out = (first, second) if transposed else (second * groups, first)
    fits = groups > 0 and into == channels and (channels if transposed else out) % groups == 0
    if not fits or list(attrs.get("kernel_shape", image)) != list(image):
        raise ModelError(
            f"its kernel {list(_dims(weight))} in {groups} groups does not fit an input of "
            f"{channels} channels, or its kernel_shape: the file is damaged; export it again"
        )
    for what in ("strides", "dilations"):
        if min(attrs.get(what, [1])) < 1:
            raise ModelError(f"its {what} are {list(attrs[what])}: they are 1 at least")


def settle_output_shape(data: Expr, weight: Expr, attrs: dict[str, Any]) -> None:
    """Pads of a transposed convolution that names its output's size, which TVM passes over.

    Raises:
        ModelError: the kernel does not reach so far.
    """
    if "output_shape" not in attrs or _text(attrs, "auto_pad", "NOTSET") not in ("", "NOTSET"):
        return
    image, kernel = _dims(data)[2:], _dims(weight)[2:]
    rank = len(image)
    wanted = list(attrs.pop("output_shape"))[-rank:]
    strides, extra = (attrs.get(k, [d] * rank) for k, d in (("strides", 1), ("output_padding", 0)))
    before, after = [], []
    for size, k, d, s, e, out in zip(
        image, kernel, _dilations(attrs, rank), strides, extra, wanted, strict=True
    ):
        spare = s * (size - 1) + e + (k - 1) * d + 1 - out
        if spare < 0:
            raise ModelError(f"its output_shape {wanted} is larger than its kernel reaches")
        before.append(spare - spare // 2)  # the standard's halves, where auto_pad says nothing
        after.append(spare // 2)
    attrs["pads"] = before + after


def _conv(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    data, weight, bias = inputs[0], inputs[1], inputs[2]
    rank = len(_dims(data)) - 2
    if rank not in (1, 2, 3):
        raise ModelError(f"its input has {rank + 2} dimensions: 3, 4 or 5 are supported")
    check_kernel(data, weight, attrs, transposed=False)
    before, after = _pads(attrs, _dims(data)[2:], _dims(weight)[2:])
    op = (relax.op.nn.conv1d, relax.op.nn.conv2d, relax.op.nn.conv3d)[rank - 1]
    out = op(
        data,
        weight,
        strides=list(attrs.get("strides", [1] * rank)),
        padding=before + after,
        dilation=_dilations(attrs, rank),
        groups=attrs.get("group", 1),
    )
    if bias is None:
        return out
    spread = [1, _dims(bias)[0]] + [1] * rank
    if _is_const(bias):
        return relax.op.add(out, _const(_value(bias, "bias").reshape(spread)))
    return relax.op.add(out, relax.op.reshape(bias, spread))


def _gemm(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    a, b, c = inputs[0], inputs[1], inputs[2]
    alpha, beta = attrs.get("alpha", 1.0), attrs.get("beta", 1.0)
    if attrs.get("transA", 0):
        a = relax.op.permute_dims(a, [1, 0])
    if _is_const(b):
        weight = _value(b, "weight")
        weight = weight.T if attrs.get("transB", 0) else weight
        b = _const(np.ascontiguousarray(weight * np.float32(alpha)))
    else:
        b = relax.op.permute_dims(b, [1, 0]) if attrs.get("transB", 0) else b
        a = a if alpha == 1.0 else relax.op.multiply(a, _const(alpha))
    out = relax.op.matmul(a, b)
    if c is None or beta == 0.0:
        return out
    if _is_const(c):
        c = _const(_value(c, "bias") * np.float32(beta))
    elif beta != 1.0:
        c = relax.op.multiply(c, _const(beta))
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
        low, high = _value(inputs[1], "lower bound"), _value(inputs[2], "upper bound")
    low = None if low is None or np.isnan(low) or np.isneginf(low) else float(low)
    high = None if high is None or np.isnan(high) or np.isposinf(high) else float(high)
    if low is None and high is None:
        return x
    dtype = x.ty.dtype.dtype
    if high is None:
        return relax.op.nn.relu(x) if low == 0 else relax.op.maximum(x, _const(low, dtype))
    if low is None:
        return relax.op.minimum(x, _const(high, dtype))
    return relax.op.clip(x, low, high)


def _pad(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x = inputs[0]
    rank = len(_dims(x))
    if attrs["opset"] < 11:
        pads, value = np.array(attrs["pads"]), attrs.get("value", 0.0)
        axes = list(range(rank))
    else:
        pads = _value(inputs[1], "padding")
        fill = _value(inputs[2], "fill value")
        value = 0.0 if fill is None else float(fill.item())
        given = _value(inputs[3], "list of axes")
        axes = list(range(rank)) if given is None else [int(a) % rank for a in given]
    before, after = np.zeros(rank, int), np.zeros(rank, int)
    before[axes], after[axes] = np.split(pads, 2)
    cut_before, cut_after = np.maximum(-before, 0), np.maximum(-after, 0)
    if cut_before.any() or cut_after.any():
        ends = [n - c for n, c in zip(_dims(x), cut_after.tolist(), strict=True)]
        x = bb.emit(relax.op.strided_slice(x, list(range(rank)), cut_before.tolist(), ends))
    before, after = np.maximum(before, 0), np.maximum(after, 0)
    if not (before.any() or after.any()):
        return x
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    mode = _text(attrs, "mode", "constant")
    width = np.stack([before, after], axis=1).ravel().tolist()
    return relax.op.nn.pad(x, width, modes[mode], value)


def _pool(bb: Any, inputs: list[Any], attrs: dict[str, Any], kind: str) -> Expr:
    if attrs["tvm_custom"]["num_outputs"] > 1:
        raise ModelError("the positions of the maxima are not supported: use its first output only")
    x, kernel = inputs[0], list(attrs["kernel_shape"])
    rank = len(kernel)
    if rank not in (1, 2, 3):
        raise ModelError(f"its window has {rank} dimensions: 1, 2 or 3 are supported")
    size, steps = _dims(x)[2:], list(attrs.get("strides", [1] * rank))
    dilations = _dilations(attrs, rank)
    before, after = _pads(attrs, size, tuple(kernel))
    counted = kind == "avg" and bool(attrs.get("count_include_pad", 0))
    extra = [0] * rank
    if attrs.get("ceil_mode", 0) and _text(attrs, "auto_pad", "NOTSET") == "NOTSET":
        for i in range(rank):
            whole, reach = size[i] + before[i] + after[i], (kernel[i] - 1) * dilations[i] + 1
            out = -(-(whole - reach) // steps[i]) + 1
            out -= (out - 1) * steps[i] >= size[i] + before[i]  # no window starts in the padding
            extra[i] = max(0, (out - 1) * steps[i] + reach - whole)
    if counted and any(extra):  # only the model's own pads count, not those that ceil_mode adds
        width = [0] * 4 + [p for pair in zip(before, after, strict=True) for p in pair]
        x = bb.emit(relax.op.nn.pad(x, width, "constant", 0.0))
        before, after, counted = [0] * rank, [0] * rank, False
    after = [a + e for a, e in zip(after, extra, strict=True)]
    op = getattr(relax.op.nn, f"{kind}_pool{rank}d")
    return op(x, kernel, steps, before + after, dilations, False, counted)


def _max_pool(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    return _pool(bb, inputs, attrs, "max")


def _average_pool(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    return _pool(bb, inputs, attrs, "avg")


def _reshape(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x = inputs[0]
    wanted = [int(d) for d in _value(inputs[1], "target shape")]
    own = _dims(x)
    if not attrs.get("allowzero", 0):
        wanted = [own[i] if d == 0 else d for i, d in enumerate(wanted)]
    if -1 in wanted:
        rest = int(np.prod([d for d in wanted if d != -1]))
        wanted[wanted.index(-1)] = int(np.prod(own)) // rest
    return x if tuple(wanted) == own else relax.op.reshape(x, wanted)


def _split(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x, parts = inputs[0], attrs["tvm_custom"]["num_outputs"]
    axis = attrs.get("axis", 0) % len(_dims(x))
    given = _value(inputs[1], "list of sizes") if attrs["opset"] >= 13 else attrs.get("split")
    if given is None:
        chunk = -(-_dims(x)[axis] // attrs.get("num_outputs", parts))
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
    return relax.op.multiply(_sum(bb, inputs, attrs), _const(1 / len(inputs)))


def _max(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    return _fold_pairs(bb, inputs, relax.op.maximum)


def _min(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    return _fold_pairs(bb, inputs, relax.op.minimum)


def _prelu(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x, slope = inputs[0], _value(inputs[1], "slope")
    wide = np.broadcast_to(slope, (1,) * (len(_dims(x)) - slope.ndim) + slope.shape)
    varying = [axis for axis, size in enumerate(wide.shape) if size != 1]
    if len(varying) <= 1:
        axis = varying[0] if varying else 1 % wide.ndim
        per_entry = np.broadcast_to(wide.reshape(-1), _dims(x)[axis])
        return relax.op.nn.prelu(x, _const(np.ascontiguousarray(per_entry)), axis)
    negative = relax.op.less(x, _const(0))
    return relax.op.where(negative, relax.op.multiply(x, _const(slope)), x)


def _swish(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x, alpha = inputs[0], attrs.get("alpha", 1.0)
    scaled = x if alpha == 1.0 else relax.op.multiply(x, _const(alpha))
    return relax.op.multiply(x, relax.op.sigmoid(scaled))


def _slice(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x = inputs[0]
    if attrs["opset"] < 10:
        starts, ends, axes, steps = attrs["starts"], attrs["ends"], attrs.get("axes"), None
    else:
        parts = ("starts", "ends", "axes", "steps")
        starts, ends, axes, steps = (_value(inputs[i + 1], p) for i, p in enumerate(parts))
    own = _dims(x)
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
    x, axis = inputs[0], attrs.get("axis", 0) % len(_dims(inputs[0]))
    indices = _value(inputs[1], "list of indices")
    size = _dims(x)[axis]
    if ((indices < -size) | (indices >= size)).any():
        raise ModelError(f"it reads past the {size} entries of axis {axis}")
    return relax.op.take(x, _const(indices % size, "int64"), axis=axis, mode="clip")


def _softmax(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x = inputs[0]
    own = _dims(x)
    flat = attrs["opset"] < 13  # early softmax runs over all axes from `axis` on
    axis = attrs.get("axis", 1 if flat else -1) % len(own)
    if not flat or axis == len(own) - 1:
        return relax.op.nn.softmax(x, axis=axis)
    rows = bb.emit(relax.op.reshape(x, [int(np.prod(own[:axis])), int(np.prod(own[axis:]))]))
    return relax.op.reshape(bb.emit(relax.op.nn.softmax(rows, axis=-1)), list(own))


def _pow(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    base, exponent = inputs[0], inputs[1]
    if _is_const(exponent):
        exponent = _const(_value(exponent, "exponent"), base.ty.dtype.dtype)
    return relax.op.power(base, exponent)


_PLACES = (*COORDINATES, "tf_half_pixel_for_nn")  # the last has no template


def _resize(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    x = inputs[0]
    own = _dims(x)
    rank = len(own)
    if rank != 4:
        raise ModelError(f"its input has {rank} dimensions: only NCHW pictures are resized")
    if (
        attrs.get("antialias", 0)
        or _text(attrs, "keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        raise ModelError("antialias and keep_aspect_ratio_policy are not supported")
    early = attrs["opset"] < 11
    if "scales" in attrs:  # Upsample, opset 7
        scales, sizes = np.array(attrs["scales"]), None
    else:
        scales = _value(inputs[1 if early else 2], "scale")
        sizes = None if early else _value(inputs[3], "size")
    axes = [int(a) % rank for a in attrs.get("axes", range(rank))]
    target = list(own)
    for i, axis in enumerate(axes):
        if sizes is not None and sizes.size:
            target[axis] = int(sizes[i])
        else:
            exact = float(scales[i]) * own[axis]
            target[axis] = int(np.floor(exact + 1e-6))
            if abs(exact - target[axis]) > 1e-4 * exact:
                raise ModelError(
                    f"scale {float(scales[i]):g} makes {exact:g} of {own[axis]} pixels: only "
                    "scales that give whole sizes are supported"
                )
    if target[:2] != list(own[:2]):
        raise ModelError("it resizes the batch or channel axis: only height and width are")
    method = {"nearest": "nearest_neighbor", "linear": "linear", "cubic": "cubic"}
    coordinates = _text(attrs, "coordinate_transformation_mode", "half_pixel")
    rounding = _text(attrs, "nearest_mode", "round_prefer_floor")
    if coordinates not in _PLACES:
        raise ModelError(f"coordinate_transformation_mode {coordinates!r} is not supported")
    kind = _text(attrs, "mode", "nearest")
    if kind not in method or (kind == "nearest" and rounding not in ROUNDINGS):
        raise ModelError(f"mode {kind!r} with nearest_mode {rounding!r} is not supported")
    return relax.op.image.resize2d(
        x,
        relax.ShapeExpr(target[2:]),
        layout="NCHW",
        method=method[kind],
        coordinate_transformation_mode="asymmetric" if early else coordinates,
        rounding_method="floor" if early else rounding,
        cubic_alpha=attrs.get("cubic_coeff_a", -0.75),
        cubic_exclude=attrs.get("exclude_outside", 0),
    )


def _upsample(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    return _resize(bb, inputs, {**attrs, "opset": 10})


def _dropout(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    training = _value(inputs[2], "training flag") if attrs["opset"] >= 12 else None
    if (training is not None and training.any()) or attrs["tvm_custom"]["num_outputs"] > 1:
        raise ModelError("it is in training mode: export the model for inference")
    return inputs[0]


def _identity(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    return inputs[0]


CONVERTERS: dict[str, Converter] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Conv": _conv,
    "Dropout": _dropout,
    "Gather": _gather,
    "Gemm": _gemm,
    "Identity": _identity,
    "Max": _max,
    "MaxPool": _max_pool,
    "Mean": _mean,
    "Min": _min,
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _pow,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sum": _sum,
    "Swish": _swish,
    "Upsample": _upsample,
}
