"""Which tilings of a product fit a CUDA device, and which promises most: arithmetic, no TVM.

The prediction is the slowest of four flows through one multiprocessor, for the blocks that the
busiest one gets, a part of the others, which never overlap wholly, and the waits that too few
warps cannot hide:
    multiply-adds   of whole tiles, at the peak rate
    shared memory   fragments at 128 bytes a clock
    L2              what blocks fetch, tiles of operands times blocks, at three times the bandwidth
                    of device memory (Jia et al., arXiv 1903.07486, measured four on a T4)
    device memory   every tensor once
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod, sqrt
from typing import Any

from tvmsep.contracts import Config, Gpu, Space, Target, Workload
from tvmsep.schedules.cuda.common import (
    L1_BYTES_PER_CLOCK,
    LATENCY_CLOCKS,
    SPARE_REGISTERS,
    fp32_lanes,
    gpu_of,
    resident_blocks,
)
from tvmsep.schedules.cuda.product import Product, Tiling, element_bytes

_ASYNC = 80
"""Compute capability from which cp.async exists."""
_L2_SPEED = 3
_SERIAL = 0.15
"""How much of the faster flows shows beside the slowest."""
_NEARLY = 1.3
_LARGE = 4096
"""Vectors of outputs from which tiles of few accumulators are left out."""
_TAP_REGISTERS = 184
"""Estimate beyond which compilers spill where taps of several pixels are under way."""
_MAX_THREADS = 256
_WASTE = 1.34
"""Multiply-adds computed over those needed; more only for the smallest blocks."""


@dataclass(frozen=True)
class Need:
    """What one thread block takes of a multiprocessor."""

    threads: int
    registers: int
    """Of one thread, estimated: accumulators, fragments, what is under way, addresses."""
    shared: int
    """Bytes."""


def need(g: Product, t: Tiling, w: Workload) -> Need:
    """Estimate the registers, and count the shared memory, of a tiling's blocks."""
    size = element_bytes(g.dtype)
    share = 4 // size
    pixels, channels = t.tile_p * g.vector_p, t.tile_oc * g.vector_c
    lane_a = 1 if g.along == "p" else g.vector_k
    lane_b = 1 if g.vector_c > 1 else g.vector_k
    fragments = (pixels * lane_a + channels * lane_b) // share
    vector = max(g.vector_c, g.vector_p) * (2 if "add" in w.epilogue else 1)
    block_p, block_c = pixels * t.threads_p, channels * t.threads_oc
    step = t.step_k * t.split_k * g.vector_k
    pad_b, pad_a = 4 * share, 4 * share if g.k_first else 0
    row_b = -(-step * g.vector_c // (32 * share)) * 32 * share + pad_b
    row_a = -(-block_p * g.vector_k // (32 * share)) * 32 * share + pad_a
    kept_a = row_a * step // g.vector_k if g.k_first else block_p * step
    buffers = 2 if t.pipeline in ("shared", "async") else 1
    kept_b = row_b * t.tile_oc * t.threads_oc
    shared = buffers * size * (kept_a + kept_b)
    if t.split_k > 1:
        shared += 4 * t.split_k * block_p * block_c
    moving = (block_p + block_c) * step / t.threads / share
    held = moving if t.pipeline == "registers" else min(moving, 16)
    taps = g.tap_reads and min(g.tap_reads, 9) * g.vector_k // share + 32
    registers = pixels * channels + fragments + vector + held + taps + SPARE_REGISTERS
    return Need(t.threads, ceil(registers), shared)


def product_space(g: Product, w: Workload, t: Target) -> Space:
    """Tilings that fit the device, waste little, and give each thread enough to do."""
    gpu = gpu_of(t)
    pipelines = ("none",)
    if not g.tap_reads:
        whole = w.dtype == "float32" and not w.scaled and _wide(g, w)
        copies = whole and gpu.compute_capability >= _ASYNC
        pipelines = ("none", "registers", "shared", *(("async",) if copies else ()))
    threads_p = tuple(n for n in (4, 7, 8, 14, 16, 28, 32, 64) if n < 2 * g.columns) or (1,)
    threads_oc = tuple(n for n in (1, 2, 4, 8, 16, 32) if n < 2 * g.rows)
    tile_p = tuple(n for n in (1, 2, 4, 8) if n <= g.columns and n * g.vector_p <= 16)
    tile_oc = tuple(n for n in (1, 2, 3, 4, 5) if n <= g.rows and n * g.vector_c <= 20)
    return Space(
        {
            "tile_p": tile_p,
            "tile_oc": tile_oc,
            "threads_p": threads_p,
            "threads_oc": threads_oc,
            "split_k": tuple(n for n in (1, 2, 4, 8) if n == 1 or n < g.steps),
            "step_k": tuple(
                n for n in (1, 2, 4, 8, 16) if n <= 2 * g.steps and n * g.vector_k <= 32
            ),
            "pipeline": pipelines,
        },
        lambda c: _valid(g, w, gpu, c),
    )


def _wide(g: Product, w: Workload) -> bool:
    """Whether both operands are copied 16 bytes at a time."""
    first = g.vector_p if g.along == "p" else g.vector_k if g.along == "k" else 1
    second = g.vector_c if g.vector_c > 1 or w.out_block > 1 else g.vector_k
    return first == second == 4


def _valid(g: Product, w: Workload, gpu: Gpu, c: Mapping[str, Any]) -> bool:
    """Whether a block fits the device and is not clearly a waste of it."""
    threads = c["threads_p"] * c["threads_oc"] * c["split_k"]
    large = g.rows * g.columns * g.batch >= _LARGE
    # Some tiling must be left for shapes that none suits.
    least = c["tile_p"] == c["tile_oc"] == 1 and threads <= 2 * gpu.warp and not large
    if threads > min(_MAX_THREADS, gpu.threads_per_block):
        return False
    if not least and (threads < 2 * gpu.warp or threads % gpu.warp and threads < 6 * gpu.warp):
        return False
    if c["tile_oc"] * c["tile_p"] % c["split_k"]:
        return False
    step = c["step_k"] * c["split_k"] * g.vector_k
    if not (8 if g.depth >= 32 else min(4, g.depth)) <= step <= 64:
        return False
    if c["tile_p"] * c["step_k"] * c["split_k"] == 1 < c["threads_oc"]:
        # One row of threads copies what all read: TVM takes equal indices for one thread's own
        # and leaves the barrier out.
        return False
    accumulators = c["tile_oc"] * c["tile_p"] * g.vector_c * g.vector_p
    if accumulators > 128:
        return False
    wide, high = c["threads_p"] * c["tile_p"], c["threads_oc"] * c["tile_oc"]
    computed = ceil(g.columns / wide) * wide * ceil(g.rows / high) * high
    if computed > _WASTE * g.rows * g.columns and not least:
        return False
    t = Tiling.of(Config(c))
    across, along, batch = t.grid(g)
    blocks = across * along * batch
    if t.split_k > 1 and blocks >= 4 * gpu.sms:
        return False
    if large and accumulators < 8 and blocks >= 8 * gpu.sms:
        return False
    rounds = t.rounds(g)
    if rounds * t.step_k * t.split_k > max(g.steps + 3, _WASTE * g.steps):
        return False
    if rounds == 1 and t.pipeline != "none":
        return False
    if t.pipeline == "async" and rounds * t.step_k * t.split_k != g.steps:
        return False
    n = need(g, t, w)
    if g.tap_reads and n.registers > _TAP_REGISTERS and not least:
        return False
    return resident_blocks(gpu, n.threads, n.registers, n.shared) >= 1


@lru_cache(maxsize=1024)
def default_config(g: Product, w: Workload, t: Target) -> Config:
    """The tiling of least predicted time; of equals the one that needs the fewest registers.

    Where the first operand is computed, which is done to spare memory, the tiling that fetches
    least among those that are nearly as quick.
    """
    gpu = gpu_of(t)
    times = {
        c: predicted_clocks(g, w, gpu, Tiling.of(c))
        for c in product_space(g, w, t).configs()
        if c["pipeline"] != "async"
    }
    limit = min(times.values()) * (_NEARLY if g.tap_reads else 1)

    def rank(c: Config) -> tuple[float, ...]:
        tiling = Tiling.of(c)
        moved = block_bytes(g, w, tiling) * prod(tiling.grid(g)) if g.tap_reads else 0
        return (moved, times[c], need(g, tiling, w).registers)

    return min((c for c in times if times[c] <= limit), key=rank)


def block_bytes(g: Product, w: Workload, t: Tiling) -> float:
    """What one thread block fetches and writes of global memory, each byte once."""
    span = t.tile_p * t.threads_p * g.vector_p
    channels = t.tile_oc * t.threads_oc * g.vector_c
    depth = t.rounds(g) * t.step_k * g.vector_k * t.split_k
    # Under the taps of a run of pixels lie its own and those of `kh - 1` rows around it.
    pixels = span * w.sh * w.sw + (w.kh - 1) * min(span * w.sw, w.iw) if g.tap_reads else span
    written = span * channels * (2 if "add" in w.epilogue else 1)
    return element_bytes(g.dtype) * ((pixels + channels) * depth + written)


def predicted_clocks(g: Product, w: Workload, gpu: Gpu, t: Tiling) -> float:
    """Clocks from the first block's start to the last one's end, see the module's docstring."""
    size = element_bytes(g.dtype)
    across, along, batch = t.grid(g)
    blocks = across * along * batch
    n = need(g, t, w)
    resident = resident_blocks(gpu, n.threads, n.registers, n.shared)
    share = ceil(blocks / gpu.sms)
    at_once = min(resident, share)
    waves = ceil(share / resident)
    depth = t.rounds(g) * t.step_k * g.vector_k * t.split_k
    block_p = t.tile_p * t.threads_p * g.vector_p
    block_c = t.tile_oc * t.threads_oc * g.vector_c
    pixels, channels = t.tile_p * g.vector_p, t.tile_oc * g.vector_c
    multiply = block_p * block_c * depth / fp32_lanes(gpu)
    loaded = depth * n.threads / t.split_k * (pixels + channels) * size
    # A warp whose threads share pixels or channels is served their fragment once.
    wide = min(t.threads_p, gpu.warp)
    reuse = gpu.warp / (pixels * wide + channels * gpu.warp / wide) * (pixels + channels)
    loads = loaded / min(reuse, 4.0) / L1_BYTES_PER_CLOCK
    spread = 4 * t.split_k * block_p * block_c * 2 / L1_BYTES_PER_CLOCK if t.split_k > 1 else 0
    near = block_p * depth * g.tap_reads * size / L1_BYTES_PER_CLOCK
    clock = gpu.clock_ghz * 1e9
    l2 = block_bytes(g, w, t) / (_L2_SPEED * gpu.bandwidth / clock / gpu.sms)
    taps = block_p * depth * g.tap_reads / fp32_lanes(gpu)
    memory = w.bytes_moved * size / 4 / gpu.bandwidth * clock
    # Independent instructions of all warps that are there hide the latency of each.
    warps = at_once * n.threads / gpu.warp
    fill = min(1.0, warps * sqrt(min(pixels * channels, 16)) / 24)
    flows = (share * (multiply + taps) / fill, share * (loads + near) / fill, share * l2, memory)
    work = (1 - _SERIAL) * max(flows) + _SERIAL * sum(flows) + share * spread
    per_step = {"none": 1.0, "registers": 0.4, "shared": 0.7}.get(t.pipeline, 0.4)
    waits = waves * LATENCY_CLOCKS * (1 + per_step * (t.rounds(g) - 1) / max(1.0, at_once))
    return float(work + waits)
