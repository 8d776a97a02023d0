"""What a kernel must compute, in NumPy and float64, on the packed layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tvmsep.contracts import Workload
from tvmsep.graph.numeric import convolve, pool, resize
from tvmsep.schedules.conv import conv_channels
from tvmsep.schedules.epilogue import activate_numpy

Array = np.ndarray[Any, Any]


def input_shapes(w: Workload) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of each kernel parameter but the output, in order."""
    if w.sources:
        return [(f"x{k}", shape) for k, shape in enumerate(w.source_shapes)]
    shapes: list[tuple[str, tuple[int, ...]]] = [("x", w.in_shape)]
    v = w.vectors
    match w.op:
        case "pointwise" | "dense":
            shapes.append(("w", (v.out_blocks, v.in_blocks * v.in_block, v.out_block)))
        case "depthwise":
            shapes.append(("w", (v.out_blocks, w.kh, w.kw, v.out_block)))
        case "dwpw":
            mid, last = map(input_shapes, w.parts)
            return [shapes[0], *((f"{name}_dw", shape) for name, shape in mid[1:]), *last[1:]]
        case "conv":
            blocks, lanes = conv_channels(v)
            shapes.append(("w", (v.out_blocks, blocks, w.kh, w.kw, lanes, v.out_block)))
        case "eltwise" if w.kind in ("add", "mul"):
            shapes.append(("y", w.in_shape))
        case "eltwise" if w.kind == "scale":
            shapes.append(("y", (w.n, w.in_blocks, 1, w.in_block)))
    if "bias" in w.epilogue:
        shapes.append(("bias", (v.out_blocks, v.out_block)))
    if "add" in w.epilogue:
        shapes.append(("residual", w.out_shape))
    if w.scaled:
        shapes.append(("scale", (w.n, w.in_blocks, 1, w.in_block)))
    return shapes


def input_dtypes(w: Workload) -> list[str]:
    """Of each kernel parameter but the output, in the order of `input_shapes`."""

    def dtype(name: str) -> str:
        return w.in_dtype if name == "x" else "float32" if name.startswith("bias") else w.dtype

    return [dtype(name) for name, _ in input_shapes(w)]


def example_inputs(w: Workload, seed: int) -> list[Array]:
    """Random parameters (without the output); what belongs to padding channels is zero."""
    rng = np.random.default_rng(seed)
    if w.op == "dwpw":
        mid, last = w.parts
        return [*example_inputs(mid, seed), *example_inputs(last, seed + 1)[1:]]
    fan_in = max(1, w.macs // max(1, w.n * w.oc * w.oh * w.ow))
    arrays = []
    for (name, shape), dtype in zip(input_shapes(w), input_dtypes(w), strict=True):
        a = rng.standard_normal(shape, dtype=np.float32)
        if name == "w":
            a *= np.float32((2 / fan_in) ** 0.5)
            if w.op in ("pointwise", "dense"):
                a[:, w.ic :] = 0
            elif w.op == "conv" and (b := w.vectors.in_block) and w.groups == 1 and w.ic % b:
                a[:, -1, :, :, w.ic % b :] = 0
        arrays.append(a.astype(dtype, copy=False))
    return arrays


def unblock(a: Array, channels: int) -> Array:
    """`[n, cb, p, b]` to `[n, channels, p]`."""
    n, cb, p, b = a.shape
    return a.transpose(0, 1, 3, 2).reshape(n, cb * b, p)[:, :channels]


def block(a: Array, b: int) -> Array:
    """`[n, c, p]` to `[n, ceil(c / b), p, b]`, zero-padded."""
    n, c, p = a.shape
    full = np.zeros((n, -(-c // b) * b, p), a.dtype)
    full[:, :c] = a
    return np.ascontiguousarray(full.reshape(n, -1, b, p).transpose(0, 1, 3, 2))


def plain_weight(packed: Array, w: Workload) -> Array:
    """A packed weight back in `[oc, ic / groups, kh, kw]`."""
    icg = w.ic // w.groups
    flat: Array
    match w.op:
        case "pointwise" | "dense":
            flat = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])
            return flat[: w.oc, :icg, None, None]
        case "depthwise":
            flat = packed.transpose(0, 3, 1, 2).reshape(-1, w.kh, w.kw)
            return flat[: w.oc, None]
        case _:
            ob, blocks, kh, kw, lanes, o = packed.shape
            flat = packed.transpose(0, 5, 1, 4, 2, 3).reshape(ob * o, blocks * lanes, kh, kw)
            return flat[: w.oc, :icg]


def finish(
    epilogue: Sequence[str], acc: Array, bias: Array | None, residual: Array | None
) -> Array:
    """The epilogue's steps, as `tvmsep.schedules.epilogue.finish` runs them in a kernel."""
    for step in epilogue:
        if step == "bias" and bias is not None:
            acc = acc + bias
        elif step == "add" and residual is not None:
            acc = acc + residual
        else:
            acc = activate_numpy(step, acc)
    return acc


def resample(x: Array, w: Workload) -> Array:
    """`x [n, ic, ih, iw]` to `[n, oc, oh, ow]`, by the workload's kind."""
    kind, *modes = w.kind.split(":")
    if kind == "shuffle":
        phases = x.reshape(w.n, w.sh, w.sw, -1, w.ih, w.iw)[:, :, :, : w.oc]
        whole = phases.transpose(0, 3, 4, 1, 5, 2).reshape(w.n, w.oc, w.ih * w.sh, w.iw * w.sw)
        top, left = w.pads[:2]
        return whole[:, :, top : top + w.oh, left : left + w.ow]
    if kind == "zeros":
        y = np.zeros((w.n, w.oc, w.oh, w.ow), x.dtype)
        y[:, :, : w.ih * w.sh : w.sh, : w.iw * w.sw : w.sw] = x
        return y
    method = "nearest_neighbor" if kind == "nearest" else kind
    attrs = {"method": method, "coordinate_transformation_mode": modes[0]}
    return resize(x, (w.oh, w.ow), attrs | {"rounding_method": modes[-1]})


def channels(x: Array, w: Workload) -> Array:
    """`x [n, ic, h, w]` to `[n, oc, h, w]`, by the workload's kind."""
    kind, _, number = w.kind.partition(":")
    if kind == "slice":
        return x[:, int(number) : int(number) + w.oc]
    if kind == "shuffle":
        return x.reshape(w.n, int(number), -1, w.ih, w.iw).swapaxes(1, 2).reshape(x.shape)
    return x


def reference(w: Workload, inputs: Sequence[Array], dtype: str = "float64") -> Array:
    """The output in `dtype` for packed `inputs`, packed (or plain) as the kernel stores it."""
    if w.op == "dwpw":
        mid, last = w.parts
        count = len(input_shapes(mid))
        return reference(last, [reference(mid, inputs[:count], dtype), *inputs[count:]], dtype)
    named = {n: a.astype(dtype) for (n, _), a in zip(input_shapes(w), inputs, strict=True)}
    if w.sources:
        parts = [unblock(a, c) for a, (c, _) in zip(named.values(), w.sources, strict=True)]
        plain = np.concatenate(parts, axis=1)
    else:
        plain = unblock(named["x"], w.ic) if w.in_block else named["x"]
    x = plain.reshape(w.n, w.ic, w.ih, w.iw)
    if w.scaled:
        x = x * unblock(named["scale"], w.ic)[..., None]
    match w.op:
        case "conv" | "pointwise" | "depthwise" | "dense":
            y = convolve(x, plain_weight(named["w"], w), w)
        case "pool":
            y = pool(x, w)
        case "eltwise" if "y" in named:
            other = unblock(named["y"], w.ic)
            other = other[..., None] if w.kind == "scale" else other.reshape(x.shape)
            y = x + other if w.kind == "add" else x * other
        case "resample":
            y = resample(x, w)
        case "channels":
            y = channels(x, w)
        case _:
            y = x
    y = y.reshape(w.n, w.oc, -1)
    bias = named.get("bias")
    res = named.get("residual")
    y = finish(
        w.epilogue,
        y,
        bias.reshape(-1)[: w.oc][None, :, None] if bias is not None else None,
        unblock(res, w.oc) if res is not None else None,
    )
    return block(y, w.out_block) if w.out_block else y


def relative_error(got: Array, want: Array, channels: int) -> float:
    """Largest error over the largest value, real channels only; infinite if any is not finite."""
    if got.ndim == 4:
        got, want = unblock(got, channels), unblock(want, channels)
    if not np.isfinite(got).all():
        return float("inf")
    scale = float(np.abs(want).max()) or 1.0
    return float(np.abs(got - want).max()) / scale
