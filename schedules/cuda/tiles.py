"""Which tilings of a product fit a CUDA device, and which promises most: arithmetic, no TVM.

What a tiling does is counted here as its lowered kernel would do it; the time that it takes is that
of `limits.py`, which `--board model` asks too. Left out are most bank conflicts (the layouts in
shared memory avoid them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod
from typing import Any

from tvmsep.contracts import Config, Gpu, Space, Target, Workload
from tvmsep.schedules.cuda.common import (
    L1_BYTES_PER_CLOCK,
    SPARE_REGISTERS,
    gpu_of,
    resident_blocks,
)
from tvmsep.schedules.cuda.limits import Counts, limit_seconds, repeated, total_seconds
from tvmsep.schedules.cuda.product import Product, Tiling, element_bytes

_ASYNC = 80
"""Compute capability from which cp.async exists."""
_NEARLY = 1.3
_LARGE = 4096
"""Vectors of outputs from which tiles of few accumulators are left out."""
_TAP_REGISTERS = 208
"""Estimate beyond which compilers spill where taps of several pixels are under way."""
_UNSURE_REGISTERS = 20
"""How far compilers were seen to need more than the estimate, of kernels with little room."""
_COPIES = 16
"""Turns of a thread at copying a step through registers up to which compilers write them out; an
array that a loop walks is no register."""
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
    if share > 1:  # halves are widened before they are multiplied
        fragments += pixels + channels
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
    if t.pipeline == "registers" and max(_copies(g, w, t)) > _COPIES:
        return False
    if t.pipeline == "async" and rounds * t.step_k * t.split_k != g.steps:
        return False
    n = need(g, t, w)
    if g.tap_reads and n.registers > _TAP_REGISTERS and not least:
        return False
    return resident_blocks(gpu, n.threads, n.registers, n.shared) >= 1


def _spare(gpu: Gpu, n: Need) -> int:
    """Registers that a thread could have beyond the estimate; a block gets them in four warps."""
    warps = -(-n.threads // gpu.warp // 4) * 4
    return (
        min(gpu.registers_per_thread, gpu.registers_per_block // (warps * gpu.warp)) - n.registers
    )


def candidates(g: Product, w: Workload, t: Target) -> list[Config]:
    """What a default is chosen from: tilings whose time is known and whose registers will do."""
    gpu = gpu_of(t)
    known = [c for c in product_space(g, w, t).configs() if c["pipeline"] != "async"]
    roomy = [c for c in known if _spare(gpu, need(g, Tiling.of(c), w)) >= _UNSURE_REGISTERS]
    return roomy or known


@lru_cache(maxsize=1024)
def default_config(g: Product, w: Workload, t: Target) -> Config:
    """The tiling of least predicted time; of equals the one that needs the fewest registers.

    One whose registers might not do, since theirs is an estimate, only where there is no other.
    Where the first operand is computed, which is done to spare memory, the tiling that fetches
    least among those that are nearly as quick.
    """
    gpu = gpu_of(t)
    times = {c: predicted_seconds(g, w, gpu, Tiling.of(c)) for c in candidates(g, w, t)}
    limit = min(times.values()) * (_NEARLY if g.tap_reads else 1)

    def rank(c: Config) -> tuple[float, ...]:
        tiling = Tiling.of(c)
        moved = fetched_bytes(g, w, tiling) if g.tap_reads else 0
        return (moved, times[c], need(g, tiling, w).registers)

    return min((c for c in times if times[c] <= limit), key=rank)


def fetched_bytes(g: Product, w: Workload, t: Tiling) -> float:
    """What all thread blocks fetch of both operands, each byte once a block."""
    across, along, batch = t.grid(g)
    span = min(t.tile_p * t.threads_p, g.columns) * g.vector_p
    depth = t.rounds(g) * t.step_k * g.vector_k * t.split_k
    # Under the taps of a run of pixels lie its own and those of `kh - 1` rows around it.
    pixels, taps = float(g.pixels), w.kh * w.kw
    if taps > 1:
        each = w.sh * w.sw + (w.kh - 1) * min(span * w.sw, w.iw) / span
        pixels *= each / (1 if g.tap_reads else taps)  # a convolution's depth counts each tap
    return element_bytes(g.dtype) * batch * depth * (along * pixels + across * g.channels)


def _copies(g: Product, w: Workload, t: Tiling) -> tuple[float, float]:
    """Vectors of each operand that a thread copies to shared memory for one step."""
    step = t.step_k * t.split_k * g.vector_k / t.threads
    wide_a = {"p": g.vector_p, "k": g.vector_k}.get(g.along, 1)
    wide_b = g.vector_c if g.vector_c > 1 else g.vector_k if w.out_block == 1 else 1
    pixels, channels = t.tile_p * t.threads_p * g.vector_p, t.tile_oc * t.threads_oc * g.vector_c
    return pixels * step / wide_a, channels * step / wide_b


def predicted_seconds(g: Product, w: Workload, gpu: Gpu, t: Tiling) -> float:
    """Of the kernel of a tiling that fits, by the model of `limits.py`."""
    size, n = element_bytes(g.dtype), need(g, t, w)
    blocks, warps = prod(t.grid(g)), ceil(n.threads / gpu.warp)
    step, turns = t.step_k * t.split_k * g.vector_k, t.rounds(g)
    depth = step * turns
    block_p, block_c = t.tile_p * t.threads_p * g.vector_p, t.tile_oc * t.threads_oc * g.vector_c
    pixels, channels = t.tile_p * g.vector_p, t.tile_oc * g.vector_c
    sums, outputs = pixels * channels, pixels * channels / t.split_k
    near = depth / t.split_k  # what a thread walks of the reduction

    # Loads of fragments, each as wide as the schedule makes it.
    wide_a = g.vector_p if g.along == "p" or g.vector_k == 1 else g.vector_k
    wide_b = g.vector_c if g.vector_c > 1 else g.vector_k
    loads_a, loads_b = near * pixels / wide_a, near * channels / wide_b
    # Copies to shared memory, and sums of groups of threads through it.
    copied = turns * sum(_copies(g, w, t))
    moved = (block_p + block_c) * depth * size / L1_BYTES_PER_CLOCK
    runs = _run_factor(g, t, w, step)
    wavefronts = loads_a * _bank_turns(t.threads_p, n.threads, wide_a * size)
    wavefronts += loads_b * warps * max(1.0, wide_b * size / 4)
    wavefronts += moved + (block_p * runs[0] + block_c * runs[1]) * depth * size / (
        L1_BYTES_PER_CLOCK
    )
    others = loads_a + loads_b + 2 * copied
    fmas = sums * near + 3 * outputs
    if size < 4:  # each value of a fragment is widened once
        fmas += near * (pixels + channels)
    if g.tap_reads:
        taken = block_p * depth / n.threads  # of the first operand, computed by one thread
        fmas += taken * (g.tap_reads + 3)
        wavefronts += block_p * depth * g.tap_reads * size * 1.25 / L1_BYTES_PER_CLOCK
        others += (2 * g.tap_reads - 1) * taken / (g.vector_k if g.along == "k" else 1)
    if t.split_k > 1:
        # Halves are made one by one: neighbours' parts lie a vector apart, in the same banks.
        apart = max(g.vector_c, g.vector_p) if size < 4 else 1
        parts = t.split_k * block_p * block_c
        wavefronts += 4 * parts * (1 + apart) / L1_BYTES_PER_CLOCK
        others += 2 * sums / max(g.vector_c, g.vector_p)
    residual = "add" in w.epilogue
    stores = outputs / max(g.vector_c, g.vector_p) * (2 if residual else 1)
    wavefronts += block_p * block_c * size * (2 if residual else 1) / L1_BYTES_PER_CLOCK
    others = warps * (2 * (others + stores) + 3 * turns)

    resident = resident_blocks(gpu, n.threads, n.registers, n.shared)
    read = fetched_bytes(g, w, t)
    if g.tap_reads:
        # What the taps of a step share must wait in L1, beside the shared memory of all blocks.
        taken = size * block_p * depth * g.tap_reads
        rows, _, batch = t.grid(g)
        across = size * batch * depth * rows * g.channels  # the second operand's part of `read`
        room, window = gpu.shared_per_sm / resident - n.shared, (read - across) / blocks / turns
        if window > room:
            read += max(0.0, blocks * taken - (read - across)) * (1 - max(0.0, room) / window)
    once = w.bytes_moved
    written = size * g.batch * g.channels * g.pixels
    read += written * residual
    staged = t.pipeline != "none"
    counts = Counts(
        blocks=blocks, threads=n.threads,
        resident=resident, shared=True,
        fmas=fmas, ilp=sums, others=others, wavefronts=wavefronts, l2_bytes=read + written,
        dram_bytes=once + repeated(gpu, read, once, once - written),
        rounds=0 if turns == 1 else turns - staged, waits=float(turns == 1), pipelined=staged,
    )  # fmt: skip
    return total_seconds(limit_seconds(counts, gpu))


@lru_cache(maxsize=1024)
def _bank_turns(threads_p: int, threads: int, width: int) -> int:
    """Turns in which shared memory gives each thread of a block its pixel, `width` bytes each.

    Equal words are given at once; neighbours in the order of threads lie side by side, but where a
    warp has parts of several rows of threads, which may meet in a bank.
    """
    turns, group = 0, max(1, 128 // max(width, 4))
    for warp in range(0, threads, 32):
        for first in range(warp, min(warp + 32, threads), group):
            last = min(first + group, warp + 32, threads)
            at = {t % threads_p * width for t in range(first, last)}
            words = {(byte + part) // 4 for byte in at for part in range(0, max(width, 4), 4)}
            banks = [word % 32 for word in words]
            turns += max(map(banks.count, banks))
    return turns


def _run_factor(g: Product, t: Tiling, w: Workload, step: int) -> tuple[float, float]:
    """Lines of L1 over whole ones that a warp's copies of both operands touch."""
    size = element_bytes(g.dtype)
    run_a = step if g.k_first else t.tile_p * t.threads_p * g.vector_p
    if g.along == "k" and not g.k_first:
        run_a *= g.vector_k
    if w.out_block == 1:
        run_b = step
    elif w.out_block > g.vector_c:
        run_b = t.tile_oc * t.threads_oc * g.vector_c
    else:
        run_b = step * g.vector_c
    return tuple(max(1.0, L1_BYTES_PER_CLOCK / (run * size)) for run in (run_a, run_b))  # type: ignore[return-value]
