"""Prefetch of the next panel of weights while the tiles of the present one are computed.

A panel, the weights of a tile's output blocks, is read once for each tile of pixels: from memory or
a shared cache the first time, since a network's other weights have been there since its last run,
and from L1 or L2 afterwards. Where few tiles follow, as in images of 7x7, the first one is a good
part of the time, and its misses are not hidden: the hardware sees each panel as a new stream. So
the tiles of a panel ask for the lines of the one that comes next, each for its part.

On Zen 3, inside MobileNetV2, the 7x7 layers took 0.82 to 0.92 of their time with it, those of 14x14
0.92 to 0.99; on Zen 4 0.87 to 1.00 and 0.97 to 1.00 (docs/prefetch.md). Many lines must be asked
for between the multiply-adds, a few a step: 18 to 80 of them at a tile's begin gained half as much
or lost 7 %, since a core has places for some 20 misses. Few are best asked for there: inside the
loops they cost 14x14 layers 1 to 5 %.
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


def may_prefetch(w: Workload) -> bool:
    """Whether `prefetch` is a knob: the image is so small that reading weights once shows.

    A panel from memory takes the time of some ten pixels' multiply-adds: a fifth of those of 7x7, a
    hundredth of those of 28x28. In float16, sums are of parts, whose loops are others.
    """
    return w.oh * w.ow <= 512 and w.dtype == "float32"


def prefetches(w: Workload, t: Target) -> bool:
    """Whether that is the default: where it was measured, on AVX2 and AVX-512, up to 14x14."""
    measured = few_registers(t) or t.broadcast_operand
    return measured and may_prefetch(w) and w.oh * w.ow <= 256


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

    reads = sch.get(sch.get_sblock("acc_update")).reads
    panels = next(region.source for region in reads if region.source.name == "w")
    row = w.out_block * item_bytes(w)
    lines = -(-tile_oc * w.in_blocks * w.in_block * row // LINE)
    loop, steps, step = at, 1, 0
    if lines > _BURST * tiles:
        loop = _within(sch, at)
        step = sch.get(loop).loop_var
        steps = int(sch.get(loop).extent)
    count = -(-lines // (tiles * steps))
    after = tirx.indexmod(panel + 1, w.out_blocks // tile_oc)
    asks = []
    for k in range(count):
        line = (number * steps + step) * count + k
        address = tirx.address_of(panels[after * tile_oc, line * LINE // row, 0])
        # Not `tirx.prefetch`, whose text in a bundle TVM's parser does not know.
        asks.append(tirx.call_llvm_intrin("void", "llvm.prefetch", address, 0, 4 - level, 1))
    whole: Any = tirx.SeqStmt([*map(tirx.Evaluate, asks)]) if count > 1 else tirx.Evaluate(asks[0])
    if (enough := -(-lines // (steps * count))) < tiles:
        whole = tirx.IfThenElse(number < enough, whole, None)
    old = sch.get(loop)
    new = tirx.For(
        old.loop_var, old.min, old.extent, old.kind, tirx.SeqStmt([whole, old.body]),
        old.thread_binding, old.annotations,
    )  # fmt: skip
    sch.state.replace(sch.get_sref(loop), new)


def _within(sch: s_tir.Schedule, at: Any) -> Any:
    """The outermost loop of the reduction under loop `at`."""
    loops = sch.get_loops(sch.get_sblock("acc_update"))
    depth = [sch.get(loop).same_as(sch.get(at)) for loop in loops].index(True)
    return loops[depth + 1]
