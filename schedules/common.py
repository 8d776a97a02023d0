"""The one pattern that every accumulating template shares, and small arithmetic for spaces.

The pattern: a stage `acc` reduces into a tile that is small enough to live in registers, a stage
`out` runs the epilogue over the same tile and stores it. LLVM promotes the tile to registers only
if each of its indices is a constant after unrolling, so everything inside the tile is unrolled or
vectorised, and the initialisation is split off the reduction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Target, Workload
from tvmsep.contracts.workload import ITEM_BYTES

HALF_SUM = 64
"""Products that are added in float16, about, before their sum is added to others in float32."""

if TYPE_CHECKING:
    from tvm import s_tir, te


def divisors(n: int, limit: int | None = None) -> tuple[int, ...]:
    """Divisors of `n` up to `limit`, ascending."""
    return tuple(d for d in range(1, min(n, limit or n) + 1) if n % d == 0)


def accumulator_limit(t: Target, tile_p: int, tile_oc: int) -> int:
    """Vector accumulators that fit beside the operands of a register tile.

    Those are the weights, and a broadcast where one is needed. Where registers are few the smaller
    side is held, weights or broadcasts, and the other one passes by (`pixels_first`).
    """
    if few_registers(t):
        return t.vector_registers - min(tile_p, tile_oc) - 1
    spare = tile_oc + (0 if t.broadcast_operand and tile_oc == 1 else 1)
    return t.vector_registers - spare


def pixels_first(t: Target, tile_p: int, tile_oc: int) -> bool:
    """Whether a register tile's pixels run outermost, so that a broadcast is used up at once.

    Otherwise LLVM keeps one for each pixel in a register, beside one vector of weights.
    """
    if t.broadcast_operand or t.lane_operand or (few_registers(t) and tile_p < tile_oc):
        return False
    return (tile_p + 1) * (tile_oc + 1) > t.vector_registers


def few_registers(t: Target) -> bool:
    """Whether few accumulators fit, for two multiply-adds a cycle: few tiles are good then."""
    return t.vector_registers <= 16 and t.fma_per_cycle >= 2 and not t.lane_operand


def tile_cost(t: Target, block: int, tile_p: int, tile_oc: int, *, folds: bool = True) -> float:
    """Predicted cycles per FMA, relative to the peak, of a register tile of a matrix product.

    Two limits, and a margin: FMA latency wants `latency * rate` accumulators; each pixel's scalar
    and each weight vector is a load, of which a core does two a cycle (of its native width); and
    LLVM spills. It loads all broadcasts of a step first, so they count beside the weights; where
    they fold into the FMA nothing spills, and yet more accumulators than hide the latency cost a
    little. The small terms are fitted to some 2000 measured configs of four networks on Zen 4.
    `folds` is false where the pixels do not lie so that a broadcast could fold.
    """
    if t.lane_operand:
        return _lane_tile_cost(t, block, tile_p, tile_oc)
    if few_registers(t):
        return _few_tile_cost(t, tile_p, tile_oc)
    acc = tile_p * tile_oc
    wide = 2 if block < t.lanes and t.half_width_is_free else 1
    rate = t.fma_per_cycle * wide
    stall = max(1.0, t.fma_latency_cycles * rate / acc)
    folded = folds and t.broadcast_operand and tile_oc == 1
    scalars = acc if folded else tile_p
    loads = max(1.0, (tile_oc + scalars) / acc * rate / 2)
    if t.vector_registers >= 32:
        live = acc + tile_oc + (1 if folded else tile_p)
        spill = 1.0 + max(0, live - t.vector_registers) * 0.1
        want = 2 * t.fma_latency_cycles * rate  # no slack is left with half of it
        margin = 0.3 * max(0.0, want / acc - 1) + 0.0025 * wide * max(0, acc - want)
        margin += 0.0 if folded else 0.3 * wide / acc
    else:
        spill = 1.0 + max(0, acc - 12) * 0.1
        margin = 0.3 / acc
    return stall * loads * spill * (1 + margin)


def _few_tile_cost(t: Target, tile_p: int, tile_oc: int) -> float:
    """As `tile_cost`, among 16 registers, where no load folds: of 1.5 a cycle at most.

    Twelve accumulators are best, and few loads. Fitted to the pointwise layers of four networks
    on Zen 3, each with six to ten tiles in turns (docs/tiles.md).
    """
    acc = tile_p * tile_oc
    stall = max(1.0, t.fma_latency_cycles * t.fma_per_cycle / acc)
    loads = (tile_p + tile_oc) / acc
    apart = 0.02 * max(0, 12 - acc) + 0.05 * max(0, acc - 12)
    return max(stall, loads * t.fma_per_cycle / 1.5) * (1 + apart + 0.3 * loads)


def unrolled_channels(w: Workload, t: Target) -> int:
    """Input channels that are unrolled by default: a block where multiply-adds take its lanes.

    Where registers are few, up to eight. LLVM unrolls a block by itself up to eight accumulators
    and leaves a loop in kernels of more; with twelve that cost up to 1.4 times the time on Zen 3
    inside networks (docs/tiles.md). Elsewhere it is left to LLVM.
    """
    if t.lane_operand:
        return w.in_block
    return max(u for u in (1, 2, 4, 8) if w.in_block % u == 0) if few_registers(t) else 1


def _lane_tile_cost(t: Target, block: int, tile_p: int, tile_oc: int) -> float:
    """As `tile_cost`, where multiply-adds take lanes of whole vectors of a pixel's channels.

    Beside the accumulators live one vector a pixel and two of weights, loaded in turn. One load
    a multiply-add would be free on every core of the targets; fewer cost less of the decoder. In
    float16, whose blocks are twice as wide, lanes are taken of the first 16 registers alone: more
    than eight pixels spill.
    """
    acc = tile_p * tile_oc
    stall = max(1.0, t.fma_latency_cycles * t.fma_per_cycle / acc)
    loads = (tile_p + block * tile_oc) / (block * acc)
    spill = 1.0 + max(0, acc + tile_p + 2 - t.vector_registers) * 0.1
    if block > t.lanes:
        spill += max(0, tile_p - 8) * 0.1
    slack = 0.1 * max(0.0, 2 * t.fma_latency_cycles * t.fma_per_cycle / acc - 1)
    return stall * spill * (1 + slack + 0.3 * loads)


def epilogue_inputs(w: Workload) -> tuple[te.Tensor | None, te.Tensor | None]:
    """Placeholders for bias and residual, where the epilogue has them."""
    from tvm import te

    bias = res = None
    if "bias" in w.epilogue:
        bias = te.placeholder((w.out_blocks, w.out_block), name="bias")
    if "add" in w.epilogue:
        res = te.placeholder(w.out_shape, name="residual", dtype=w.dtype)
    return bias, res


def item_bytes(w: Workload) -> int:
    """Of an activation between kernels, and of a weight."""
    return ITEM_BYTES[w.dtype]


def summed(
    w: Workload,
    shape: Sequence[int],
    blocks: int,
    within: Sequence[Any],
    product: Callable[..., Any],
) -> te.Tensor:
    """The stage `acc`: sums over `blocks` and the axes `within` one; `product_tile` schedules it.

    Float32 sums are of one piece. In float16 the error of a sum grows with the root of its length,
    8e-4 of the outputs' deviation for 64 products and 3e-3 for 1024: so a stage `part` adds about
    `HALF_SUM` of them in float16, and `acc` adds the parts in float32.

    Args:
        w: for its dtype.
        shape: of the output.
        blocks: extent of the outer reduction axis, `io`.
        within: the other reduction axes.
        product: of an output index and a block, what is summed.
    """
    from math import prod

    from tvm import te

    step = blocks
    if w.dtype != "float32":
        each = prod(int(axis.dom.extent) for axis in within)
        step = min(divisors(blocks), key=lambda d: max(d * each / HALF_SUM, HALF_SUM / (d * each)))
    io = te.reduce_axis((0, step), name="io")
    if step == blocks:
        return te.compute(
            shape, lambda *at: te.sum(product(*at, io), axis=[io, *within]), name="acc"
        )  # fmt: skip
    ko = te.reduce_axis((0, blocks // step), name="ko")
    part = te.compute(
        (blocks // step, *shape),
        lambda k, *at: te.sum(product(*at, k * step + io), axis=[io, *within]),
        name="part",
    )
    return te.compute(
        shape, lambda *at: te.sum(part(ko, *at).astype("float32"), axis=[ko]), name="acc"
    )


def prim_func(args: Iterable[te.Tensor | None]) -> Any:
    """A PrimFunc over the tensors that exist."""
    from tvm import te

    return te.create_prim_func([a for a in args if a is not None])


def product_tile(
    sch: s_tir.Schedule,
    at: Any,
    reduce_order: Sequence[str],
    unroll: dict[str, int],
    vector_axis: int,
    **how: bool,
) -> None:
    """Compute what `summed` made at loop `at` as register tiles; arguments as `register_tile`'s."""
    names = [sch.get(b).name_hint for b in sch.get_child_blocks(sch.get_sblock("root"))]
    acc = sch.get_sblock("acc")
    if "part" not in names:
        register_tile(sch, acc, at, reduce_order, unroll, vector_axis, **how)
        return
    part = sch.get_sblock("part")
    at = register_tile(sch, acc, at, ("ko",), {}, vector_axis)
    register_tile(sch, part, at, reduce_order, unroll, vector_axis + 1, **how)


def register_tile(
    sch: s_tir.Schedule,
    acc: Any,
    at: Any,
    reduce_order: Sequence[str],
    unroll: dict[str, int],
    vector_axis: int,
    pixels_first: bool = False,
    by_lane: bool = False,
) -> Any:
    """Compute block `acc` at loop `at` as a register tile.

    Args:
        sch: the schedule.
        acc: the reduction block. Its loops under `at` are the tile's spatial axes (the one at
            `vector_axis`, counted from the first spatial loop, is vectorised, the others unrolled)
            and then its reduction axes.
        at: the consumer's loop under which the tile is computed.
        reduce_order: names of the reduction axes, outermost first.
        unroll: factor by which a reduction axis is unrolled; 0 means wholly; absent means not.
        vector_axis: position of the vectorised axis among the block's spatial axes.
        pixels_first: run the tile's last axis outermost, see the function of that name.
        by_lane: load the first operand's part of a step of the innermost serial loop as vectors,
            whose lanes the multiply-adds take.

    Returns:
        The outermost reduction loop.
    """
    sch.compute_at(acc, at, preserve_unit_loops=True)
    block = sch.get(acc)
    depth = len(sch.get_loops(acc)) - len(block.iter_vars)
    kinds = [iv.iter_type for iv in block.iter_vars]
    names = [iv.var.name.removeprefix("v_") for iv in block.iter_vars]
    loops = sch.get_loops(acc)[depth:]
    spatial = [lp for lp, k in zip(loops, kinds, strict=True) if k == 0]
    reduce = {n: lp for lp, k, n in zip(loops, kinds, names, strict=True) if k != 0}
    vector = spatial.pop(vector_axis)
    serial: list[Any] = []
    unrolled: list[Any] = []
    for name in reduce_order:
        loop = reduce[name]
        factor = unroll.get(name)
        if factor is None:
            serial.append(loop)
        elif factor == 0:
            unrolled.append(loop)
        else:
            outer, inner = sch.split(loop, [None, factor])
            serial.append(outer)
            unrolled.append(inner)
    if pixels_first:
        spatial.reverse()
    sch.reorder(*serial, *unrolled, *spatial, vector)
    for loop in (*unrolled, *spatial):
        sch.unroll(loop)
    sch.vectorize(vector)
    if by_lane:
        _load_whole(sch, acc, serial[-1])
    outermost = (serial or unrolled)[0]
    init = sch.decompose_reduction(acc, outermost)
    *init_tile, init_vector = sch.get_loops(init)[depth:]
    for loop in init_tile:
        sch.unroll(loop)
    sch.vectorize(init_vector)
    return outermost


def _load_whole(sch: s_tir.Schedule, acc: Any, at: Any) -> None:
    """Load what `acc` reads of its first operand under loop `at` as vectors, into registers.

    Multiply-adds then take lanes of these vectors; LLVM alone loads each scalar for itself. The
    copy's scope is "global" because TVM takes a "local" one from its allocator, once a tile.
    """
    depth = [loop.same_as(sch.get(at)) for loop in map(sch.get, sch.get_loops(acc))].index(True)
    copy = sch.cache_read(acc, 0, "global")
    sch.compute_at(copy, at)
    *rest, vector = sch.get_loops(copy)[depth + 1 :]
    for loop in rest:
        sch.unroll(loop)
    sch.vectorize(vector)


def finish_tile(sch: s_tir.Schedule, unrolled: Iterable[Any], vector: Any) -> None:
    """Unroll and vectorise the epilogue's loops over a tile."""
    for loop in unrolled:
        sch.unroll(loop)
    sch.vectorize(vector)
