"""Images change their size in the blocked layout: each output vector is read from a few input ones.

Kinds
    `nearest:COORDINATES:ROUNDING` and `linear:COORDINATES`, as ONNX's Resize names them;
    `shuffle`, which puts the `sh * sw` phases of a transposed convolution in their places (the
    sub-pixel form, arXiv 1609.05158). They follow each other in the input's channels, each padded
    to whole blocks, or packed where channels are few;
    `zeros`, which puts `sh * sw - 1` zeros between pixels, for transposed convolutions in groups.

Strategy
    1. One channel block is one vector, so that no kind gathers: a pixel's place depends on its row
       and column alone. Places are fractions of integers, exact as no float is. Packed phases move
       in runs that lie in one block on both sides.
    2. `tile` pixels of a row are unrolled, so that their loads overlap.
    3. Split over threads as the layout says.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules import epilogue
from tvmsep.schedules.common import divisors, finish_tile, prim_func

if TYPE_CHECKING:
    from tvm import s_tir, tirx

COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
ROUNDINGS = ("round", "round_prefer_ceil", "round_prefer_floor", "floor", "ceil")


def _place(mode: str, size: int, out: int) -> tuple[int, int, int]:
    """Output pixel `o` lies at input pixel `(a * o + b) / d`: a, b and d."""
    if mode == "asymmetric":
        return size, 0, out
    if mode == "align_corners":
        return (size - 1, 0, out - 1) if out > 1 else (0, 0, 1)
    if mode == "pytorch_half_pixel" and out == 1:
        return 0, 0, 1
    return 2 * size, size - out, 2 * out


def run_of_channels(w: Workload) -> int:
    """Channels that move together."""
    if w.kind != "shuffle":
        return w.out_block
    return math.gcd(w.ic // (w.sh * w.sw), w.in_block, w.out_block)


class Resample:
    """See the module's docstring."""

    name = "resample"
    version = 1
    finish = staticmethod(epilogue.finish)

    def accepts(self, w: Workload, t: Target) -> bool:
        """Blocked, same block on both sides."""
        kind, *modes = w.kind.split(":")
        if kind == "shuffle" and not modes and w.ic == w.sh * w.sw * w.oc:
            return w.op == "resample" and w.in_block > 0 and w.out_block > 0
        same = w.ic == w.oc and modes[:1] and modes[0] in COORDINATES
        known = {
            "nearest": same and len(modes) == 2 and modes[1] in ROUNDINGS,
            "linear": same and len(modes) == 1,
            "shuffle": w.ic == w.sh * w.sw * w.out_blocks * w.out_block,
            "zeros": w.ic == w.oc and not modes,
        }
        return w.op == "resample" and bool(known.get(kind)) and 0 < w.in_block == w.out_block

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x `in_shape`, out `out_shape`."""
        from tvm import te, tirx

        x = te.placeholder(w.in_shape, name="x", dtype=w.dtype)
        kind, *modes = w.kind.split(":")

        def at(n: Any, cb: Any, row: Any, col: Any, i: Any) -> Any:
            return x[n, cb, row * w.iw + col, i].astype("float32")

        def nearest(o: Any, size: int, out: int) -> Any:
            a, b, d = _place(modes[0], size, out)
            up, down = {
                "floor": (0, 1), "ceil": (d - 1, 1), "round_prefer_floor": (d - 1, 2),
            }.get(modes[1], (d, 2))  # fmt: skip
            return te.min(te.max(down * (a * o + b) + up, 0) // (down * d), size - 1)

        def between(o: Any, size: int, out: int) -> tuple[Any, Any, Any]:
            a, b, d = _place(modes[0], size, out)
            place = te.max(a * o + b, 0) if b < 0 else a * o + b
            low = te.min(place // d, size - 1)
            share = tirx.Cast("float32", place % d) * tirx.const(1.0 / d, "float32")
            return low, te.min(low + 1, size - 1), share

        def value(n: Any, cb: Any, p: Any, i: Any) -> Any:
            h, col = te.div(p, w.ow), te.indexmod(p, w.ow)
            if kind == "nearest":
                v = at(n, cb, nearest(h, w.ih, w.oh), nearest(col, w.iw, w.ow), i)
            elif kind == "linear":
                top, bottom, down = between(h, w.ih, w.oh)
                left, right, across = between(col, w.iw, w.ow)
                one = tirx.const(1.0, "float32")
                above, below = (
                    at(n, cb, r, left, i) * (one - across) + at(n, cb, r, right, i) * across
                    for r in (top, bottom)
                )
                v = above * (one - down) + below * down
            elif kind == "shuffle":
                row, column = h + w.pads[0], col + w.pads[1]
                phase = row % w.sh * w.sw + column % w.sw
                run = run_of_channels(w)
                first = (phase * (w.ic // (w.sh * w.sw)) + cb * w.out_block) // run + i // run
                block, lane = first // (w.in_block // run), first % (w.in_block // run) * run
                v = at(n, block, row // w.sh, column // w.sw, lane + i % run)
                if w.ic == w.sh * w.sw * w.oc and w.oc % w.out_block:
                    inside = cb * (w.out_block // run) + i // run < w.oc // run
                    v = te.if_then_else(inside, v, tirx.const(0, "float32"))
            else:
                here = tirx.all(h % w.sh == 0, h // w.sh < w.ih, col % w.sw == 0,
                                col // w.sw < w.iw)  # fmt: skip
                v = te.if_then_else(here, at(n, cb, h // w.sh, col // w.sw, i),
                                    tirx.const(0, "float32"))  # fmt: skip
            return self.finish(w.epilogue, v, None, None).astype(w.dtype)

        return prim_func([x, te.compute(w.out_shape, value, name="out")])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """One knob: the unrolled pixels of a row."""
        return Space({"tile": divisors(w.ow, 16)})

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """About four: each needs up to four loads."""
        return Config(tile=min(divisors(w.ow, 16), key=lambda d: abs(d - 4)))

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The docstring's steps, in s_tir primitives."""
        n, cb, p, i = sch.get_loops(sch.get_sblock("out"))
        io, lanes = sch.split(i, [None, run_of_channels(w)])
        h, col = sch.split(p, [None, w.ow])
        _, wi = sch.split(col, [None, c.int("tile")])
        if w.out_split == "rows":
            sch.reorder(n, h, cb)
            sch.parallel(sch.fuse(n, h))
        else:
            sch.parallel(sch.fuse(n, cb))
        finish_tile(sch, (wi, io), lanes)


TEMPLATE = Resample()
