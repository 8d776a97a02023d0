"""Tiles of a run of pixels, of an image or of a row: which there are, and where they lie.

Where registers are few, tiles need not divide the pixels: the last one then begins earlier, and
computes some of its neighbour's pixels again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvmsep.contracts import Config, Target, Workload
from tvmsep.schedules.common import divisors, few_registers

UNEVEN = 1.015
"""What tiles that do not divide the pixels cost beside the pixels that are computed twice."""


def pixel_run(w: Workload) -> int:
    """Pixels that a tile may run over: all of them, or one row when strided."""
    return w.oh * w.ow if (w.sh, w.sw) == (1, 1) else w.ow


def pixel_tiles(w: Workload, t: Target) -> tuple[int, ...]:
    """Pixels of a tile: numbers that divide them and, where registers are few, others.

    Those compute up to an eighth of the pixels twice; with strides none do.
    """
    if (w.sh, w.sw) != (1, 1):
        return divisors(pixel_run(w), t.vector_registers)
    return tiles_in(w.oh * w.ow, t)


def tiles_in(run: int, t: Target) -> tuple[int, ...]:
    """Tiles of a run of pixels: as `pixel_tiles`."""
    even = divisors(run, t.vector_registers)
    uneven = (3, 4, 5, 6) if few_registers(t) else ()
    return tuple(
        sorted({*even, *(p for p in uneven if p < run and -(-run // p) * p <= run * 9 / 8)})
    )


def tile_of(c: Config) -> int:
    """Pixels of a tile; one where a config has no tiles, for the maths alone."""
    return c.int("tile_p") if "tile_p" in c else 1


def tiles_of(w: Workload, tile_p: int) -> int:
    """Tiles of pixels, the last of which may begin before the one before it ends."""
    return -(-w.oh * w.ow // tile_p)


def places(w: Workload, c: Config) -> Callable[[Any], Any]:
    """Of a pixel of whole tiles, which pixel of the image it is."""
    return places_in(w.oh * w.ow, tile_of(c))


def places_in(run: int, tile: int) -> Callable[[Any], Any]:
    """Of a pixel of whole tiles, which of a run of pixels it is."""
    from tvm import te

    if run % tile == 0:
        return lambda p: p
    if tile > run:
        raise ValueError(f"tiles of {tile} pixels for a run of {run}")
    return lambda p: te.min(te.indexdiv(p, tile) * tile, run - tile) + te.indexmod(p, tile)
