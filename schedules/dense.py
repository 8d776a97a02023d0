"""Dense layers on a blocked vector: many output blocks at once, weights streamed through.

Pattern
    out[n, ob * b + o] = epilogue(sum over ic of x[n, ic // bi, 0, ic % bi] * w[ob, ic, o])

Strategy
    1. `tile_n` samples by `tile_oc` output blocks of accumulators: at batch 1 the FMA latency is
       hidden by the output blocks alone.
    2. Every weight is read once and used `tile_n` times: the operator runs at the speed at which
       weights arrive, so each thread streams its own contiguous part of them.
    3. Weights may be asked for some channels ahead (`prefetch`, the level of the cache).
    4. The output is blocked like every activation; the boundary kernel `unpack` makes it plain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules.common import (
    accumulator_limit,
    divisors,
    epilogue_inputs,
    finish_tile,
    prim_func,
    product_tile,
    summed,
)
from tvmsep.schedules.epilogue import finish
from tvmsep.schedules.prefetch import (
    may_prefetch_stream,
    prefetch_stream,
    prefetches_stream,
)

if TYPE_CHECKING:
    from tvm import s_tir, tirx


class Dense:
    """See the module's docstring."""

    name = "dense"
    version = 1

    def accepts(self, w: Workload, t: Target) -> bool:
        """One pixel, blocked on both sides."""
        return w.op == "dense" and w.in_block > 0 and w.out_block > 0 and w.ih * w.iw == 1

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x `[n, ib, 1, i]`, w `[ob, ic padded, o]`, bias, residual, out."""
        from tvm import te

        bi = w.in_block
        x = te.placeholder(w.in_shape, name="x", dtype=w.dtype)
        panels = (w.out_blocks, w.in_blocks * bi, w.out_block)
        wt = te.placeholder(panels, name="w", dtype=w.dtype)
        bias, res = epilogue_inputs(w)
        ii = te.reduce_axis((0, bi), name="ii")
        acc = summed(
            w, (w.n, w.out_blocks, w.out_block), w.in_blocks, [ii],
            lambda n, ob, o, io: x[n, io, 0, ii] * wt[ob, io * bi + ii, o],
        )  # fmt: skip
        out = te.compute(
            w.out_shape,
            lambda n, ob, p, o: finish(
                w.epilogue,
                acc[n, ob, o],
                bias[ob, o] if bias is not None else None,
                res[n, ob, p, o] if res is not None else None,
            ).astype(w.dtype),
            name="out",
        )
        return prim_func([x, wt, bias, res, out])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """Tiles that fit the registers."""

        def valid(c: Mapping[str, Any]) -> bool:
            tile_n, tile_oc = c["tile_n"], c["tile_oc"]
            fits = tile_n * tile_oc <= accumulator_limit(t, tile_n, tile_oc)
            return bool(fits and (w.out_blocks // c["tile_oc"]) % c["chunks"] == 0)

        return Space(
            {
                "tile_n": divisors(w.n, 8),
                "tile_oc": divisors(w.out_blocks, t.vector_registers // 2),
                "chunks": tuple(d for d in divisors(w.out_blocks) if d <= 64 or d == w.out_blocks),
                "unroll": tuple(u for u in (1, 2, 4, 8) if w.in_block % u == 0),
                **({"prefetch": (0, 2)} if may_prefetch_stream(w, t) else {}),
            },
            valid,
        )

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """As many blocks as hide the FMA latency, in even shares; one chunk where work is tiny."""
        need = int(t.fma_latency_cycles * t.fma_per_cycle)
        tile_n = max(d for d in divisors(w.n, 8) if d <= max(1, t.vector_registers // 4))
        space = self.space(w, t, threads)
        tiny = w.macs < 16384

        def cost(c: Config) -> tuple[float, ...]:
            acc, chunks = c.int("tile_n") * c.int("tile_oc"), c.int("chunks")
            waste = 1.0 if tiny else -(-chunks // threads) * threads / chunks
            stall = max(1.0, need / acc)
            goal = 1 if tiny else threads
            return (waste * stall, c.int("tile_n") != tile_n, abs(chunks - goal), acc)

        fits = [c for c in space.configs() if c.int("unroll") == 1 and "prefetch" not in c]
        best = min(fits, key=cost)
        most = 4 if w.dtype == "float32" else 8
        unroll = max(u for u in (1, 2, most) if w.in_block % u == 0)
        return Config(best, unroll=unroll, prefetch=2 if prefetches_stream(w, t) else 0)

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The docstring's steps, in s_tir primitives."""
        from tvm import te

        out = sch.get_sblock("out")
        n, ob, p, o = sch.get_loops(out)
        no, ni = sch.split(n, [None, c.int("tile_n")])
        oo, oi = sch.split(ob, [None, c.int("tile_oc")])
        chunk, at = sch.split(oo, [c.int("chunks"), None])
        sch.reorder(no, chunk, at, ni, oi, p, o)
        fused = sch.fuse(no, chunk)
        if c.int("chunks") * (w.n // c.int("tile_n")) > 1:
            sch.parallel(fused)
        product_tile(
            sch, at, ("io", "ii"), {"ii": c.int("unroll")}, vector_axis=2,
            by_lane=t.lane_operand and c.int("unroll") == w.in_block,
        )  # fmt: skip
        finish_tile(sch, (ni, oi), o)
        if "prefetch" in c:  # 3.
            chunks, each = c.int("chunks"), w.out_blocks // c.int("tile_oc") // c.int("chunks")
            panel = te.indexmod(sch.get(fused).loop_var, chunks) * each + sch.get(at).loop_var
            prefetch_stream(sch, w, at, panel, c.int("tile_oc"), c.int("prefetch"))


TEMPLATE = Dense()
