"""Depthwise and pointwise convolution in one kernel: what is between them stays in shared memory.

Pattern
    as `schedules/fused.py`: out[c, p] = epilogue(sum over k of mid[k, p] * w[c, k]),
    mid[k, p] = mid_epilogue(depthwise convolution of x under channel k at pixel p)

Strategy
    1. The steps of `product.py`, where a step's part of the first operand is not copied but
       computed: each thread convolves vectors of channels at single pixels, in registers, and
       puts them into shared memory. So `mid` is never in global memory.
    2. Taps are read as vectors from global memory; pixels of a tile are neighbours, so that what
       taps share comes from L1.
    3. Blocks over different channels of the output each compute `mid` of their pixels again: tiles
       that reach over all channels (`threads_oc`, `tile_oc`) do it once, tiles of few channels
       fill the device better.

Why it may be fast
    On a device whose caches do not hold `mid`, two kernels write it to memory and read it again:
    twice the output of the depthwise one, which is most of what a block of MobileNetV1 or V2
    moves. Source of the idea: Qararyah et al., arXiv 2404.19331.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules.common import prim_func
from tvmsep.schedules.cuda.conv import tap_read
from tvmsep.schedules.cuda.epilogue import finish
from tvmsep.schedules.cuda.product import Product, Tiling, schedule, stages, typed_inputs, unroll
from tvmsep.schedules.cuda.tiles import default_config, product_space

if TYPE_CHECKING:
    from tvm import s_tir, tirx


def fused_product(w: Workload) -> Product:
    """The geometry of the product in a "dwpw" workload."""
    return Product.of(w, w.in_blocks * w.in_block, gathered=True, taps=w.kh * w.kw)


class CudaFused:
    """See the module's docstring."""

    name = "cuda_dwpw"
    version = 1

    def accepts(self, w: Workload, t: Target) -> bool:
        """One output a channel in the depthwise part, blocked on both sides."""
        fits = w.op == "dwpw" and w.groups == w.ic and w.in_block > 0 and w.out_block > 0
        return fits and t.gpu is not None

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x, w and bias as `depthwise` has them, w, bias, residual, out as `pointwise`.

        Stages before those of `stages`: `taps` (the reads), `mid_acc`, `mid`.
        """
        from tvm import te

        first, last = w.parts
        bi, bo = w.in_block, w.out_block
        x = te.placeholder(w.in_shape, w.in_dtype, name="x")
        wd = te.placeholder((w.in_blocks, w.kh, w.kw, bi), w.dtype, name="w_dw")
        bias_dw, _ = typed_inputs(first, "_dw")
        wt = te.placeholder((w.out_blocks, w.in_blocks * bi, bo), w.dtype, name="w")
        bias, res = typed_inputs(last)
        kh = te.reduce_axis((0, w.kh), name="kh")
        kw = te.reduce_axis((0, w.kw), name="kw")
        mid_shape = (w.n, w.in_blocks * bi, w.oh * w.ow)

        def tap(n: Any, k: Any, p: Any, i: Any, j: Any) -> Any:
            row = p // w.ow * w.sh + i * w.dh - w.pads[0]
            column = p % w.ow * w.sw + j * w.dw - w.pads[1]
            return tap_read(x, w, n, k // bi, row, column, k % bi)

        taps = te.compute((*mid_shape, w.kh, w.kw), tap, name="taps")
        mid_acc = te.compute(
            mid_shape,
            lambda n, k, p: te.sum(
                taps[n, k, p, kh, kw].astype("float32")
                * wd[k // bi, kh, kw, k % bi].astype("float32"),
                axis=[kh, kw],
            ),
            name="mid_acc",
        )
        mid = te.compute(
            mid_shape,
            lambda n, k, p: finish(
                w.mid_epilogue,
                mid_acc[n, k, p],
                bias_dw[k // bi, k % bi] if bias_dw is not None else None,
                None,
            ).astype(w.dtype),
            name="mid",
        )
        out = stages(
            fused_product(w), Tiling.of(c), w, lambda n, k, p: mid[n, k, p],
            lambda _, ch, k: wt[ch // bo, k, ch % bo], bias, res,
        )  # fmt: skip
        return prim_func([x, wd, bias_dw, wt, bias, res, out])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """Tilings that fit the device, waste little, and divide the channels between."""
        return product_space(fused_product(w), w, t)

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """The tiling with the least predicted time, the repeated convolutions counted."""
        return default_config(fused_product(w), w, t)

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The steps of `product.py`, then those of the depthwise part, in s_tir primitives."""
        g = fused_product(w)
        schedule(sch, g, Tiling.of(c), w)
        mid, mid_acc, taps = (sch.get_sblock(s) for s in ("mid", "mid_acc", "taps"))
        wide = g.along == "k"
        thread = sch.get_loops(sch.get_sblock("a"))[-2 if wide else -1]
        for stage in (mid, mid_acc):
            sch.set_scope(stage, 0, "local")
            sch.compute_at(stage, thread, preserve_unit_loops=True)
        unroll(sch, sch.get_loops(mid)[-3:])
        *element, row, column = sch.get_loops(mid_acc)[-5:]
        sch.reorder(row, column, *element)
        # The first tap's multiply-add takes the initial 0: unrolled, its condition is constant.
        unroll(sch, (row, column, *element))
        sch.set_scope(taps, 0, "local")
        for stage in (taps, sch.cache_read(mid_acc, 1, "local")):
            sch.compute_at(stage, column, preserve_unit_loops=True)
            lane = sch.get_loops(stage)[-4 if stage is taps else -1]
            if wide:
                sch.vectorize(lane)
            else:
                unroll(sch, [lane])


TEMPLATE = CudaFused()
