"""The model's boundary: plain `[n, c, h * w]` to blocked and back; no repacking elsewhere."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules.common import prim_func

if TYPE_CHECKING:
    from tvm import s_tir, tirx


_TRANSPOSED = 8
"""Lanes of a block up to which LLVM makes shuffles of a loop over pixels with the block unrolled
(its interleaved accesses); wider ones it only makes of vectors of pixels."""


class Pack:
    """Plain to blocked; channels past the last are zero."""

    name = "pack"
    version = 1

    def accepts(self, w: Workload, t: Target) -> bool:
        """Plain in, blocked out."""
        return w.op == "pack" and w.in_block == 0 and w.out_block > 0

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x `[n, c, p]`, out `[n, cb, p, i]`."""
        from tvm import te, tirx

        x = te.placeholder(w.in_shape, name="x", dtype=w.in_dtype)
        b = w.out_block

        def value(n: Any, cb: Any, p: Any, i: Any) -> Any:
            if w.oc % b == 0:
                return x[n, cb * b + i, p].astype(w.out_dtype)
            inside = cb * b + i < w.oc
            value = te.if_then_else(inside, x[n, cb * b + i, p], tirx.const(0, w.in_dtype))
            return value.astype(w.out_dtype)

        return prim_func([x, te.compute(w.out_shape, value, name="out")])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """Nothing to choose."""
        return Space({})

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """Nothing to choose."""
        return Config()

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """One thread takes whole channel blocks; what moves together, see `_TRANSPOSED`."""
        n, cb, p, i = sch.get_loops(sch.get_sblock("out"))
        pixels = next(d for d in (16, 8, 4, 2, 1) if w.oh * w.ow % d == 0)
        if w.out_block <= _TRANSPOSED:
            sch.unroll(i)
        elif w.oc % w.out_block == 0 or pixels < 4:
            sch.vectorize(i)
        else:
            po, pi = sch.split(p, [None, pixels])
            sch.reorder(po, i, pi)
            sch.unroll(i)
            sch.vectorize(pi)
        sch.parallel(sch.fuse(n, cb))


class Unpack:
    """Blocked to plain; padding channels are dropped."""

    name = "unpack"
    version = 1  # images are moved otherwise since; logs hold it for one pixel, which is not

    def accepts(self, w: Workload, t: Target) -> bool:
        """Blocked in, plain out."""
        return w.op == "unpack" and w.in_block > 0 and w.out_block == 0

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x `[n, cb, p, i]`, out `[n, c, p]`."""
        from tvm import te

        x = te.placeholder(w.in_shape, name="x", dtype=w.in_dtype)
        b = w.in_block
        out = te.compute(
            w.out_shape,
            lambda n, c, p: x[n, te.div(c, b), p, te.indexmod(c, b)].astype(w.out_dtype),
            name="out",
        )
        return prim_func([x, out])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """Nothing to choose."""
        return Space({})

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """Nothing to choose."""
        return Config()

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """Vectorise along channels where there is one pixel, else along pixels."""
        n, ch, p = sch.get_loops(sch.get_sblock("out"))
        pixels = w.oh * w.ow
        if pixels == 1:
            lanes = next(d for d in (16, 8, 4, 2, 1) if w.oc % d == 0 and w.in_block % d == 0)
            _, ci = sch.split(ch, [None, lanes])
            sch.vectorize(ci)
            return
        together = w.oc if w.oc <= w.in_block else math.gcd(w.oc, w.in_block)
        co, ci = sch.split(ch, [None, together])
        po, pi = p, None
        if w.in_block > _TRANSPOSED:
            po, pi = sch.split(p, [None, next(d for d in (16, 8, 7, 4, 2, 1) if pixels % d == 0)])
        sch.reorder(co, po, ci)
        sch.unroll(ci)
        if pi is not None:
            sch.vectorize(pi)
        sch.parallel(sch.fuse(n, co))


PACK = Pack()
UNPACK = Unpack()
