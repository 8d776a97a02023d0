"""Blocks of several vectors: kernels compute on vectors, a layout says where these lie.

A CPU's template computes on `[n, vectors, pixels, lanes]`, whatever the layout. Where a block holds
`run` vectors, as two of them in NCHW8c on NEON or all of a pixel's in NHWC, the buffers of
activations are `[n, blocks, pixels, run * lanes]`, and `codegen.kernel` moves every access there
after the schedule has been applied: loops, tiles and lanes are those of one vector a block, and
only addresses differ. Weights stay in panels of one vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmsep.contracts import Config, Space, Target, Template, Workload

if TYPE_CHECKING:
    from tvm import s_tir, tirx


class InVectors:
    """A template that sees each vector of a block as a block: `Workload.vectors`.

    Args:
        inner: the template; it gives its name and version.
    """

    def __init__(self, inner: Template) -> None:
        self.inner = inner
        self.name, self.version = inner.name, inner.version

    def accepts(self, w: Workload, t: Target) -> bool:
        """What the inner template accepts; float16 where vectors compute in it."""
        precise = w.dtype == "float32" or t.half_arithmetic
        return precise and self.inner.accepts(w.vectors, t)

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """The inner template's maths, on vectors; `codegen.kernel` makes the buffers of `w`."""
        return self.inner.compute(w.vectors, t, c)

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """The inner template's."""
        return self.inner.space(w.vectors, t, threads)

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """The inner template's."""
        return self.inner.default(w.vectors, t, threads)

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The inner template's steps."""
        self.inner.apply(sch, w.vectors, t, c)
