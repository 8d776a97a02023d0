"""Pointwise (1x1) convolution on CUDA: the product of `product.py`, pixels straight from memory.

Pattern
    as `schedules/pointwise.py`: out[n, c, p] = epilogue(sum over ic of x[n, ic, p] * w[c, ic])
    where a squeeze-and-excite block ends, x[n, ic, p] stands for x[n, ic, p] * scale[n, ic]

Strategy
    The steps of `product.py`. A pixel's vector of channels is what a thread loads at once; in
    NCHW, whose block is one channel, it is a vector of pixels. Strides are in the reads. The scale
    is multiplied in on the way to shared memory: once for each tile, not for each product.

Why it is fast
    Packed weights `[ob, ic, o]` with blocks of four lie as a block reads them: `step_k` vectors of
    128 bits in a row for each vector of outputs. So the CPU's packing serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules.common import prim_func
from tvmsep.schedules.cuda import fragments
from tvmsep.schedules.cuda.common import gpu_of
from tvmsep.schedules.cuda.product import Product, Tiling, schedule, stages, typed_inputs
from tvmsep.schedules.cuda.tiles import default_config, product_space

if TYPE_CHECKING:
    from tvm import s_tir, tirx


def geometry(w: Workload) -> Product:
    """The geometry of the product."""
    return Product.of(w, w.in_blocks * w.in_block, gathered=(w.sh, w.sw) != (1, 1))


class CudaPointwise:
    """See the module's docstring."""

    name = "cuda_pointwise"
    version = 1

    def accepts(self, w: Workload, t: Target) -> bool:
        """1x1 kernels without padding or groups, blocked on both sides."""
        blocked = w.op == "pointwise" and w.groups == 1 and w.in_block > 0 and w.out_block > 0
        return blocked and t.gpu is not None

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x `in_shape`, w `[ob, ic padded, o]`, bias, residual, scale, `out_shape`."""
        from tvm import te

        bi, bo = w.in_block, w.out_block
        x = te.placeholder(w.in_shape, w.dtype, name="x")
        wt = te.placeholder((w.out_blocks, w.in_blocks * bi, bo), w.dtype, name="w")
        bias, res = typed_inputs(w)
        scale = None
        if w.scaled:
            scale = te.placeholder((w.n, w.in_blocks, 1, bi), w.dtype, name="scale")

        def read(n: Any, k: Any, p: Any) -> Any:
            if (w.sh, w.sw) != (1, 1):
                p = p // w.ow * (w.sh * w.iw) + p % w.ow * w.sw
            value = x[n, k // bi, p, k % bi]
            return value if scale is None else value * scale[n, k // bi, 0, k % bi]

        if fragments.by_fragments(c):
            out = fragments.stages(w, c, read, lambda ch, k: wt[ch // bo, k, ch % bo], bias, res)
            return prim_func([x, wt, bias, res, scale, out])
        out = stages(
            geometry(w), Tiling.of(c), w, read,
            lambda _, ch, k: wt[ch // bo, k, ch % bo], bias, res,
        )  # fmt: skip
        return prim_func([x, wt, bias, res, scale, out])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """Tilings that fit the device and waste little."""
        space = product_space(geometry(w), w, t)
        return fragments.with_cores(space, w, t)

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """The tiling with the least predicted time."""
        config = default_config(geometry(w), w, t)
        return Config(config, cores="fp32") if fragments.has_cores(w, gpu_of(t)) else config

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The steps of `product.py`, in s_tir primitives."""
        if fragments.by_fragments(c):
            fragments.schedule(sch, w, c)
        else:
            schedule(sch, geometry(w), Tiling.of(c), w)


TEMPLATE = CudaPointwise()
