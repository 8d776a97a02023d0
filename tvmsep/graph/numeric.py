"""Convolution, pooling, resizing in NumPy, in whatever precision the input has: the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tvmsep.contracts import ModelError, Workload

Array = np.ndarray[Any, Any]


def windows(x: Array, w: Workload, fill: float) -> Array:
    """`[n, c, ih, iw]` to `[n, c, oh, ow, kh, kw]`, a view of the padded image."""
    top, left, bottom, right = w.pads
    down = max(0, (w.oh - 1) * w.sh + (w.kh - 1) * w.dh + 1 - w.ih - top)
    across = max(0, (w.ow - 1) * w.sw + (w.kw - 1) * w.dw + 1 - w.iw - left)
    pad = ((0, 0), (0, 0), (top, max(bottom, down)), (left, max(right, across)))
    x = np.pad(x, pad, constant_values=fill)
    span = ((w.kh - 1) * w.dh + 1, (w.kw - 1) * w.dw + 1)
    view = np.lib.stride_tricks.sliding_window_view(x, span, axis=(2, 3))
    return view[:, :, :: w.sh, :: w.sw, :: w.dh, :: w.dw][:, :, : w.oh, : w.ow]


def convolve(x: Array, weight: Array, w: Workload) -> Array:
    """`x [n, ic, ih, iw]`, `weight [oc, ic / groups, kh, kw]` to `[n, oc, oh, ow]`.

    One pass a kernel tap: a product of matrices, or of vectors where each group is one channel.
    """
    g, n = w.groups, w.n
    icg, ocg = w.ic // g, w.oc // g
    view = windows(x, w, 0.0)
    out = np.zeros((n, g, ocg, w.oh * w.ow), x.dtype)
    for i in range(w.kh):
        for j in range(w.kw):
            image = view[..., i, j].reshape(n, g, icg, -1)
            tap = weight[:, :, i, j].reshape(g, ocg, icg)
            out += image * tap if icg == 1 else tap @ image
    return out.reshape(n, w.oc, w.oh, w.ow)


def pool(x: Array, w: Workload) -> Array:
    """`x [n, c, ih, iw]` to `[n, c, oh, ow]`."""
    if w.kind == "global_avg":
        return np.asarray(x.mean(axis=(2, 3), keepdims=True))
    if w.kind == "max":
        return np.asarray(windows(x, w, -np.inf).max(axis=(4, 5)))
    total: Array = windows(x, w, 0.0).sum(axis=(4, 5))
    if w.kind == "avg":
        return total / (w.kh * w.kw)
    inside: Array = windows(np.ones_like(x), w, 0.0).sum(axis=(4, 5))
    return total / inside


def convolve_transposed(x: Array, weight: Array, attrs: Mapping[str, Any]) -> Array:
    """`x [n, ic, ih, iw]`, `weight [ic, oc / groups, kh, kw]`: each pixel adds its kernel."""
    groups = attrs["groups"]
    (sh, sw), (dh, dw), (eh, ew) = (attrs[k] for k in ("strides", "dilation", "output_padding"))
    pads = attrs["padding"]
    top, left, bottom, right = pads if len(pads) == 4 else list(pads) * 2
    n, ic, h, w = x.shape
    _, ocg, kh, kw = weight.shape
    high, wide = (h - 1) * sh + (kh - 1) * dh + 1 + eh, (w - 1) * sw + (kw - 1) * dw + 1 + ew
    out = np.zeros((n, groups, ocg, high, wide), x.dtype)
    image = x.reshape(n, groups, ic // groups, h * w)
    for i in range(kh):
        for j in range(kw):
            tap = weight[:, :, i, j].reshape(groups, ic // groups, ocg).swapaxes(1, 2)
            rows, columns = slice(i * dh, i * dh + h * sh, sh), slice(j * dw, j * dw + w * sw, sw)
            part = (tap @ image).reshape(n, groups, ocg, h, w)
            out[..., rows, columns][..., :h, :w] += part
    whole = out.reshape(n, groups * ocg, high, wide)
    return np.ascontiguousarray(whole[:, :, top : high - bottom, left : wide - right])


def resize(x: Array, size: Sequence[int], attrs: Mapping[str, Any]) -> Array:
    """`x [n, c, ih, iw]` to `size`, as `relax.image.resize2d` does: a matrix an axis."""
    rows, columns = (
        _resize_matrix(x.shape[axis], out, attrs).astype(x.dtype)
        for axis, out in zip((2, 3), size, strict=True)
    )
    return np.asarray(rows @ x @ columns.T)


def _resize_matrix(size: int, out: int, attrs: Mapping[str, Any]) -> Array:
    """`[out, size]`: how much each old pixel gives to each new one."""
    at = np.arange(out, dtype=np.float64)
    mode = attrs["coordinate_transformation_mode"]
    match mode:
        case "half_pixel":
            at = (at + 0.5) * size / out - 0.5
        case "pytorch_half_pixel":
            at = (at + 0.5) * size / out - 0.5 if out > 1 else at * 0
        case "align_corners":
            at = at * (size - 1) / (out - 1) if out > 1 else at * 0
        case "asymmetric":
            at = at * size / out
        case _:
            raise ModelError(f"no NumPy reference for coordinate_transformation_mode {mode}")
    taps: list[tuple[Array, Any]]
    if attrs["method"] == "nearest_neighbor":
        near = {
            "round": np.floor(at + 0.5), "round_prefer_ceil": np.floor(at + 0.5),
            "round_prefer_floor": np.ceil(at - 0.5), "floor": np.floor(at + 1e-5),
            "ceil": np.ceil(at - 1e-5),
        }[attrs["rounding_method"]]  # fmt: skip
        taps = [(near, np.ones(out))]
    else:
        low = np.floor(at)
        t = at - low
        if attrs["method"] == "linear":
            taps = [(low, 1 - t), (low + 1, t)]
        else:
            a = attrs["cubic_alpha"]
            taps = [
                (low - 1, a * (t**3 - 2 * t**2 + t)),
                (low, (a + 2) * t**3 - (a + 3) * t**2 + 1),
                (low + 1, -(a + 2) * t**3 + (2 * a + 3) * t**2 - a * t),
                (low + 2, a * (t**2 - t**3)),
            ]
    matrix = np.zeros((out, size))
    for place, share in taps:
        if attrs["method"] == "cubic" and attrs["cubic_exclude"]:
            share = np.where((place < 0) | (place >= size), 0.0, share)
        np.add.at(matrix, (np.arange(out), np.clip(place, 0, size - 1).astype(int)), share)
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True))
