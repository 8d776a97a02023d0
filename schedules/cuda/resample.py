"""Images change their size on CUDA: `flat.py`'s one vector of channels a thread.

A warp's pixels are neighbours, and so are the ones they are read from: L1 has them. Where channels
are images a thread has one pixel: its neighbour's source is elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmsep.contracts import Config, Target, Workload
from tvmsep.schedules.cuda.common import vector_lanes
from tvmsep.schedules.cuda.epilogue import calls, finish
from tvmsep.schedules.cuda.flat import Flat, flat_apply
from tvmsep.schedules.resample import Resample, run_of_channels

if TYPE_CHECKING:
    from tvm import s_tir


class CudaResample(Flat, Resample):
    """See the module's docstring."""

    name = "cuda_resample"
    version = 1
    finish = staticmethod(finish)

    def accepts(self, w: Workload, t: Target) -> bool:
        """What the CPU's accepts, in float32 or float16."""
        return t.gpu is not None and super().accepts(w, t)

    def lanes(self, w: Workload) -> int:
        """See `Flat`."""
        return vector_lanes(w, run_of_channels(w))

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """Threads are numbered along memory."""
        flat_apply(sch, (0, 1, 2, 3), 3, c, scalar=calls(w.epilogue))


TEMPLATE = CudaResample()
