"""Weights in the layouts that kernels read, and the operator that needs the fewest of them."""

from __future__ import annotations

import msgspec
import numpy as np

from tvmsep.contracts import ModelError, Workload
from tvmsep.graph.ir import Array


def specialise(w: Workload, weight: Array) -> tuple[Workload, Array]:
    """The cheapest operator that computes this convolution, and its weight for it."""
    replace = msgspec.structs.replace
    if w.groups == 1 and (w.kh, w.kw) == (1, 1) and not any(w.pads) and w.in_block:
        if w.ih * w.iw == 1:
            return replace(w, op="dense", sh=1, sw=1, dh=1, dw=1), weight
        return replace(w, op="pointwise", dh=1, dw=1), weight
    if w.groups > 1 and w.groups == w.ic and w.oc % w.ic == 0:
        return replace(w, op="depthwise"), weight
    if w.groups > 1:
        return _merge_groups(w, weight)
    return w, weight


def _merge_groups(w: Workload, weight: Array) -> tuple[Workload, Array]:
    """Fewer, larger groups that fill whole vectors, with zeros between the old ones."""
    v = w.vectors

    def whole(g: int) -> bool:
        in_ok = not v.in_block or (w.ic // g) % v.in_block == 0
        return in_ok and (w.oc // g) % v.out_block == 0

    g = next((d for d in range(w.groups, 0, -1) if w.groups % d == 0 and whole(d)), 1)
    return msgspec.structs.replace(w, groups=g), spread_groups(weight, w.groups, g)


def spread_groups(weight: Array, groups: int, fewer: int) -> Array:
    """`[oc, ic / groups, kh, kw]` to `[oc, ic / fewer, kh, kw]`, zeros where groups were apart."""
    oc, icg, kh, kw = weight.shape
    merged = groups // fewer
    full = np.zeros((oc, icg * merged, kh, kw), weight.dtype)
    for o in range(oc):
        k = o // (oc // groups) % merged
        full[o, k * icg : (k + 1) * icg] = weight[o]
    return full


def phase_weights(weight: Array, strides: tuple[int, int], padded: int) -> Array:
    """`[oc, ic, kh, kw]` of a transposed convolution to `[phase * padded + oc, ic, taps, taps]`.

    Phase `r` of an axis has the taps `r`, `r + stride`, ..., the last of them first.
    """
    oc, ic, kh, kw = weight.shape
    (sh, sw), (th, tw) = strides, (-(-kh // strides[0]), -(-kw // strides[1]))
    full = np.zeros((padded, ic, th * sh, tw * sw), weight.dtype)
    full[:oc, :, :kh, :kw] = weight
    split = full.reshape(padded, ic, th, sh, tw, sw)[:, :, ::-1, :, ::-1]
    return np.ascontiguousarray(split.transpose(3, 5, 0, 1, 2, 4).reshape(-1, ic, th, tw))


def pack_bias(bias: Array, w: Workload) -> Array:
    """`[oc]` to `[ob, o]`, fp32."""
    v = w.vectors
    full = np.zeros(v.out_blocks * v.out_block, np.float32)
    full[: w.oc] = bias
    return full.reshape(v.out_blocks, v.out_block)


def pack_weight(weight: Array, w: Workload) -> Array:
    """`[oc, ic / groups, kh, kw]` to the layout that the workload's template documents.

    Raises:
        ModelError: a weight is too large for the workload's dtype.
    """
    limit = float(np.finfo(w.dtype).max)
    if float(np.abs(weight).max(initial=0)) > limit:
        raise ModelError(
            f"{w.label} has a weight beyond {limit:g}, the largest {w.dtype}: build it in float32"
        )
    return _packed(weight, w.vectors).astype(w.dtype, copy=False)


def _packed(weight: Array, w: Workload) -> Array:
    ob, o = w.out_blocks, w.out_block
    oc, icg, kh, kw = weight.shape
    if w.op == "depthwise":
        full = np.zeros((ob * o, kh, kw), np.float32)
        full[:oc] = weight[:, 0]
        return np.ascontiguousarray(full.reshape(ob, o, kh, kw).transpose(0, 2, 3, 1))
    lanes = w.in_block or icg
    blocks = -(-icg // lanes)
    padded = np.zeros((ob * o, blocks * lanes, kh, kw), np.float32)
    padded[:oc, :icg] = weight
    if w.op in ("pointwise", "dense"):
        return np.ascontiguousarray(padded.reshape(ob, o, -1).transpose(0, 2, 1))
    split = padded.reshape(ob, o, blocks, lanes, kh, kw)
    return np.ascontiguousarray(split.transpose(0, 2, 4, 5, 3, 1))
