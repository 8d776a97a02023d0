"""General convolution on CUDA: the product of `product.py` over taps, any groups.

Pattern
    as `schedules/conv.py`; the reduction is k = (input block, kernel row, kernel column, lane), the
    order in which packed weights have it, and a[k, p] is the padded input under tap k of pixel p

Strategy
    The steps of `product.py`. A step's part of the input goes to shared memory tap by tap, without
    a padded copy in memory: what several taps share comes from L1. Groups count as batch: blocks
    of threads own channels of one group. In the first layer, three plain channels, neighbouring
    threads read neighbouring pixels.

Source of the idea: "implicit GEMM" (Chetlur et al., cuDNN, arXiv 1410.0759).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules.common import prim_func
from tvmsep.schedules.conv import Conv, conv_channels
from tvmsep.schedules.cuda.product import Product, Tiling, schedule, stages, typed_inputs
from tvmsep.schedules.cuda.tiles import default_config, product_space

if TYPE_CHECKING:
    from tvm import s_tir, tirx


def tap_read(x: Any, w: Workload, n: Any, c: Any, h: Any, col: Any, *lane: Any) -> Any:
    """`x` at row `h`, column `col` of the unpadded image, zero outside; of type `w.dtype`."""
    from tvm import te, tirx

    top, left, bottom, right = w.pads
    inside = [h >= 0] if top else []
    inside += [h < w.ih] if bottom else []
    inside += [col >= 0] if left else []
    inside += [col < w.iw] if right else []
    value = x[(n, c, h * w.iw + col, *lane)]
    if inside:
        value = te.if_then_else(tirx.all(*inside), value, tirx.const(0, x.dtype))
    return value if x.dtype == w.dtype else value.astype(w.dtype)


def geometry(w: Workload) -> Product:
    """The geometry of the product."""
    blocks, width = conv_channels(w)
    return Product.of(w, blocks * width * w.kh * w.kw, gathered=True)


class CudaConv(Conv):
    """See the module's docstring."""

    name = "cuda_conv"
    version = 1

    def accepts(self, w: Workload, t: Target) -> bool:
        """What the CPU's accepts."""
        return t.gpu is not None and super().accepts(w, t)

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x, w `[ob, ic block, kh, kw, ic lane, o]`, bias, residual, out."""
        from tvm import te

        blocks, width = conv_channels(w)
        g, bo = geometry(w), w.out_block
        x = te.placeholder(w.in_shape, w.in_dtype, name="x")
        wt = te.placeholder((w.out_blocks, blocks, w.kh, w.kw, width, bo), w.dtype, name="w")
        bias, res = typed_inputs(w)

        def split(k: Any) -> tuple[Any, Any, Any, Any]:
            """Input block, kernel row and column, lane."""
            tap = k // width
            return tap // (w.kh * w.kw), tap // w.kw % w.kh, tap % w.kw, k % width

        def read(batch: Any, k: Any, p: Any) -> Any:
            n, group = (batch // w.groups, batch % w.groups) if w.groups > 1 else (batch, 0)
            block, kh, kw, lane = split(k)
            row = p // w.ow * w.sh + kh * w.dh - w.pads[0]
            column = p % w.ow * w.sw + kw * w.dw - w.pads[1]
            if w.in_block:
                return tap_read(x, w, n, group * blocks + block, row, column, lane)
            return tap_read(x, w, n, group * width + lane, row, column)

        def weight(group: Any, channel: Any, k: Any) -> Any:
            if w.groups > 1:
                channel = group * g.channels + channel
            return wt[(channel // bo, *split(k), channel % bo)]

        return prim_func([x, wt, bias, res, stages(g, Tiling.of(c), w, read, weight, bias, res)])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """Tilings that fit the device and waste little."""
        return product_space(geometry(w), w, t)

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """The tiling with the least predicted time."""
        return default_config(geometry(w), w, t)

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The steps of `product.py`, in s_tir primitives."""
        schedule(sch, geometry(w), Tiling.of(c), w)


TEMPLATE = CudaConv()
