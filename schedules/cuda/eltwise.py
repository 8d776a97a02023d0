"""Elementwise operators on CUDA: `flat.py`'s one vector a thread, over channels or over pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmsep.contracts import Config, Target, Workload
from tvmsep.schedules.cuda.common import vector_lanes
from tvmsep.schedules.cuda.epilogue import calls, finish
from tvmsep.schedules.cuda.flat import Flat, flat_apply
from tvmsep.schedules.eltwise import Eltwise

if TYPE_CHECKING:
    from tvm import s_tir


class CudaEltwise(Flat, Eltwise):
    """See the module's docstring."""

    name = "cuda_eltwise"
    version = 1
    finish = staticmethod(finish)

    def accepts(self, w: Workload, t: Target) -> bool:
        """What the CPU's accepts, in float32 or float16."""
        return t.gpu is not None and super().accepts(w, t)

    def lanes(self, w: Workload) -> int:
        """Of pixels where channels are images."""
        return vector_lanes(w, w.oh * w.ow if w.out_block == 1 else w.out_block)

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """Operands of the output's shape move as vectors too; a channel's factor is only read."""
        both = w.kind in ("add", "mul")
        at = 2 if w.out_block == 1 else 3
        whole = (0, 1) if both else (0,)
        flat_apply(sch, (0, 1, 2, 3), at, c, whole=whole, scalar=calls(w.epilogue))


TEMPLATE = CudaEltwise()
