"""Elementwise operators on CUDA: `flat.py`'s one vector a thread, over channels or over pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules.cuda.common import vector_lanes
from tvmsep.schedules.cuda.epilogue import calls, finish
from tvmsep.schedules.cuda.flat import flat_apply, flat_default, flat_space
from tvmsep.schedules.eltwise import Eltwise

if TYPE_CHECKING:
    from tvm import s_tir


def _lanes(w: Workload) -> int:
    """Of pixels where channels are images."""
    return vector_lanes(w, w.oh * w.ow if w.out_block == 1 else w.out_block)


class CudaEltwise(Eltwise):
    """See the module's docstring."""

    name = "cuda_eltwise"
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
        """Operands of the output's shape move as vectors too; a channel's factor is only read."""
        both = w.kind in ("add", "mul")
        at = 2 if w.out_block == 1 else 3
        whole = (0, 1) if both else (0,)
        flat_apply(sch, (0, 1, 2, 3), at, c, whole=whole, scalar=calls(w.epilogue))


TEMPLATE = CudaEltwise()
