"""A decent schedule for whatever no template takes: parallel outside, vectorised inside.

Pattern
    Any PrimFunc made of blocks whose spatial loops are independent: elementwise, broadcast,
    transpose, concatenation, resize, softmax, reductions.

Strategy
    1. Inline elementwise producers into their readers, so that data is passed over once.
    2. Fuse all spatial loops of each block; split into (parallel chunks, rest, vector).
    3. A reduction keeps its loops innermost and serial, its spatial loops parallel; where it has
       too few spatial points to share, it stays on one thread.
    4. A block that cannot be rewritten this way keeps its loops: right before fast.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tvmsep.compiler.emit import SCHEDULED
from tvmsep.contracts import Target

if TYPE_CHECKING:
    from tvm import IRModule, tirx

_SPATIAL = 0
_MIN_PARALLEL = 4096
"""Elements below which sharing costs more than it saves (a fork and join costs about 1 us)."""


def schedule_rest(mod: IRModule, target: Target) -> IRModule:
    """Schedule every PrimFunc that did not come from a template."""
    from tvm import tirx

    for var, func in list(mod.functions_items()):
        if isinstance(func, tirx.PrimFunc) and SCHEDULED not in (func.attrs or {}):
            mod[var] = _schedule(func, target).with_attr(SCHEDULED, "fallback")
    return mod


def _schedule(func: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    from tvm import s_tir

    sch = s_tir.Schedule(func, error_render_level="none")
    root = sch.get_sblock("root")
    for block in sch.get_child_blocks(root):
        try:
            sch.compute_inline(block)
        except s_tir.ScheduleError:
            continue  # not elementwise, or it writes the output
    for block in sch.get_child_blocks(root):
        _block(sch, block, target)
    return sch.mod["main"]


def _block(sch: Any, block: Any, target: Target) -> None:
    loops = sch.get_loops(block)
    kinds = [iv.iter_type for iv in sch.get(block).iter_vars]
    if len(loops) != len(kinds) or not loops:
        return
    extents = [int(sch.get(lp).extent) for lp in loops]
    spatial = [lp for lp, k in zip(loops, kinds, strict=True) if k == _SPATIAL]
    reduce = [lp for lp, k in zip(loops, kinds, strict=True) if k != _SPATIAL]
    points = math.prod(e for e, k in zip(extents, kinds, strict=True) if k == _SPATIAL)
    if not spatial:
        return
    sch.reorder(*spatial, *reduce)
    fused = sch.fuse(*spatial)
    if reduce:
        if points > 1 and math.prod(extents) >= _MIN_PARALLEL:
            sch.parallel(fused)
        return
    lanes = next(n for n in (target.lanes, 8, 4, 2, 1) if points % n == 0 and n <= target.lanes)
    rest, vector = sch.split(fused, [None, lanes])
    if lanes > 1:
        sch.vectorize(vector)
    if points >= _MIN_PARALLEL:
        sch.parallel(rest)
