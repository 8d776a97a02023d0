"""How near each layer of a network runs to what its board could do at most.

The roofline (Williams, Waterman, Patterson, 2009): a layer takes at least its FLOPs at the FMA
peak, and at least its bytes at the bandwidth of where they lie. Bytes are the model's own: input,
weights and output once each, fp32. They are taken to lie in the smallest level that holds them
all; that is kind to the board (weights have often left it since the last run), so the bound is a
bound and not a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from tvmsep.graph import Plan
from tvmsep.graph.ir import VIEWS
from tvmsep.measure.bandwidth import Bandwidth

LOW = 0.85
"""Share of the bound under which a layer is flagged."""


class Roof(msgspec.Struct, frozen=True, kw_only=True):
    """The limits that bind a layer of so many FLOPs and bytes."""

    bound: str
    """`FMA peak`, or the level of the memory."""
    level: str
    """Where the layer's bytes are taken to lie."""
    seconds: float
    """No run can take less."""


class LayerRoof(msgspec.Struct, frozen=True, kw_only=True):
    """All runs of one kernel in a network. Seconds, FLOPs and bytes are of one run."""

    layer: str
    runs: int
    """How often the network runs it."""
    seconds: float
    flops: int
    bytes: int
    flops_per_s: float
    peak_share: float
    """Of the FMA peak of all threads."""
    bytes_per_s: float
    bound: str
    level: str
    bound_s: float
    share: float
    """Of the bound: `bound_s` over `seconds`."""
    low: bool
    """Whether the share is under `LOW`."""


def roof(
    flops: float, moved_bytes: float, peak_flops: float, bandwidths: Sequence[Bandwidth]
) -> Roof:
    """The higher of the two limits on a layer's time.

    Args:
        flops: of one run.
        moved_bytes: read and written in one run.
        peak_flops: of all threads together, a second.
        bandwidths: fastest and smallest level first; the last one holds everything.
    """
    at = next(b for b in bandwidths if moved_bytes <= b.level.holds_bytes)
    compute_s, move_s = flops / peak_flops, moved_bytes / at.bytes_per_s
    bound = "FMA peak" if compute_s >= move_s else at.level.name
    return Roof(bound=bound, level=at.level.name, seconds=max(compute_s, move_s))


def roofline(
    plan: Plan, steps_s: Sequence[float], peak_flops: float, bandwidths: Sequence[Bandwidth]
) -> list[LayerRoof]:
    """One row a distinct kernel, and one an operator that no template took, in network order.

    Args:
        plan: the network.
        steps_s: seconds of each of the plan's steps.
        peak_flops: of all threads together, a second.
        bandwidths: as `roof` takes them.
    """
    found: dict[object, tuple[str, int, int, list[float]]] = {}
    for i, step in enumerate(plan.steps):
        w = step.workload
        if w is not None:
            label, flops, moved, key = w.label, w.flops, w.bytes_moved, w.key
        elif step.node is None or step.node.op in (*VIEWS, "view", "tuple_get"):
            continue  # nothing runs
        else:
            values = [*step.inputs, step.output]
            shapes = [plan.shapes[v] if v in plan.shapes else plan.constants[v].shape
                      for v in values if v in plan.shapes or v in plan.constants]  # fmt: skip
            flops, moved = 0, 4 * sum(map(math.prod, shapes))
            label, key = f"{step.node.op} ({step.output})", step.output
        found.setdefault(key, (label, flops, moved, []))[3].append(steps_s[i])
    rows = []
    for label, flops, moved, times in found.values():
        seconds = sum(times) / len(times)
        limit = roof(flops, moved, peak_flops, bandwidths)
        share = limit.seconds / seconds
        rows.append(
            LayerRoof(
                layer=label, runs=len(times), seconds=seconds, flops=flops, bytes=moved,
                flops_per_s=flops / seconds, peak_share=flops / seconds / peak_flops,
                bytes_per_s=moved / seconds, bound=limit.bound, level=limit.level,
                bound_s=limit.seconds, share=share, low=share < LOW,
            )
        )  # fmt: skip
    return rows
