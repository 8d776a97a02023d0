"""Pooling in channel blocks: max, average (padding counted or not) and global average.

Strategy
    1. A channel block is one vector; windows are unrolled like depthwise taps, reads outside the
       image give the reduction's identity.
    2. `tile_w` outputs of a row are in registers at once; global pooling instead reduces
       `tile_w` channel blocks at once, which hides the add latency.
    3. Split over threads by channel blocks for global pooling, else as the layout says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules import epilogue
from tvmsep.schedules.common import divisors, finish_tile, prim_func, register_tile

if TYPE_CHECKING:
    from tvm import s_tir, tirx

LOWEST = -3.4028234663852886e38


def mean(w: Workload, total: Any, h: Any, col: Any) -> Any:
    """What becomes of a window's sum at output row `h`, column `col`; a maximum stays."""
    from tvm import te, tirx

    def span(o: Any, stride: int, k: int, before: int, size: int) -> Any:
        start = o * stride - before
        return te.min(start + k, size) - te.max(start, 0)

    if w.kind == "avg":
        return total * tirx.const(1.0 / (w.kh * w.kw), "float32")
    if w.kind == "avg_valid":
        rows = span(h, w.sh, w.kh, w.pads[0], w.ih)
        cols = span(col, w.sw, w.kw, w.pads[1], w.iw)
        return total / tirx.Cast("float32", rows * cols)
    return total


class Pool:
    """See the module's docstring."""

    name = "pool"
    version = 1
    finish = staticmethod(epilogue.finish)

    def accepts(self, w: Workload, t: Target) -> bool:
        """Blocked, same block on both sides."""
        return w.op == "pool" and w.in_block > 0 and w.in_block == w.out_block

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x `in_shape`, out `out_shape`."""
        from tvm import te, tirx

        x = te.placeholder(w.in_shape, name="x", dtype=w.in_dtype)
        if w.kind == "global_avg":
            pixel = te.reduce_axis((0, w.ih * w.iw), name="pixel")
            acc = te.compute(
                (w.n, w.in_blocks, w.in_block),
                lambda n, cb, i: te.sum(x[n, cb, pixel, i].astype("float32"), axis=pixel),
                name="acc",
            )
            scale = tirx.const(1.0 / (w.ih * w.iw), "float32")
            out = te.compute(
                w.out_shape,
                lambda n, cb, p, i: self.finish(
                    w.epilogue, acc[n, cb, i] * scale, None, None
                ).astype(w.out_dtype),
                name="out",
            )
            return prim_func([x, out])
        kh = te.reduce_axis((0, w.kh), name="kh")
        kw = te.reduce_axis((0, w.kw), name="kw")
        top, left = w.pads[:2]
        largest = w.kind == "max"

        def tap(n: Any, cb: Any, h: Any, col: Any, i: Any) -> Any:
            row, column = h * w.sh + kh * w.dh - top, col * w.sw + kw * w.dw - left
            inside = tirx.all(row >= 0, row < w.ih, column >= 0, column < w.iw)
            identity = tirx.const(LOWEST if largest else 0.0, "float32")
            value = x[n, cb, row * w.iw + column, i].astype("float32")
            # Rounded-up output sizes read past the stated padding: always guard.
            return te.if_then_else(inside, value, identity)

        reducer = te.max if largest else te.sum
        acc = te.compute(
            (w.n, w.out_blocks, w.oh, w.ow, w.out_block),
            lambda n, cb, h, col, i: reducer(tap(n, cb, h, col, i), axis=[kh, kw]),
            name="acc",
        )

        def final(n: Any, cb: Any, p: Any, i: Any) -> Any:
            h, col = te.div(p, w.ow), te.indexmod(p, w.ow)
            value = mean(w, acc[n, cb, h, col, i], h, col)
            return self.finish(w.epilogue, value, None, None).astype(w.out_dtype)

        out = te.compute(w.out_shape, final, name="out")
        return prim_func([x, out])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """One knob: how many accumulators at once."""
        run = w.out_blocks if w.kind == "global_avg" else w.ow
        return Space({"tile": divisors(run, min(16, t.vector_registers - 2))})

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """Enough accumulators to hide the add latency, without starving a thread."""
        space = self.space(w, t, threads)
        run = w.out_blocks if w.kind == "global_avg" else w.ow

        def cost(tile: Any) -> tuple[float, int]:
            chunks = run // tile if w.kind == "global_avg" else w.out_blocks
            waste = -(-chunks // threads) * threads / chunks
            return (waste * max(1.0, t.fma_latency_cycles / tile), -tile)

        return Config(tile=min(space.knobs["tile"], key=cost))

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The docstring's steps, in s_tir primitives."""
        acc, out = sch.get_sblock("acc"), sch.get_sblock("out")
        n, cb, p, i = sch.get_loops(out)
        if w.kind == "global_avg":
            co, ci = sch.split(cb, [None, c.int("tile")])
            sch.reorder(n, co, ci, p, i)
            at = sch.fuse(n, co)
            sch.parallel(at)
            register_tile(sch, acc, at, ("pixel",), {}, vector_axis=2)
            finish_tile(sch, (ci, p), i)
            return
        h, col = sch.split(p, [None, w.ow])
        wo, wi = sch.split(col, [None, c.int("tile")])
        if w.out_split == "rows":
            sch.reorder(n, h, cb, wo, wi, i)
            sch.parallel(sch.fuse(n, h))
        else:
            sch.reorder(n, cb, h, wo, wi, i)
            sch.parallel(sch.fuse(n, cb))
        register_tile(sch, acc, wo, ("kh", "kw"), {"kh": 0, "kw": 0}, vector_axis=4)
        finish_tile(sch, (wi,), i)


TEMPLATE = Pool()
