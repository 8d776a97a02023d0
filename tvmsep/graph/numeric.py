"""Convolution and pooling in NumPy, in whatever precision the input has: the reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmsep.contracts import Workload

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
