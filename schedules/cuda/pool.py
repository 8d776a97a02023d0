"""Pooling on CUDA: one vector of an output pixel's channels a thread; global pooling by blocks.

Strategy
    1. Windows: `flat.py`'s one vector a thread. The taps are unrolled; neighbours' windows overlap,
       and L1 has what one of them read.
    2. Global average: a block of threads has up to 32 channels that lie together, one a thread of
       a row; the rows take turns at the pixels, so that a warp reads 128 bytes in a row, and their
       sums are added across the block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules.common import divisors, prim_func
from tvmsep.schedules.cuda.common import (
    copy_vectors,
    gpu_of,
    thread_counts,
    unroll_all,
    vector_lanes,
)
from tvmsep.schedules.cuda.epilogue import calls, finish
from tvmsep.schedules.cuda.flat import flat_apply, flat_default, flat_space
from tvmsep.schedules.pool import LOWEST, Pool, mean

if TYPE_CHECKING:
    from tvm import s_tir, tirx

_UNROLLED = 64
"""Taps of a window that are written out."""


class CudaPool(Pool):
    """See the module's docstring."""

    name = "cuda_pool"
    version = 1
    finish = staticmethod(finish)

    def accepts(self, w: Workload, t: Target) -> bool:
        """What the CPU's accepts, in float32 or float16."""
        return t.gpu is not None and super().accepts(w, t)

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x `in_shape`, out `out_shape`; of windows `[n, c, oh, ow, i]`.

        Stages of windows: `pad` (the reads), `acc`, `out`. `apply` flattens the output's image.
        """
        from tvm import te, tirx

        if w.kind == "global_avg":
            return super().compute(w, t, c)
        x = te.placeholder(w.in_shape, name="x", dtype=w.dtype)
        kh = te.reduce_axis((0, w.kh), name="kh")
        kw = te.reduce_axis((0, w.kw), name="kw")
        top, left = w.pads[:2]
        largest = w.kind == "max"
        lowest = -65504.0 if w.dtype == "float16" else LOWEST
        outside = tirx.const(lowest if largest else 0.0, w.dtype)
        image = (w.n, w.out_blocks, w.oh, w.ow, w.out_block)

        def padded(n: Any, cb: Any, h: Any, col: Any, i: Any) -> Any:
            row, column = h - top, col - left
            inside = tirx.all(row >= 0, row < w.ih, column >= 0, column < w.iw)
            return te.if_then_else(inside, x[n, cb, row * w.iw + column, i], outside)

        rows, cols = (w.oh - 1) * w.sh + w.kh, (w.ow - 1) * w.sw + w.kw
        pad = te.compute((*image[:2], rows, cols, w.out_block), padded, name="pad")
        reducer = te.max if largest else te.sum
        acc = te.compute(
            image,
            lambda n, cb, h, col, i: reducer(
                pad[n, cb, h * w.sh + kh, col * w.sw + kw, i].astype("float32"), axis=[kh, kw]
            ),
            name="acc",
        )
        out = te.compute(
            image,
            lambda n, cb, h, col, i: finish(
                w.epilogue, mean(w, acc[n, cb, h, col, i], h, col), None, None
            ).astype(w.dtype),
            name="out",
        )
        return prim_func([x, out])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """The vector and the threads of a block; of global pooling the threads alone."""
        if w.kind == "global_avg":
            return Space({"threads": thread_counts(gpu_of(t))})
        return flat_space(t, vector_lanes(w, w.out_block))

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """See `flat_default`; about eight pixels a thread of global pooling."""
        if w.kind == "global_avg":
            wanted = w.ih * w.iw * max(divisors(w.in_block, 32)) // 8
            return Config(threads=min(thread_counts(gpu_of(t)), key=lambda n: abs(n - wanted)))
        return flat_default(w, t, vector_lanes(w, w.out_block))

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The docstring's steps, in s_tir primitives."""
        acc = sch.get_sblock("acc")
        if w.kind == "global_avg":
            self._global(sch, w, c)
            return
        thread = flat_apply(sch, (0, 1, 2, 3, 4), 4, c, scalar=calls(w.epilogue))
        sch.compute_at(acc, thread, preserve_unit_loops=True)
        sch.set_scope(acc, 0, "local")
        *image, kh, kw = sch.get_loops(acc)[2:]
        sch.reorder(kh, kw, *image)
        if w.kh * w.kw <= _UNROLLED:
            sch.unroll(kh)
            sch.unroll(kw)
        unroll_all(sch, image)
        pad, store = sch.get_sblock("pad"), sch.get_sblock("out_local")
        sch.compute_at(pad, kw, preserve_unit_loops=True)
        sch.set_scope(pad, 0, "local")
        copy_vectors(sch, pad, 4, c.int("vec"))
        sch.transform_layout(store, ("write", 0), lambda n, c, h, x, i: (n, c, h * w.ow + x, i))

    def _global(self, sch: s_tir.Schedule, w: Workload, c: Config) -> None:
        """2."""
        acc, out = sch.get_sblock("acc"), sch.get_sblock("out")
        pixels, across = w.ih * w.iw, max(divisors(w.in_block, 32))
        # A power of two: of other numbers TVM adds up the last warp's without a barrier.
        down = 1 << min(c.int("threads") // across, pixels).bit_length() - 1
        n, cb, p, i = sch.get_loops(out)
        io, ii = sch.split(i, [None, across])
        sch.reorder(n, cb, p, io, ii)
        block = sch.fuse(n, cb, p, io)
        sch.bind(block, "blockIdx.x")
        sch.bind(ii, "threadIdx.x")
        sch.compute_at(acc, block, preserve_unit_loops=True)
        sch.set_scope(acc, 0, "shared")
        *_, lane, pixel = sch.get_loops(acc)
        _, row = sch.split(pixel, [None, down])
        sch.bind(lane, "threadIdx.x")
        sch.bind(row, "threadIdx.y")


TEMPLATE = CudaPool()
