"""A decent schedule for whatever no template takes: parallel outside, vectorised inside.

Pattern
    Any PrimFunc made of blocks whose spatial loops are independent: elementwise, broadcast,
    transpose, concatenation, resize, softmax, reductions, matrix products.

Strategy
    1. Inline elementwise producers into their readers, so that data is passed over once; not
       where that would repeat work: several readers, or a reader with more points.
    2. Spatial block: the last loops over which every buffer is walked in order (or not at all)
       are fused into one, of which a vector is split off; the loops outside are fused and shared.
    3. Reduction over the axis that lies together in memory: `rfactor` into one partial result a
       lane: LLVM may not reorder a sum of floats by itself, so it could not use vectors.
    4. Other reductions (a channel sum, a matrix product): reduce outside, vector inside.
    5. Calls of libm become polynomials where there is one (`compiler/libm.py`), last: inlining
       must still see what is expensive to compute twice.
    6. A block that TVM refuses to rewrite this way keeps its loops: right before fast.

Why no more
    These operators move data; past one vector an instruction and an even share a core there is
    nothing to win that a network of this family would notice.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tvmsep.compiler.emit import SCHEDULED
from tvmsep.compiler.libm import FUNCTIONS, without_libm
from tvmsep.contracts import Target

if TYPE_CHECKING:
    from tvm import IRModule, tirx

_SPATIAL = 0
_MIN_PARALLEL = 4096
"""Elements below which sharing costs more than it saves (a fork and join costs about 1 us)."""
_MIN_SHARES = 8
"""Iterations that a parallel loop should have, so that the threads' shares are even."""


def schedule_rest(mod: IRModule, target: Target) -> IRModule:
    """Schedule every PrimFunc that did not come from a template."""
    from tvm import tirx

    for var, func in list(mod.functions_items()):
        if isinstance(func, tirx.PrimFunc) and SCHEDULED not in (func.attrs or {}):
            scheduled = without_libm(_schedule(func, target))
            mod[var] = scheduled.with_attr(SCHEDULED, "fallback")
    return mod


def inline_cheap(sch: Any) -> None:
    """Inline what is not worth a loop of its own, as far as TVM can."""
    from tvm import s_tir

    for block in sch.get_child_blocks(sch.get_sblock("root")):
        if _worth_inlining(sch, block):
            try:
                sch.compute_inline(block)
            except s_tir.ScheduleError:
                continue  # not elementwise, or it writes the output


def _schedule(func: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    from tvm import s_tir

    sch = s_tir.Schedule(func, error_render_level="none")
    try:
        sch.get_sblock("root")
    except s_tir.ScheduleError:
        return func  # written in loops by hand, such as a sort
    inline_cheap(sch)
    best: tirx.PrimFunc = sch.mod["main"]
    names = [sch.get(b).name_hint for b in sch.get_child_blocks(sch.get_sblock("root"))]
    for name in names:
        # From a copy of what is known to be right, so that a refusal leaves nothing half done.
        sch = s_tir.Schedule(best, error_render_level="none")
        try:
            _block(sch, sch.get_sblock(name), target)
        except s_tir.ScheduleError:
            continue
        best = sch.mod["main"]
    return best


def _worth_inlining(sch: Any, block: Any) -> bool:
    """1.: nothing is computed twice, and one polynomial does not feed another."""
    consumers = sch.get_consumers(block)
    if not consumers or not sch.get_loops(block):
        return False
    if {*FUNCTIONS} & calls_of(sch.get(block).body) and any(
        {*FUNCTIONS} & calls_of(sch.get(c).body) for c in consumers
    ):
        return False
    if len(consumers) == 1 and _points(sch, consumers[0]) <= _points(sch, block):
        return True
    return not calls_of(sch.get(block).body)


def _points(sch: Any, block: Any) -> int:
    return math.prod(int(sch.get(lp).extent) for lp in sch.get_loops(block))


def calls_of(stmt: Any) -> set[str]:
    """The functions such as `exp` that a statement calls (a condition is no call)."""
    import tvm_ffi
    from tvm import ir

    found: set[str] = set()
    tvm_ffi.structural_walk(stmt, (ir.Call, lambda call: found.add(getattr(call.op, "name", ""))))
    return found - {"tirx.if_then_else", "tirx.likely"}


def _block(sch: Any, block: Any, target: Target) -> None:
    loops = sch.get_loops(block)
    kinds = [iv.iter_type for iv in sch.get(block).iter_vars]
    if len(loops) != len(kinds) or not loops:
        return
    extents = [int(sch.get(lp).extent) for lp in loops]
    work = math.prod(extents)
    spatial = [lp for lp, k in zip(loops, kinds, strict=True) if k == _SPATIAL]
    reduce = [lp for lp, k in zip(loops, kinds, strict=True) if k != _SPATIAL]
    if not reduce:
        trailing = in_order(sch.get(block))
        *outer, inner = [*spatial[:-trailing], sch.fuse(*spatial[-trailing:])]
        _finish(sch, outer, inner, target, work)
        return
    if spatial:
        sch.reorder(*spatial, *reduce)
    length = math.prod(e for e, k in zip(extents, kinds, strict=True) if k != _SPATIAL)
    if reduces_last_axis(sch.get(block)):
        lanes = next((n for n in _widths(target, 4) if length % n == 0), 0)
        if lanes and length >= 2 * lanes:
            _lanes_first(sch, block, spatial, reduce, lanes, work)
        elif spatial:
            _share(sch, sch.fuse(*spatial), work // length, work)
        return
    *outer, inner = spatial  # 4.
    rest, vector = _vector(sch, inner, target)
    if vector is None:
        _share(sch, sch.fuse(*spatial), work // length, work)
        return
    sch.reorder(*outer, rest, *reduce, vector)
    fused = sch.fuse(*outer, rest)
    extent = int(sch.get(fused).extent)
    sch.vectorize(vector)
    _share(sch, fused, extent, work)
    init = sch.decompose_reduction(block, reduce[0])
    sch.vectorize(sch.get_loops(init)[-1])


def _lanes_first(
    sch: Any, block: Any, spatial: list[Any], reduce: list[Any], lanes: int, work: int
) -> None:
    """3.: partial results by lane, then across the lanes."""
    _, lane = sch.split(sch.fuse(*reduce), [None, lanes])
    partial = sch.rfactor(lane, 0)
    if spatial:
        at = sch.fuse(*sch.get_loops(block)[: len(spatial)])
        sch.compute_at(partial, at, preserve_unit_loops=True)
        _share(sch, at, int(sch.get(at).extent), work)
        loops = sch.get_loops(partial)[1:]
        kinds = [iv.iter_type for iv in sch.get(partial).iter_vars]
        lane, *others = [lp for lp, k in zip(loops, kinds, strict=True) if k == _SPATIAL]
        along = [lp for lp, k in zip(loops, kinds, strict=True) if k != _SPATIAL]
        sch.reorder(*others, *along, lane)
    else:
        along, lane = sch.get_loops(partial)[:-1], sch.get_loops(partial)[-1]
    sch.vectorize(lane)
    init = sch.decompose_reduction(partial, along[0])
    sch.vectorize(sch.get_loops(init)[-1])


def _finish(sch: Any, outer: list[Any], inner: Any, target: Target, work: int) -> None:
    """2.: one vector inside, an even share a thread outside."""
    rest, vector = _vector(sch, inner, target)
    if vector is not None:
        sch.vectorize(vector)
    shares = math.prod(int(sch.get(lp).extent) for lp in outer)
    if rest is not None and shares < _MIN_SHARES:
        outer = [*outer, rest]
        shares *= int(sch.get(rest).extent)
    if outer:
        _share(sch, sch.fuse(*outer), shares, work)


def _vector(sch: Any, loop: Any, target: Target) -> tuple[Any | None, Any | None]:
    """Split a vector off a loop: (the loop that is left, the vector), either of them maybe None.

    A length that nothing near the vector width divides is left to LLVM, which can peel its end.
    """
    extent = int(sch.get(loop).extent)
    widths = _widths(target, target.lanes // 2)
    width = next((n for n in widths if extent % n == 0), None)
    if width is None and 1 < extent < target.lanes:
        width = extent
    if width is None:
        return loop, None
    rest, vector = sch.split(loop, [None, width])
    return rest, vector


def _widths(target: Target, least: int) -> tuple[int, ...]:
    """Vector lengths to try, the best first: the register's, then from twice that downwards."""
    return (target.lanes, *range(2 * target.lanes, least - 1, -1))


def _share(sch: Any, loop: Any, shares: int, work: int) -> None:
    if shares > 1 and work >= _MIN_PARALLEL:
        sch.parallel(loop)


def _index_vars(indices: list[Any]) -> set[Any]:
    import tvm_ffi
    from tvm import tirx

    found: set[Any] = set()
    for index in indices:
        tvm_ffi.structural_walk(index, (tirx.Var, found.add))
    return found


def in_order(block: Any) -> int:
    """How many trailing axes every buffer is walked along in order, or not at all."""
    axes = [iv.var for iv in block.iter_vars]
    count = 1
    for k in range(2, len(axes) + 1):
        group = axes[-k:]
        for region in [*block.reads, *block.writes]:
            indices = [r.min for r in region.region]
            if any(int(r.extent) != 1 for r in region.region if _is_int(r.extent)):
                return count
            shape = [int(d) for d in region.source.shape]
            tail = indices[-k:]
            same = len(indices) >= k and all(i.same_as(v) for i, v in zip(tail, group, strict=True))
            whole = same and all(
                int(iv.dom.extent) == d
                for iv, d in zip(block.iter_vars[-k + 1 :], shape[-k + 1 :], strict=True)
            )
            if not whole and _index_vars(indices) & set(group):
                return count
        count = k
    return count


def _is_int(value: Any) -> bool:
    return hasattr(value, "value") or isinstance(value, int)


def reduces_last_axis(block: Any) -> bool:
    """Whether the last axis of the largest buffer that is read is reduced over."""
    regions = [r for r in block.reads if r.region]
    if not regions:
        return False
    largest = max(regions, key=lambda r: math.prod(int(d) for d in r.source.shape))
    kinds = {iv.var: iv.iter_type for iv in block.iter_vars}
    for r in reversed(largest.region):
        used = [v for v in _index_vars([r.min]) if v in kinds]
        if used:
            return any(kinds[v] != _SPATIAL for v in used)
    return False
