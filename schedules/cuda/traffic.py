"""Bytes that CUDA kernels move between global memory and multiprocessors, counted from a config.

A thread block fetches what it needs once: what its threads share comes from shared memory or L1.
What several blocks need each of them fetches: halos of neighbouring tiles, weights for every tile
of pixels, pixels for every tile of channels. So the count is that of arXiv 2404.19331 ("global
memory accesses"); L2 may serve the repetitions, which `Traffic.repeated` tells apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tvmsep.contracts import Config, Target, Workload
from tvmsep.schedules.cuda.common import vector_lanes
from tvmsep.schedules.cuda.fused import fused_product
from tvmsep.schedules.cuda.pointwise import geometry
from tvmsep.schedules.cuda.product import Tiling, element_bytes


@dataclass(frozen=True)
class Traffic:
    """Bytes of one kernel, or of several that follow each other."""

    activations: int
    """Fetched of inputs and residuals."""
    weights: int
    """Fetched of weights and biases."""
    written: int
    repeated: int = 0
    """Of all that is fetched: what another block of the same kernel fetches too."""

    @property
    def total(self) -> int:
        """Everything that is fetched or written."""
        return self.activations + self.weights + self.written

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.activations + other.activations, self.weights + other.weights,
            self.written + other.written, self.repeated + other.repeated,
        )  # fmt: skip


def traffic(w: Workload, t: Target, c: Config) -> Traffic:
    """What the kernel of a "pointwise", "depthwise" or "dwpw" workload moves under a config.

    Raises:
        ValueError: another operator.
    """
    match w.op:
        case "pointwise" | "dwpw":
            return _product(w, c)
        case "depthwise":
            return _depthwise(w, c)
        case _:
            raise ValueError(f"the traffic of {w.op!r} kernels is not counted")


def pair_traffic(w: Workload, t: Target) -> tuple[Traffic, Traffic]:
    """Of a "dwpw" workload: the fused kernel, and the two separate ones, with default configs."""
    from tvmsep.schedules.cuda import TEMPLATES

    def of(name: str, part: Workload) -> Traffic:
        return traffic(part, t, TEMPLATES[name].default(part, t, 1))

    first, last = w.parts
    separate = of("cuda_depthwise", first) + of("cuda_pointwise", last)
    return of("cuda_dwpw", w), separate


def _product(w: Workload, c: Config) -> Traffic:
    fused = w.op == "dwpw"
    g = fused_product(w) if fused else geometry(w)
    tiling, size = Tiling.of(c), element_bytes(w.dtype)
    across, along, batch = tiling.grid(g)
    span = tiling.tile_p * tiling.threads_p * g.vector_p
    pixels = _fetched_pixels(w, span) if fused else g.pixels
    once = w.n * g.depth * size * (_used_pixels(w) if fused else g.pixels)
    fetched = w.n * g.depth * pixels * along * size
    weights = (g.channels * g.depth * size + _bias_bytes(w)) * batch
    taps = (g.depth * w.kh * w.kw * size + _bias_bytes(w, mid=True)) * along if fused else 0
    written = w.n * g.channels * g.pixels * size
    scale = w.n * g.depth * size * across * along if w.scaled else 0
    return Traffic(
        activations=fetched + scale + written * ("add" in w.epilogue),
        weights=(weights + taps) * across,
        written=written,
        repeated=(fetched - once)
        + (weights + taps) * across
        - (weights // batch + (taps // along if fused else 0)),
    )


def _depthwise(w: Workload, c: Config) -> Traffic:
    size, channels = element_bytes(w.dtype), w.out_blocks * w.out_block
    lanes = max(1, w.out_block // vector_lanes(w, w.out_block))
    if c["stage"] == "shared":
        rows, cols = c.int("rows") * c.int("tile_h"), c.int("cols") * c.int("tile_w")
        pixels = sum(
            _input_pixels(w, slice(h, h + rows), slice(x, x + cols))
            for h in range(0, w.oh, rows)
            for x in range(0, w.ow, cols)
        )
    else:
        tiles = max(1, c.int("threads") // lanes)
        pixels = _fetched_pixels(w, tiles * c.int("tile_h") * c.int("tile_w"))
    fetched = w.n * channels * pixels * size
    written = w.n * channels * w.oh * w.ow * size
    weights = channels * w.kh * w.kw * size + _bias_bytes(w)
    return Traffic(
        activations=fetched + written * ("add" in w.epilogue),
        weights=weights * w.n,
        written=written,
        repeated=fetched - w.n * channels * _used_pixels(w) * size + weights * (w.n - 1),
    )


def _bias_bytes(w: Workload, *, mid: bool = False) -> int:
    channels = w.in_blocks * w.in_block if mid else w.out_blocks * w.out_block
    return 4 * channels * ("bias" in (w.mid_epilogue if mid else w.epilogue))


def _used_pixels(w: Workload) -> int:
    """Pixels of one input image that any output reads."""
    return _input_pixels(w, slice(None), slice(None))


@lru_cache(maxsize=4096)
def _fetched_pixels(w: Workload, span: int) -> int:
    """Pixels of one input image that blocks of `span` outputs, row by row, fetch in all."""
    total, pixels = 0, w.oh * w.ow
    for first in range(0, pixels, span):
        last = min(first + span, pixels) - 1
        top, bottom = first // w.ow, last // w.ow
        if top == bottom:
            total += _input_pixels(w, slice(top, top + 1), slice(first % w.ow, last % w.ow + 1))
            continue
        mask = np.zeros((bottom - top + 1) * w.ow, bool)
        mask[first - top * w.ow : last - top * w.ow + 1] = True
        total += _input_pixels(w, slice(top, bottom + 1), slice(None), mask.reshape(-1, w.ow))
    return total


def _input_pixels(w: Workload, rows: slice, cols: slice, mask: np.ndarray | None = None) -> int:
    """Distinct input pixels under the taps of a rectangle of outputs, or of those in `mask`."""
    tall = np.arange(w.oh)[rows]
    wide = np.arange(w.ow)[cols]
    chosen = np.ones((len(tall), len(wide)), bool) if mask is None else mask
    first = int(tall[0]) * w.sh
    height = (len(tall) - 1) * w.sh + (w.kh - 1) * w.dh + 1
    seen = np.zeros((height, (w.ow - 1) * w.sw + (w.kw - 1) * w.dw + 1), bool)
    for i in range(w.kh):
        for j in range(w.kw):
            at = np.ix_((tall * w.sh - first) + i * w.dh, wide * w.sw + j * w.dw)
            seen[at] |= chosen
    top, left = first - w.pads[0], -w.pads[1]
    inside = seen[max(0, -top) : w.ih - top, max(0, -left) : w.iw - left]
    return int(inside.sum())
