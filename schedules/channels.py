"""Channels are joined, cut out or interleaved without leaving the blocked layout.

Kinds
    `concat` (inputs with their channels and blocks in `sources`), `slice:FIRST` (of one input),
    `shuffle:GROUPS` (ShuffleNet's: channel `c` of the output is channel `c % groups` by
    `c // groups` of the input, arXiv 1707.01083).

Strategy
    1. A granule is the longest run of channels that never crosses a block or a boundary on either
       side; it moves as one vector. Interleaving has granules of one channel.
    2. A pixel's blocks and granules are unrolled: which input a granule comes from is then known
       when the kernel is compiled.
    3. Split over threads by chunks of pixels.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules import epilogue
from tvmsep.schedules.common import divisors, prim_func

if TYPE_CHECKING:
    from tvm import s_tir, tirx

_UNROLLED = 256
"""Granules of a pixel that are worth unrolling."""
_WIDEST = 16
"""Elements of a granule at most: more are no faster, and LLVM unrolls them all."""


def granule(w: Workload) -> int:
    """Channels that move together."""
    kind, _, number = w.kind.partition(":")
    if kind == "shuffle":
        return 1
    edges = [w.out_block, w.oc]
    if kind == "slice":
        edges += [w.in_block, int(number)]
    for channels, block in w.sources:
        edges += [channels, block]
    return max(divisors(math.gcd(*edges), _WIDEST))


class Channels:
    """See the module's docstring."""

    name = "channels"
    version = 1
    finish = staticmethod(epilogue.finish)

    def accepts(self, w: Workload, t: Target) -> bool:
        """Blocked in and out, an image of the same size."""
        if w.op != "channels" or not w.in_block or not w.out_block:
            return False
        kind, _, number = w.kind.partition(":")
        match kind:
            case "concat":
                blocked = all(block > 0 for _, block in w.sources)
                return blocked and sum(c for c, _ in w.sources) == w.oc == w.ic
            case "slice":
                return number.isdigit() and int(number) + w.oc <= w.ic
            case "shuffle":
                groups = int(number) if number.isdigit() else 0
                return groups > 0 and w.ic == w.oc and w.ic % groups == 0
        return False

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x `in_shape`, or the inputs of `sources` in order; out."""
        from tvm import te, tirx

        g = granule(w)
        kind, _, number = w.kind.partition(":")
        sources = w.sources or ((w.ic, w.in_block),)
        inputs = [
            te.placeholder(s, name=f"x{k}", dtype=w.dtype) for k, s in enumerate(w.source_shapes)
        ]
        starts = [0, *itertools.accumulate(channels // g for channels, _ in sources)]

        def value(n: Any, cb: Any, p: Any, i: Any) -> Any:
            at = cb * (w.out_block // g) + i // g

            def load(k: int, granules: Any) -> Any:
                each = sources[k][1] // g
                lane = granules % each * g + i % g if g > 1 else granules % each
                return inputs[k][n, granules // each, p, lane].astype("float32")

            if kind == "slice":
                v = load(0, at + int(number) // g)
            elif kind == "shuffle":
                groups = int(number)
                v = load(0, at % groups * (w.ic // groups) + at // groups)
            else:
                v = load(len(sources) - 1, at - starts[len(sources) - 1])
                for k in reversed(range(len(sources) - 1)):
                    v = te.if_then_else(at < starts[k + 1], load(k, at - starts[k]), v)
            v = self.finish(w.epilogue, v, None, None)
            if w.oc % w.out_block:
                v = te.if_then_else(at < w.oc // g, v, tirx.const(0, "float32"))
            return v.astype(w.dtype)

        return prim_func([*inputs, te.compute(w.out_shape, value, name="out")])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """One knob: the chunks of pixels that threads share."""
        return Space({"chunks": divisors(w.oh * w.ow, 64)})

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """Shares that are even, and no smaller than that needs."""

        def cost(chunks: Any) -> tuple[float, int]:
            return (-(-chunks // threads) * threads / chunks, chunks)

        return Config(chunks=min(divisors(w.oh * w.ow, 64), key=cost))

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The docstring's steps, in s_tir primitives."""
        g = granule(w)
        n, cb, p, i = sch.get_loops(sch.get_sblock("out"))
        chunk, pi = sch.split(p, [c.int("chunks"), None])
        io, lanes = sch.split(i, [None, g])
        sch.reorder(n, chunk, cb, pi, io, lanes)
        if w.out_shape[1] * w.out_block // g <= _UNROLLED:
            sch.unroll(cb)
        if w.out_block // g <= _UNROLLED:
            sch.unroll(io)
        if g > 1:
            sch.vectorize(lanes)
        sch.parallel(sch.fuse(n, chunk))


TEMPLATE = Channels()
