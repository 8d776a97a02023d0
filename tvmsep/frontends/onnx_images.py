"""Converters of what works on pictures: convolutions, pads, pools, resizing."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tvmsep.contracts import ModelError
from tvmsep.frontends.onnx_values import Expr, const, dims, is_const, text_of, value_of
from tvmsep.schedules.resample import COORDINATES, ROUNDINGS


def _pads(
    attrs: dict[str, Any], shape: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[list[int], list[int]]:
    """Pads before and after each spatial axis, `auto_pad` resolved."""
    rank = len(kernel)
    mode = text_of(attrs, "auto_pad", "NOTSET")
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
    (channels, *_), (first, second, *image) = dims(data)[1:], dims(weight)
    groups = attrs.get("group", 1)
    into, out = (first, second) if transposed else (second * groups, first)
    fits = groups > 0 and into == channels and (channels if transposed else out) % groups == 0
    if not fits or list(attrs.get("kernel_shape", image)) != list(image):
        raise ModelError(
            f"its kernel {list(dims(weight))} in {groups} groups does not fit an input of "
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
    if "output_shape" not in attrs or text_of(attrs, "auto_pad", "NOTSET") not in ("", "NOTSET"):
        return
    image, kernel = dims(data)[2:], dims(weight)[2:]
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


def conv(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    """A convolution of one, two or three dimensions, its bias added."""
    data, weight, bias = inputs[0], inputs[1], inputs[2]
    rank = len(dims(data)) - 2
    if rank not in (1, 2, 3):
        raise ModelError(f"its input has {rank + 2} dimensions: 3, 4 or 5 are supported")
    check_kernel(data, weight, attrs, transposed=False)
    before, after = _pads(attrs, dims(data)[2:], dims(weight)[2:])
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
    spread = [1, dims(bias)[0]] + [1] * rank
    if is_const(bias):
        return relax.op.add(out, const(value_of(bias, "bias").reshape(spread)))
    return relax.op.add(out, relax.op.reshape(bias, spread))


def pad(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    """Constant, reflected or repeated edges, by constant widths."""
    x = inputs[0]
    rank = len(dims(x))
    if attrs["opset"] < 11:
        pads, value = np.array(attrs["pads"]), attrs.get("value", 0.0)
        axes = list(range(rank))
    else:
        pads = value_of(inputs[1], "padding")
        fill = value_of(inputs[2], "fill value")
        value = 0.0 if fill is None else float(fill.item())
        given = value_of(inputs[3], "list of axes")
        axes = list(range(rank)) if given is None else [int(a) % rank for a in given]
    before, after = np.zeros(rank, int), np.zeros(rank, int)
    before[axes], after[axes] = np.split(pads, 2)
    cut_before, cut_after = np.maximum(-before, 0), np.maximum(-after, 0)
    if cut_before.any() or cut_after.any():
        ends = [n - c for n, c in zip(dims(x), cut_after.tolist(), strict=True)]
        x = bb.emit(relax.op.strided_slice(x, list(range(rank)), cut_before.tolist(), ends))
    before, after = np.maximum(before, 0), np.maximum(after, 0)
    if not (before.any() or after.any()):
        return x
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    mode = text_of(attrs, "mode", "constant")
    width = np.stack([before, after], axis=1).ravel().tolist()
    return relax.op.nn.pad(x, width, modes[mode], value)


def _pool(bb: Any, inputs: list[Any], attrs: dict[str, Any], kind: str) -> Expr:
    if attrs["tvm_custom"]["num_outputs"] > 1:
        raise ModelError("the positions of the maxima are not supported: use its first output only")
    x, kernel = inputs[0], list(attrs["kernel_shape"])
    rank = len(kernel)
    if rank not in (1, 2, 3):
        raise ModelError(f"its window has {rank} dimensions: 1, 2 or 3 are supported")
    size, steps = dims(x)[2:], list(attrs.get("strides", [1] * rank))
    dilations = _dilations(attrs, rank)
    before, after = _pads(attrs, size, tuple(kernel))
    counted = kind == "avg" and bool(attrs.get("count_include_pad", 0))
    extra = [0] * rank
    if attrs.get("ceil_mode", 0) and text_of(attrs, "auto_pad", "NOTSET") == "NOTSET":
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


def max_pool(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    """The largest of each window."""
    return _pool(bb, inputs, attrs, "max")


def average_pool(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    """The mean of each window."""
    return _pool(bb, inputs, attrs, "avg")


_PLACES = (*COORDINATES, "tf_half_pixel_for_nn")  # the last has no template


def resize(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    """Height and width to another size, whole numbers of pixels."""
    x = inputs[0]
    own = dims(x)
    rank = len(own)
    if rank != 4:
        raise ModelError(f"its input has {rank} dimensions: only NCHW pictures are resized")
    if (
        attrs.get("antialias", 0)
        or text_of(attrs, "keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        raise ModelError("antialias and keep_aspect_ratio_policy are not supported")
    early = attrs["opset"] < 11
    if "scales" in attrs:  # Upsample, opset 7
        scales, sizes = np.array(attrs["scales"]), None
    else:
        scales = value_of(inputs[1 if early else 2], "scale")
        sizes = None if early else value_of(inputs[3], "size")
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
    coordinates = text_of(attrs, "coordinate_transformation_mode", "half_pixel")
    rounding = text_of(attrs, "nearest_mode", "round_prefer_floor")
    if coordinates not in _PLACES:
        raise ModelError(f"coordinate_transformation_mode {coordinates!r} is not supported")
    kind = text_of(attrs, "mode", "nearest")
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


def upsample(bb: Any, inputs: list[Any], attrs: dict[str, Any]) -> Expr:
    """Resize, as it was before opset 10."""
    return resize(bb, inputs, {**attrs, "opset": 10})
