"""Dense layers on CUDA: one image's by a warp for a few outputs, several images' as a product.

Pattern
    as `schedules/dense.py`: out[n, c] = epilogue(sum over k of x[n, k] * w[c, k])

Strategy
    With several images, or where the outputs' block is wide (then neighbours in memory are
    neighbours in c): the steps of `product.py`, images for pixels. Otherwise (`rows` is a knob):
    1. `lanes` threads, a warp or a few, read the weights of a vector of outputs in the order in
       which memory has them, 128 bits each: every weight once, at the speed of memory.
    2. `rows` such groups make a block; each takes `tile` vectors of outputs one after the other
       with the same part of x, which stays in registers or L1.
    3. Threads add up by warp shuffles; the first ones run the epilogue and store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules.common import prim_func
from tvmsep.schedules.cuda.common import (
    LATENCY_CLOCKS,
    SPARE_REGISTERS,
    gpu_of,
    resident_blocks,
)
from tvmsep.schedules.cuda.epilogue import finish
from tvmsep.schedules.cuda.product import (
    Product,
    Tiling,
    element_bytes,
    schedule,
    stages,
    typed_inputs,
    unroll,
    within,
)
from tvmsep.schedules.cuda.tiles import default_config, product_space

if TYPE_CHECKING:
    from tvm import s_tir, tirx

_NARROW = 8
"""Up to this block the weights of one vector of outputs lie near each other for all k."""


def geometry(w: Workload) -> Product:
    """The geometry of the product, images for pixels."""
    return Product.of(w, w.in_blocks * w.in_block, gathered=True, images=True)


def by_warps(w: Workload) -> bool:
    """Whether the layer is a matrix-vector product with weights in the order of k."""
    return w.n == 1 and w.out_block <= _NARROW


class CudaDense:
    """See the module's docstring."""

    name = "cuda_dense"
    version = 1

    def accepts(self, w: Workload, t: Target) -> bool:
        """One pixel, blocked on both sides."""
        blocked = w.op == "dense" and w.in_block > 0 and w.out_block > 0 and w.ih * w.iw == 1
        return blocked and t.gpu is not None

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x `[n, ib, 1, i]`, w `[ob, ic padded, o]`, bias, residual, out."""
        from tvm import te

        bi, bo = w.in_block, w.out_block
        x = te.placeholder(w.in_shape, w.dtype, name="x")
        wt = te.placeholder((w.out_blocks, w.in_blocks * bi, bo), w.dtype, name="w")
        bias, res = typed_inputs(w)
        if not by_warps(w):
            out = stages(
                geometry(w), Tiling.of(c), w,
                lambda _, k, n: x[n, k // bi, 0, k % bi],
                lambda _, ch, k: wt[ch // bo, k, ch % bo], bias,
                None if res is None else lambda _, ob, n, o: res[n, ob, 0, o],
            )  # fmt: skip
            return prim_func([x, wt, bias, res, out])
        g = geometry(w)
        width, tile, rows = c.int("lanes"), c.int("tile"), c.int("rows")
        turns = -(-g.steps // width)
        ko = te.reduce_axis((0, turns), name="ko")
        kl = te.reduce_axis((0, g.vector_k), name="kl")
        kt = te.reduce_axis((0, width), name="kt")
        blocks = -(-g.rows // (rows * tile))
        shape = (blocks, rows, tile, g.vector_c)

        def row(b: Any, r: Any, i: Any) -> Any:
            return within((b * rows + r) * tile + i, g.rows, rows * tile)

        def operand(k: Any, lane: Any) -> Any:
            at = within(k, g.steps, width) * g.vector_k + lane
            value = x[0, at // bi, 0, at % bi]
            if g.steps % width == 0:
                return value
            from tvm import tirx

            return te.if_then_else(k < g.steps, value, tirx.const(0, w.dtype))

        near = te.compute((turns * width, g.vector_k), operand, name="near")
        b = te.compute(
            (blocks, rows, tile, turns * width, g.vector_k, g.vector_c),
            lambda b, r, i, k, lane, v: wt[
                row(b, r, i) * g.vector_c // bo,
                within(k, g.steps, width) * g.vector_k + lane,
                row(b, r, i) * g.vector_c % bo + v,
            ],
            name="b",
        )  # fmt: skip
        part = te.compute(
            (width, *shape),
            lambda t, b_, r, i, v: te.sum(
                near[ko * width + t, kl].astype("float32")
                * b[b_, r, i, ko * width + t, kl, v].astype("float32"),
                axis=[ko, kl],
            ),
            name="part",
        )
        total = te.compute(
            shape, lambda b, r, i, v: te.sum(part[kt, b, r, i, v], axis=[kt]), name="total"
        )

        def value(b: Any, r: Any, i: Any, lane: Any) -> Any:
            v = te.min(lane, g.vector_c - 1)
            ob, o = row(b, r, i) * g.vector_c // bo, row(b, r, i) * g.vector_c % bo + v
            return finish(
                w.epilogue,
                total[b, r, i, v],
                bias[ob, o] if bias is not None else None,
                res[0, ob, 0, o].astype("float32") if res is not None else None,
            ).astype(w.dtype)

        fin = te.compute((blocks, rows, tile, width), value, name="fin")
        each = rows * tile
        out = te.compute(
            (1, g.rows, 1, g.vector_c),
            lambda n, c, p, v: fin[c // each, c // tile % rows, c % tile, v],
            name="out",
        )
        return prim_func([x, wt, bias, res, out])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """Warps for each output, outputs for each warp; or the product's tilings."""
        if not by_warps(w):
            return product_space(geometry(w), w, t)
        gpu, g = gpu_of(t), geometry(w)

        def valid(c: Mapping[str, Any]) -> bool:
            registers = SPARE_REGISTERS + c["tile"] * g.vector_c * (1 + g.vector_k)
            size = c["lanes"] * c["rows"]
            if size < gpu.warp or c["lanes"] < g.vector_c or registers > gpu.registers_per_thread:
                return False
            # Groups of less than half a warp only where there is nothing for more of them.
            if c["lanes"] > max(4 * g.steps, g.vector_c):
                return False
            if c["rows"] * c["tile"] >= 2 * max(g.rows, 8):
                return False
            return resident_blocks(gpu, size, registers, 4 * c["rows"] * c["tile"] * g.vector_c) > 0

        return Space(
            {
                "lanes": (4, 8, 16, 32, 64, 128),
                "tile": (1, 2, 4),
                "rows": (1, 2, 4, 8, 16),
            },
            valid,
        )

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """Loads in flight for the whole device, then as few turns as that takes."""
        if not by_warps(w):
            return default_config(geometry(w), w, t)
        gpu, g = gpu_of(t), geometry(w)

        def cost(c: Config) -> tuple[float, ...]:
            width, each = c.int("lanes"), c.int("rows") * c.int("tile")
            blocks = -(-g.rows // each)
            share = -(-blocks // gpu.sms)
            turns = -(-g.steps // width)
            read = share * each * turns * width * g.vector_k * g.vector_c * element_bytes(w.dtype)
            rate = gpu.bandwidth / (gpu.clock_ghz * 1e9 * gpu.sms)
            warps = min(share * c.int("rows") * width / gpu.warp, gpu.threads_per_sm / gpu.warp)
            in_flight = warps * c.int("tile") * min(turns, 4)
            waits = LATENCY_CLOCKS * (1 + turns * c.int("tile") / max(1.0, in_flight))
            return (read / rate + waits + 20 * c.int("tile") * g.vector_c, width)

        return min(self.space(w, t, threads).configs(), key=cost)

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The docstring's steps, in s_tir primitives."""
        g = geometry(w)
        if not by_warps(w):
            schedule(sch, g, Tiling.of(c), w)
            return
        out, fin, total, part = (sch.get_sblock(s) for s in ("out", "fin", "total", "part"))
        block, row, i, x = sch.get_loops(fin)  # 2.
        sch.reorder(block, row, x, i)
        sch.bind(block, "blockIdx.x")
        sch.bind(row, "threadIdx.y")
        sch.annotate(block, "pragma_unroll_explicit", 0)
        sch.bind(x, "threadIdx.x")
        sch.set_scope(total, 0, "shared")
        sch.compute_at(total, block, preserve_unit_loops=True)
        row, i, v, lane = sch.get_loops(total)[-4:]
        sch.bind(row, "threadIdx.y")
        sch.bind(lane, "threadIdx.x")  # 3.
        sch.set_scope(part, 0, "local")
        sch.compute_at(part, row, preserve_unit_loops=True)
        lane, _, _, i, v, ko, kl = sch.get_loops(part)[-7:]
        sch.reorder(lane, ko, kl, i, v)  # 1.
        sch.bind(lane, "threadIdx.x")
        unroll(sch, (kl, i, v))
        for name in ("near", "b"):
            stage = sch.get_sblock(name)
            sch.set_scope(stage, 0, "local")
            sch.compute_at(stage, ko, preserve_unit_loops=True)
            loops = sch.get_loops(stage)
            if name == "near":
                wide = [loops[-1]] if w.in_block % g.vector_k == 0 else []
                unroll(sch, [loops[-1]] if not wide else [])
                for loop in wide:
                    sch.vectorize(loop)
                continue
            *rest, lane, v = loops[-6:]
            unroll(sch, rest)
            if g.vector_c > 1:
                unroll(sch, [lane])
                sch.vectorize(v)
            else:
                sch.vectorize(sch.fuse(lane, v))
        init = sch.decompose_reduction(part, ko)
        unroll(sch, sch.get_loops(init)[-2:])
        sch.transform_layout(
            out, ("write", 0),
            lambda n, c, p, v: (
                n, c * g.vector_c // w.out_block, p, c * g.vector_c % w.out_block + v
            ),
        )  # fmt: skip
        sch.reverse_compute_inline(out)


TEMPLATE = CudaDense()
