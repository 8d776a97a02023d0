"""How near each layer of a network runs to what its board could do at most.

The roofline (Williams, Waterman, Patterson, 2009): a layer takes at least its FLOPs at the FMA
peak, and at least its bytes at the bandwidth of where they lie. Bytes are the model's own: input,
weights and output once each, fp32. They are taken to lie in the smallest level that holds them
all, which is kind to the board, so the bound is a bound and not a prediction. Weights have another
one: a whole run of the network lies between two reads of them, so they arrive at what a buffer as
large as the network is read at, again and again. That is a median, which a lucky run may beat.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tvmsep.compiler import Part
from tvmsep.measure.bandwidth import WEIGHTS, Bandwidth

LOW = 0.85
"""Share of the bound under which a layer is flagged."""


class Roof(msgspec.Struct, frozen=True, kw_only=True):
    """The limits that bind a layer of so many FLOPs and bytes."""

    bound: str
    """`FMA peak`, the level of the memory, or `weights`."""
    level: str
    """Where the layer's bytes are taken to lie."""
    seconds: float
    """No run can take less; where weights bind, none does on average."""


class LayerRoof(msgspec.Struct, frozen=True, kw_only=True):
    """All runs of one kernel in a network. Seconds, FLOPs and bytes are of one run."""

    layer: str
    runs: int
    """How often the network runs it."""
    template: str
    """Empty for an operator that no template took."""
    config: str
    seconds: float
    time_share: float
    """Of all layers' time, all runs together."""
    flops: int
    bytes: int
    flop_per_byte: float
    """Its place on a roofline's horizontal axis."""
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
    flops: float, moved_bytes: float, weight_bytes: float, peak_flops: float,
    bandwidths: Sequence[Bandwidth],
) -> Roof:  # fmt: skip
    """The highest of the limits on a layer's time.

    Args:
        flops: of one run.
        moved_bytes: read and written in one run.
        weight_bytes: of them the weights'.
        peak_flops: of all threads together, a second.
        bandwidths: of the levels, fastest and smallest first, one of which holds everything; and of
            weights, if that was measured.
    """
    at = next(b for b in bandwidths if moved_bytes <= b.level.holds_bytes)
    limits = {"FMA peak": flops / peak_flops, at.level.name: moved_bytes / at.bytes_per_s}
    for b in bandwidths:
        if b.level.name == WEIGHTS:
            limits[WEIGHTS] = weight_bytes / b.bytes_per_s
    bound = max(limits, key=lambda name: limits[name])
    return Roof(bound=bound, level=at.level.name, seconds=limits[bound])


def label(part: Part) -> str:
    """How tables name a part of a network."""
    return part.workload.label if part.workload else f"{part.operator} ({part.name})"


def roofline(
    parts: Sequence[Part],
    parts_s: Sequence[float],
    peak_flops: float,
    bandwidths: Sequence[Bandwidth],
) -> list[LayerRoof]:
    """One row a distinct kernel, and one an operator that no template took, in network order.

    Args:
        parts: of the network.
        parts_s: seconds of each.
        peak_flops: of all threads together, a second.
        bandwidths: as `roof` takes them.
    """
    found: dict[object, tuple[Part, list[float]]] = {}
    for part, seconds in zip(parts, parts_s, strict=True):
        key = part.workload.key if part.workload else part.name
        found.setdefault(key, (part, []))[1].append(seconds)
    rows, total = [], sum(parts_s)
    for part, times in found.values():
        flops = part.workload.flops if part.workload else 0
        seconds = sum(times) / len(times)
        limit = roof(flops, part.bytes, part.weight_bytes, peak_flops, bandwidths)
        share = limit.seconds / seconds
        rows.append(
            LayerRoof(
                layer=label(part), runs=len(times), template=part.template, config=part.config,
                seconds=seconds, time_share=sum(times) / total, flops=flops, bytes=part.bytes,
                flop_per_byte=flops / part.bytes if part.bytes else 0.0,
                flops_per_s=flops / seconds, peak_share=flops / seconds / peak_flops,
                bytes_per_s=part.bytes / seconds, bound=limit.bound, level=limit.level,
                bound_s=limit.seconds, share=share, low=share < LOW,
            )
        )  # fmt: skip
    return rows
