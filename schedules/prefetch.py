"""Prefetch of weights: the next panel, while the tiles of the present one are computed.

A panel, the weights of a tile's output blocks, is read once for each tile of pixels: from memory or
a shared cache the first time, since a network's other weights have been there since its last run,
and from L1 or L2 afterwards. Where few tiles follow, as in images of 7x7, the first one is a good
part of the time, and its misses are not hidden: the hardware sees each panel as a new stream. So
the tiles of a panel ask for the lines of the one that comes next, each for its part.

On Zen 3, inside MobileNetV2, the 7x7 layers took 0.82 to 0.92 of their time with it, those of 14x14
0.92 to 0.99; on Zen 4 0.86 to 1.00 and 0.95 to 1.00 (docs/prefetch.md). Many lines must be asked
for between the multiply-adds, a few a step: 18 to 80 of them at a tile's begin gained half as much
or lost 7 %, since a core has places for some 20 misses. Few are best asked for there: inside the
loops they cost 14x14 layers 1 to 5 %.

Dense layers use each weight once and read several streams at a time; there it is the same panel's
weights that are asked for, 32 channels ahead. Squeeze-and-excite's layers, whose streams are short,
took 0.78 to 0.96 of their time with it on Zen 4 at one thread, classifiers 0.95 to 1.01; all of
MobileNetV3-Large's 0.83 to 0.92 at two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Target, Workload
from tvmsep.schedules.common import few_registers, item_bytes

if TYPE_CHECKING:
    from tvm import s_tir

LINE = 64
"""Bytes of a cache line; where lines are longer, some are asked for twice."""
_BURST = 16
"""Lines that a tile may ask for at once."""
_AHEAD = 32
"""Channels by which streams are asked for before their use, a vector of weights each."""


def may_prefetch(w: Workload) -> bool:
    """Whether `prefetch` is a knob: the image is so small that reading weights once shows.

    A panel from memory takes the time of some ten pixels' multiply-adds: a fifth of those of 7x7, a
    hundredth of those of 28x28. In float16, sums are of parts, whose loops are others.
    """
    return w.oh * w.ow <= 512 and w.dtype == "float32"


def prefetches(w: Workload, t: Target) -> bool:
    """Whether that is the default: where it was measured, up to 14x14."""
    return _measured(t) and may_prefetch(w) and w.oh * w.ow <= 256


def prefetch_next(
    sch: s_tir.Schedule,
    w: Workload,
    at: Any,
    panel: Any,
    tiles: int,
    number: Any,
    tile_oc: int,
    level: int,
) -> None:
    """Let the tiles of one panel ask for the one after it. Blocks can no longer be moved after it.

    Args:
        sch: the schedule, whose block `acc_update` sums products with the parameter `w`,
            `[output blocks, channels, lanes]`.
        w: the workload.
        at: the loop of one tile.
        panel: which of the panels, of `tile_oc` output blocks each, the tile reads.
        tiles: how many tiles read it, one after the other.
        number: which of those the tile is.
        tile_oc: output blocks of a panel.
        level: of the cache that the lines shall come to; 1 to 3.
    """
    from tvm import tirx

    panels = _weights(sch)
    row = w.out_block * item_bytes(w)
    lines = -(-tile_oc * w.in_blocks * w.in_block * row // LINE)
    loop, steps, step = at, 1, 0
    if lines > _BURST * tiles:
        loop = _inside(sch, at)[0]
        step = sch.get(loop).loop_var
        steps = int(sch.get(loop).extent)
    count = -(-lines // (tiles * steps))
    after = tirx.indexmod(panel + 1, w.out_blocks // tile_oc)
    asks = []
    for k in range(count):
        line = (number * steps + step) * count + k
        address = tirx.address_of(panels[after * tile_oc, line * LINE // row, 0])
        asks.append(_ask(address, level))
    enough = -(-lines // (steps * count))
    _insert(sch, loop, asks, number < enough if enough < tiles else None)


def _insert(sch: s_tir.Schedule, loop: Any, asks: list[Any], when: Any = None) -> None:
    """Put calls at the begin of a loop's body, under a condition if there is one."""
    from tvm import tirx

    calls = [*map(tirx.Evaluate, asks)]
    whole: Any = tirx.SeqStmt(calls) if len(calls) > 1 else calls[0]
    if when is not None:
        whole = tirx.IfThenElse(when, whole, None)
    old = sch.get(loop)
    new = tirx.For(
        old.loop_var, old.min, old.extent, old.kind, tirx.SeqStmt([whole, old.body]),
        old.thread_binding, old.annotations,
    )  # fmt: skip
    sch.state.replace(sch.get_sref(loop), new)


def may_prefetch_stream(w: Workload, t: Target) -> bool:
    """Whether `prefetch` is a knob of a layer that uses its weights once."""
    return w.dtype == "float32" and not t.lane_operand


def prefetches_stream(w: Workload, t: Target) -> bool:
    """Whether that is the default: where it was measured."""
    return _measured(t) and may_prefetch_stream(w, t)


def _measured(t: Target) -> bool:
    """Cores of AVX2 and of AVX-512."""
    return few_registers(t) or t.broadcast_operand


def prefetch_stream(
    sch: s_tir.Schedule, w: Workload, at: Any, panel: Any, tile_oc: int, level: int
) -> None:
    """Let weights that are used once be asked for `_AHEAD` channels before, past a panel's end too.

    Each of a panel's `tile_oc` output blocks is a stream of its own, and short ones end before the
    hardware has seen that they are streams. Blocks can no longer be moved after it.

    Args:
        sch: the schedule, as `prefetch_next` takes it.
        w: the workload.
        at: the loop of one panel.
        panel: which of the panels that is.
        tile_oc: output blocks of a panel.
        level: of the cache that the lines shall come to; 1 to 3.
    """
    from tvm import tirx

    block, *inner = _inside(sch, at)
    serial = [one for one in inner if sch.get(one).kind == tirx.ForKind.SERIAL]
    loop, first, count = block, tirx.const(0), w.in_block
    if serial and int(sch.get(serial[0]).extent) > 1:
        loop = serial[0]
        count = w.in_block // int(sch.get(loop).extent)
        first = sch.get(loop).loop_var * count
    later = sch.get(block).loop_var + -(-_AHEAD // w.in_block)
    channel = tirx.indexmod(later, w.in_blocks) * w.in_block + first
    panels = w.out_blocks // tile_oc
    which = tirx.indexmod(panel + tirx.indexdiv(later, w.in_blocks), panels) * tile_oc
    weights = _weights(sch)
    step = max(1, LINE // (w.out_block * item_bytes(w)))
    asks = [
        _ask(tirx.address_of(weights[which + o, channel + k, 0]), level)
        for k in range(0, count, step)
        for o in range(tile_oc)
    ]
    _insert(sch, loop, asks)


def _inside(sch: s_tir.Schedule, at: Any) -> list[Any]:
    """The loops of the reduction under loop `at`, the outermost first."""
    loops = sch.get_loops(sch.get_sblock("acc_update"))
    depth = [sch.get(loop).same_as(sch.get(at)) for loop in loops].index(True)
    return list(loops[depth + 1 :])


def _weights(sch: s_tir.Schedule) -> Any:
    """The parameter `w`, as the reduction reads it."""
    reads = sch.get(sch.get_sblock("acc_update")).reads
    return next(region.source for region in reads if region.source.name == "w")


def _ask(address: Any, level: int) -> Any:
    """A call that asks for a line. Not `tirx.prefetch`, whose text TVM's parser does not know."""
    from tvm import tirx

    return tirx.call_llvm_intrin("void", "llvm.prefetch", address, 0, 4 - level, 1)
