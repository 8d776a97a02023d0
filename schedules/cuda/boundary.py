"""The model's boundary on CUDA: plain float32 images to blocked activations and back.

Strategy
    1. Narrow blocks (up to `_NARROW` channels): neighbouring threads take neighbouring pixels. A
       plain image is then read or written 128 bytes a warp, a vector of channels goes along whole.
    2. Wide blocks are stored along the channels; of the 32 bytes that each read fetches of an image
       L1 keeps the other pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvmsep.contracts import Config, Target, Workload
from tvmsep.schedules.boundary import Pack, Unpack
from tvmsep.schedules.cuda.common import vector_lanes
from tvmsep.schedules.cuda.flat import Flat, flat_apply

if TYPE_CHECKING:
    from tvm import s_tir

_NARROW = 8


class CudaPack(Flat, Pack):
    """Plain to blocked; channels past the last are zero."""

    name = "cuda_pack"
    version = 1

    def accepts(self, w: Workload, t: Target) -> bool:
        """What the CPU's accepts, to float32 or float16."""
        return t.gpu is not None and super().accepts(w, t)

    def lanes(self, w: Workload) -> int:
        """Of channels."""
        return vector_lanes(w, w.out_block)

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The docstring's steps; the channels of a vector are read from as many images."""
        order = (0, 1, 3, 2) if w.out_block <= _NARROW else (0, 1, 2, 3)
        flat_apply(sch, order, 3, c, scalar=True)


class CudaUnpack(Flat, Unpack):
    """Blocked to plain; padding channels are dropped."""

    name = "cuda_unpack"
    version = 1

    def accepts(self, w: Workload, t: Target) -> bool:
        """What the CPU's accepts, from float32 or float16."""
        return t.gpu is not None and super().accepts(w, t)

    def lanes(self, w: Workload) -> int:
        """Of channels, read at once."""
        return math.gcd(4, w.in_block, w.oc)

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """Neighbouring threads take neighbouring pixels, and of each a vector of channels."""
        flat_apply(sch, (0, 1, 2), 1, c)


PACK = CudaPack()
UNPACK = CudaUnpack()
