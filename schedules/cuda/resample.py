"""Images change their size on CUDA: `flat.py`'s one vector of channels a thread.

A warp's pixels are neighbours, and so are the ones they are read from: L1 has them. Where channels
are images a thread has one pixel: its neighbour's source is elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules.cuda.common import vector_lanes
from tvmsep.schedules.cuda.epilogue import calls, finish
from tvmsep.schedules.cuda.flat import flat_apply, flat_default, flat_space
from tvmsep.schedules.resample import Resample, run_of_channels

if TYPE_CHECKING:
    from tvm import s_tir


def _lanes(w: Workload) -> int:
    return vector_lanes(w, run_of_channels(w))


class CudaResample(Resample):
    """See the module's docstring."""

    name = "cuda_resample"
    version = 1
    finish = staticmethod(finish)

    def accepts(self, w: Workload, t: Target) -> bool:
        """What the CPU's accepts, in float32 or float16."""
        return t.gpu is not None and super().accepts(w, t)

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """The vector and the threads of a block."""
        return flat_space(t, _lanes(w))

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """See `flat_default`."""
        return flat_default(w, t, _lanes(w))

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """Threads are numbered along memory."""
        flat_apply(sch, (0, 1, 2, 3), 3, c, scalar=calls(w.epilogue))


TEMPLATE = CudaResample()
