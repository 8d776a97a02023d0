"""Channels are joined, cut out or interleaved on CUDA: `flat.py`'s one vector a thread.

A vector never crosses a granule (`schedules/channels.py`), so which input it comes from is one
condition a thread. Where channels are images whole runs of pixels move, a vector of them a thread.
Interleaved channels are read one by one; their neighbours' threads find them in L1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmsep.contracts import Config, Target, Workload
from tvmsep.schedules.channels import Channels, granule
from tvmsep.schedules.cuda.common import vector_lanes
from tvmsep.schedules.cuda.epilogue import calls, finish
from tvmsep.schedules.cuda.flat import Flat, flat_apply

if TYPE_CHECKING:
    from tvm import s_tir


def _by_pixels(w: Workload) -> bool:
    blocks = [block for _, block in w.sources] or [w.in_block]
    return {*blocks, w.out_block} == {1}


class CudaChannels(Flat, Channels):
    """See the module's docstring."""

    name = "cuda_channels"
    version = 1
    finish = staticmethod(finish)

    def accepts(self, w: Workload, t: Target) -> bool:
        """What the CPU's accepts, in float32 or float16."""
        return t.gpu is not None and super().accepts(w, t)

    def lanes(self, w: Workload) -> int:
        """See `Flat`."""
        if _by_pixels(w):
            return vector_lanes(w, w.oh * w.ow)
        interleaved = granule(w) == 1
        return vector_lanes(w, w.out_block if interleaved else granule(w))

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """Threads are numbered along memory."""
        pixels = _by_pixels(w)
        scalar = calls(w.epilogue) or not pixels and granule(w) == 1
        flat_apply(sch, (0, 1, 2, 3), 2 if pixels else 3, c, scalar=scalar)


TEMPLATE = CudaChannels()
