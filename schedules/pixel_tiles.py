"""Tiles of a pointwise convolution's pixels: which there are, what they cost, where they lie.

Where registers are few, tiles need not divide the pixels: the last one then begins earlier, and
computes some of its neighbour's pixels again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvmsep.contracts import Config, Target, Workload
from tvmsep.schedules.common import divisors, few_registers


def pixel_run(w: Workload) -> int:
    """Pixels that a tile may run over: all of them, or one row when strided."""
    return w.oh * w.ow if (w.sh, w.sw) == (1, 1) else w.ow


def pixel_tiles(w: Workload, t: Target) -> tuple[int, ...]:
    """Pixels of a tile: numbers that divide them and, where registers are few, others.

    Those compute up to an eighth of the pixels twice; with strides none do.
    """
    even = divisors(pixel_run(w), t.vector_registers)
    if not few_registers(t) or (w.sh, w.sw) != (1, 1):
        return even
    pixels = w.oh * w.ow
    uneven = [p for p in (3, 4, 5, 6) if p < pixels and tiles_of(w, p) * p <= pixels * 9 / 8]
    return tuple(sorted({*even, *uneven}))


def tile_of(c: Config) -> int:
    """Pixels of a tile; one where a config has no tiles, for the maths alone."""
    return c.int("tile_p") if "tile_p" in c else 1


def tiles_of(w: Workload, tile_p: int) -> int:
    """Tiles of pixels, the last of which may begin before the one before it ends."""
    return -(-w.oh * w.ow // tile_p)


def places(w: Workload, c: Config) -> Callable[[Any], Any]:
    """Of a pixel of whole tiles, which pixel of the image it is."""
    from tvm import te

    tile, pixels = tile_of(c), w.oh * w.ow
    if pixels % tile == 0:
        return lambda p: p
    if tile > pixels:
        raise ValueError(f"tile_p={tile} for an image of {pixels} pixels")
    return lambda p: te.min(te.indexdiv(p, tile) * tile, pixels - tile) + te.indexmod(p, tile)
