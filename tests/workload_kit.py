"""Random workloads of every operator, small, with odd channels, strides, pads and batches."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from hypothesis import strategies as st

from tvmsep.contracts import Workload
from tvmsep.schedules.resample import COORDINATES, ROUNDINGS

ACTS = (
    "relu", "relu6", "hard_swish", "hard_sigmoid", "hard_sigmoid:0.2:0.5", "silu", "sigmoid",
    "clip:-1:2.5", "leaky_relu:0.1",
)  # fmt: skip

Blocks = Callable[[int], int]
"""The block that a tensor of so many channels lies in."""


@st.composite
def workloads(draw: st.DrawFn, op: str, blocks: Blocks) -> Workload:
    """Small workloads with odd channels, strides, pads, dilations, kernels and batches."""
    n = draw(st.integers(1, 2))
    ic = draw(st.sampled_from((1, 3, 8, 10, 16, 24, 40)))
    size = st.integers(1, 13)
    ih, iw = draw(size), draw(size)
    epilogue: list[str] = ["bias"] if draw(st.booleans()) else []
    if draw(st.booleans()):
        epilogue.append(draw(st.sampled_from(ACTS)))
    base = Workload(
        op=op,  # type: ignore[arg-type]
        n=n, ic=ic, ih=ih, iw=iw, oc=ic, in_block=blocks(ic),
        out_block=blocks(ic),
        in_split=draw(st.sampled_from(("rows", "channels"))),
        out_split=draw(st.sampled_from(("rows", "channels"))),
    )  # fmt: skip
    replace = msgspec.structs.replace
    if op == "pack":
        return replace(base, in_block=0)
    if op == "unpack":
        return replace(base, out_block=0)
    if op == "eltwise":
        kind = draw(st.sampled_from(("act", "add", "mul", "scale")))
        return replace(base, kind=kind, epilogue=tuple(e for e in epilogue if e != "bias"))
    if op == "resample":
        base = replace(base, epilogue=tuple(e for e in epilogue if e != "bias"))
        return draw(resamples(base, blocks))
    if op == "channels":
        base = replace(base, epilogue=tuple(e for e in epilogue if e != "bias"))
        return draw(moved_channels(base, blocks))
    if op == "pool" and draw(st.booleans()):
        return replace(base, kind="global_avg", kh=ih, kw=iw)
    if op == "dense":
        oc = draw(st.sampled_from((8, 10, 24, 33)))
        return replace(base, ih=1, iw=1, oc=oc, out_block=blocks(oc), epilogue=tuple(epilogue))
    oc = draw(st.sampled_from((8, 10, 16, 24)))
    if op == "pointwise":
        stride = draw(st.integers(1, 2))
        scaled = draw(st.booleans())
        w = replace(base, oc=oc, out_block=blocks(oc), sh=stride, sw=stride, scaled=scaled)
    else:
        kh, kw = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        dh, dw = draw(st.integers(1, 2)), draw(st.integers(1, 2))
        low_h, low_w = (kh - 1) * dh + 1 - ih, (kw - 1) * dw + 1 - iw
        top, left = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        bottom = draw(st.integers(max(0, low_h - top), max(0, low_h - top) + 2))
        right = draw(st.integers(max(0, low_w - left), max(0, low_w - left) + 2))
        strides = draw(st.sampled_from(((1, 1), (2, 2), (2, 1), (1, 3))))
        w = replace(
            base, kh=kh, kw=kw, dh=dh, dw=dw, pads=(top, left, bottom, right),
            sh=strides[0], sw=strides[1],
        )  # fmt: skip
        if op == "pool":
            kind = draw(st.sampled_from(("max", "avg", "avg_valid")))
            # A window that lies wholly in the padding has no maximum and no mean.
            pads = (min(top, kh - 1), min(left, kw - 1), 0, 0)
            grown_h, grown_w = max(ih, kh), max(iw, kw)
            return replace(w, kind=kind, dh=1, dw=1, pads=pads, ih=grown_h, iw=grown_w)
        if op == "dwpw":
            mid = tuple(e for e in epilogue if draw(st.booleans()))
            w = replace(
                w, groups=ic, oc=oc, out_block=blocks(oc), mid_epilogue=mid,
                out_split="rows",
            )  # fmt: skip
        elif op == "depthwise":
            oc = ic * draw(st.sampled_from((1, 1, 2, 3)))
            w = replace(w, groups=ic, oc=oc, out_block=blocks(oc))
        else:
            plain = ic <= 4 and draw(st.booleans())
            w = replace(w, oc=oc, out_block=blocks(oc))
            if plain:
                w = replace(w, in_block=0)
            elif ic % 16 == 0 and oc % 16 == 0 and draw(st.booleans()):
                w = replace(w, groups=ic // 8, in_block=8, out_block=8)
    if draw(st.booleans()):
        epilogue.insert(draw(st.integers(0, len(epilogue))), "add")
    return replace(w, epilogue=tuple(epilogue))


@st.composite
def resamples(draw: st.DrawFn, base: Workload, blocks: Blocks) -> Workload:
    """Every kind, larger and smaller, with sizes that do not divide each other."""
    replace = msgspec.structs.replace
    kind = draw(st.sampled_from(("nearest", "linear", "shuffle", "zeros")))
    if kind in ("nearest", "linear"):
        modes = [kind, draw(st.sampled_from(COORDINATES))]
        if kind == "nearest":
            modes.append(draw(st.sampled_from(ROUNDINGS)))
        size = (draw(st.integers(1, 30)), draw(st.integers(1, 30)))
        return replace(base, kind=":".join(modes), size=size)
    sh, sw = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    if kind == "zeros":
        grown = ((base.ih - 1) * sh + draw(st.integers(1, 2)),
                 (base.iw - 1) * sw + draw(st.integers(1, 2)))  # fmt: skip
        return replace(base, kind=kind, sh=sh, sw=sw, size=grown)
    top, left = draw(st.integers(0, sh - 1)), draw(st.integers(0, sw - 1))
    size = (base.ih * sh - top, base.iw * sw - left)
    padded = replace(
        base, kind=kind, sh=sh, sw=sw, pads=(top, left, 0, 0), size=size,
        ic=sh * sw * base.out_blocks * base.out_block,
    )  # fmt: skip
    if draw(st.booleans()):
        return padded
    return replace(padded, ic=sh * sw * base.oc, in_block=blocks(sh * sw * base.oc))


@st.composite
def moved_channels(draw: st.DrawFn, base: Workload, blocks: Blocks) -> Workload:
    """Joined, cut and interleaved, on and off the blocks' boundaries."""
    replace = msgspec.structs.replace
    kind = draw(st.sampled_from(("concat", "slice", "shuffle")))
    if kind == "slice":
        first = draw(st.integers(0, base.ic - 1))
        oc = draw(st.integers(1, base.ic - first))
        return replace(base, kind=f"slice:{first}", oc=oc, out_block=blocks(oc))
    if kind == "shuffle":
        groups = draw(st.sampled_from([g for g in (1, 2, 3, 4, 5) if base.ic % g == 0]))
        return replace(base, kind=f"shuffle:{groups}")
    parts = draw(st.lists(st.sampled_from((1, 3, 4, 8, 12, 16, 24, 30)), min_size=1, max_size=4))
    total = sum(parts)
    return replace(
        base, kind="concat", ic=total, oc=total, out_block=blocks(total),
        in_block=blocks(parts[0]), sources=tuple((c, blocks(c)) for c in parts),
    )  # fmt: skip
