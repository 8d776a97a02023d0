"""One vector of the output a thread: for what reads nothing twice, or finds it in L1.

Pattern
    Any block `out` whose points are independent: `out[n, c, p, i]` from a few reads.

Strategy
    1. The output's points are numbered along memory and cut into vectors of `vec`; `threads` of
       them are a block. So a warp stores 512 bytes in a row, and no shape leaves it half empty.
    2. The values go to registers and from there to memory as one vector; so do operands that lie
       as the output does (`whole`). Other reads become vectors where the lanes lie together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Gpu, Space, Target, Workload
from tvmsep.schedules.cuda.common import bind_flat, exact_threads, gpu_of, thread_counts, widths

if TYPE_CHECKING:
    from tvm import s_tir


def flat_space(t: Target, lanes: int) -> Space:
    """Two knobs: the vector, up to `lanes` elements, and the threads of a block."""
    return Space({"vec": widths(lanes), "threads": thread_counts(gpu_of(t))})


def flat_default(w: Workload, t: Target, lanes: int) -> Config:
    """The longest vector that leaves every multiprocessor work, in blocks of two or four warps."""
    gpu, points = gpu_of(t), math.prod(w.out_shape)
    fills = gpu.sms * 2 * gpu.warp
    vec = next((v for v in widths(lanes) if points // v >= fills), 1)
    return Config(vec=vec, threads=_block(gpu, points // vec))


class Flat:
    """Space and default of a template that is flat alone; it stands before the CPU's class."""

    def lanes(self, w: Workload) -> int:
        """Elements of the longest vector that a thread may take."""
        raise NotImplementedError

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """The vector and the threads of a block."""
        return flat_space(t, self.lanes(w))

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """See `flat_default`."""
        return flat_default(w, t, self.lanes(w))


def _block(gpu: Gpu, threads: int) -> int:
    """Threads of a block: four warps, or two where that gives a multiprocessor more to do."""
    return 4 * gpu.warp if threads >= gpu.sms * 8 * gpu.warp else 2 * gpu.warp


def flat_apply(
    sch: s_tir.Schedule,
    order: Sequence[int],
    at: int,
    c: Mapping[str, Any],
    *,
    whole: Sequence[int] = (),
    scalar: bool = False,
) -> Any:
    """Schedule block `out`: the docstring's steps; returns the loop over threads.

    Args:
        sch: the schedule.
        order: the block's loops, by position, in the order in which threads are numbered.
        at: the loop of which one thread takes `vec` steps; `vec` divides it.
        c: holds `vec` and `threads`.
        whole: which of the operands are read just as the output is written.
        scalar: compute lane by lane, since what is computed has no form for vectors: calls, and
            conditions that differ between lanes.
    """
    out = sch.get_sblock("out")
    store = sch.cache_write(out, 0, "local")
    loops = list(sch.get_loops(store))
    loops[at], lanes = sch.split(loops[at], [None, c["vec"]])
    numbered = [loops[k] for k in order]
    sch.reorder(*numbered, lanes)
    total = math.prod(int(sch.get(loop).extent) for loop in numbered)
    _, thread = bind_flat(sch, numbered, exact_threads(total, c["threads"]))
    sch.vectorize(lanes)
    sch.compute_at(out, thread, preserve_unit_loops=True)
    for operand in whole:
        copy = sch.cache_read(out, operand, "local")
        sch.compute_at(copy, thread, preserve_unit_loops=True)
        unroll_but(sch, copy, 2, at)
    # TVM writes vectors of eight float32 that are no CUDA C.
    unroll_but(sch, out, 2, None if scalar or c["vec"] > 4 else at)
    return thread


def unroll_but(sch: s_tir.Schedule, block: Any, inside: int, at: int | None) -> None:
    """Unroll a block's loops from the one at depth `inside` on; vectorise the one at `at` there."""
    for k, loop in enumerate(sch.get_loops(block)[inside:]):
        if k == at:
            sch.vectorize(loop)
        else:
            sch.unroll(loop)
