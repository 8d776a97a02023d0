"""Elementwise operators that no producer could take in, without leaving the blocked layout.

Kinds: `act` (one input), `add` and `mul` (two of the same shape), `scale` (an activation times
one factor a channel: the end of a squeeze-and-excite block).

Strategy
    1. One channel block is one vector; `tile` pixels are unrolled so that loads overlap.
    2. Split over threads as the layout says, so that each thread works on what lies in its cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules import epilogue
from tvmsep.schedules.common import divisors, prim_func

if TYPE_CHECKING:
    from tvm import s_tir, tirx


class Eltwise:
    """See the module's docstring."""

    name = "eltwise"
    version = 1
    finish = staticmethod(epilogue.finish)

    def accepts(self, w: Workload, t: Target) -> bool:
        """Same blocked shape in and out."""
        known = w.kind in ("act", "add", "mul", "scale")
        return w.op == "eltwise" and known and w.in_shape == w.out_shape and w.in_block > 0

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x, the second input if there is one, out."""
        from tvm import te

        x = te.placeholder(w.in_shape, name="x", dtype=w.dtype)
        y = None
        if w.kind in ("add", "mul"):
            y = te.placeholder(w.in_shape, name="y", dtype=w.dtype)
        elif w.kind == "scale":
            y = te.placeholder((w.n, w.in_blocks, 1, w.in_block), name="y", dtype=w.dtype)

        def value(n: Any, cb: Any, p: Any, i: Any) -> Any:
            v = x[n, cb, p, i].astype("float32")
            if y is not None:
                other = y[n, cb, 0 if w.kind == "scale" else p, i].astype("float32")
                v = v + other if w.kind == "add" else v * other
            return self.finish(w.epilogue, v, None, None).astype(w.dtype)

        out = te.compute(w.out_shape, value, name="out")
        return prim_func([x, y, out])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """One knob: the unrolled pixels."""
        return Space({"tile": divisors(w.oh * w.ow, 16)})

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """About eight vectors at once."""
        return Config(tile=min(divisors(w.oh * w.ow, 16), key=lambda d: abs(d - 8)))

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The docstring's steps, in s_tir primitives."""
        out = sch.get_sblock("out")
        n, cb, p, i = sch.get_loops(out)
        po, pi = sch.split(p, [None, c.int("tile")])
        if w.out_split == "rows":
            chunks = max(d for d in divisors(w.oh * w.ow // c.int("tile"), 16))
            chunk, po = sch.split(po, [chunks, None])
            walk = (po, cb) if w.out_run > 1 else (cb, po)  # a pixel's vectors lie together
            sch.reorder(n, chunk, *walk, pi, i)
            sch.parallel(sch.fuse(n, chunk))
        else:
            sch.reorder(n, cb, po, pi, i)
            sch.parallel(sch.fuse(n, cb))
        sch.unroll(pi)
        sch.vectorize(i)


TEMPLATE = Eltwise()
