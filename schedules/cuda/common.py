"""What the schedules for CUDA share: how many threads fit, binding loops to them, vector copies.

Pattern
    A thread reads vectors of 16 bytes into registers, computes on their lanes one by one, and
    stores vectors again. Arithmetic is scalar on every device of this kind; what matters is that
    each access to memory is one wide instruction and that a warp's accesses lie together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Gpu, Target, Workload
from tvmsep.contracts.workload import ITEM_BYTES

if TYPE_CHECKING:
    from tvm import s_tir

VECTOR_BYTES = 16
"""What one thread moves in one instruction at best."""
SPARE_REGISTERS = 32
"""Addresses, indices and predicates of a thread, beside the values that a schedule counts."""
L1_BYTES_PER_CLOCK = 128
"""What a multiprocessor reads of L1 or shared memory in a clock at best: a line of L1."""
LATENCY_CLOCKS = 800
"""From a load of device memory to its use, and a block's start: about, on all of them."""
_SHARED_RESERVED = 1024
"""Shared memory that the driver takes of each block since sm_80 (CUDA C++ Programming Guide)."""


def gpu_of(t: Target) -> Gpu:
    """The device of a target whose kernels are CUDA's.

    Raises:
        ValueError: it has none.
    """
    if t.gpu is None:
        raise ValueError(f"target {t.name} has no [gpu] table")
    return t.gpu


def vector_lanes(w: Workload, *blocks: int) -> int:
    """Elements that a thread moves at once: up to 16 bytes that never cross one of the blocks."""
    return math.gcd(VECTOR_BYTES // ITEM_BYTES[w.dtype], *blocks)


def resident_blocks(gpu: Gpu, threads: int, registers: int, shared: int) -> int:
    """Blocks of a kernel that one multiprocessor holds at a time; 0 if not even one fits.

    By the rules of NVIDIA's occupancy calculator: a warp takes registers in steps of 256, warps
    get them in fours, shared memory is given out in steps, and from compute capability 8.0 the
    driver takes 1 KiB of a block's.

    Args:
        gpu: the device.
        threads: of a block.
        registers: 32-bit registers a thread needs.
        shared: bytes of shared memory a block needs.
    """
    too_many = registers > gpu.registers_per_thread or threads > gpu.threads_per_block
    if too_many or shared > gpu.shared_per_block:
        return 0
    warps = -(-threads // gpu.warp)
    a_warp = max(256, -(-registers * gpu.warp // 256) * 256)
    if a_warp * -(-warps // 4) * 4 > gpu.registers_per_block:
        return 0
    limits = [
        gpu.blocks_per_sm,
        gpu.threads_per_sm // gpu.warp // warps,
        # Of four partitions, each with a quarter of the registers.
        gpu.registers_per_sm // 4 // a_warp * 4 // warps,
    ]
    step, reserved = (128, _SHARED_RESERVED) if gpu.compute_capability >= 80 else (256, 0)
    if shared or reserved:
        limits.append(gpu.shared_per_sm // (-(-(shared + reserved) // step) * step))
    return min(limits)


def thread_counts(gpu: Gpu, *, most: int = 512) -> tuple[int, ...]:
    """Threads of a block worth trying: powers of two from two warps on."""
    top = min(most, gpu.threads_per_block)
    return tuple(n for k in range(12) if 2 * gpu.warp <= (n := gpu.warp << k) <= top)


def exact_threads(total: int, wanted: int) -> int:
    """Threads of a block, up to `wanted`, that divide the work; `wanted` where none nearly fits.

    A remainder costs a condition at every statement, more than a warp that is a tenth empty.
    """
    fits = [d for d in range(wanted // 2 + 1, wanted + 1) if total % d == 0]
    full = [d for d in fits if d / (-(-d // 32) * 32) >= 0.85]
    return max(full, default=min(wanted, total))


def widths(lanes: int) -> tuple[int, ...]:
    """Vector lengths up to `lanes`, the longest first."""
    return tuple(lanes >> k for k in range(lanes.bit_length()) if lanes % (1 << k) == 0)


def fp32_lanes(gpu: Gpu) -> float:
    """Multiply-adds that one multiprocessor starts in a clock."""
    return gpu.fp32_flops / (2 * gpu.sms * gpu.clock_ghz * 1e9)


def bind_flat(sch: s_tir.Schedule, loops: Sequence[Any], threads: int) -> tuple[Any, Any]:
    """Fuse loops, share them out over blocks of `threads`; returns (block loop, thread loop).

    The last of the loops runs along the threads of a warp. What does not divide is guarded by a
    condition in the last block alone, so that no shape leaves warps half empty.
    """
    fused = sch.fuse(*loops)
    block, thread = sch.split(fused, [None, threads])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    return block, thread


def unroll_all(sch: s_tir.Schedule, loops: Sequence[Any]) -> None:
    """Unroll each of the loops: indices of a thread's registers must be constants."""
    for loop in loops:
        sch.unroll(loop)


def copy_vectors(sch: s_tir.Schedule, block: Any, inside: int, lanes: int) -> None:
    """A block that only copies moves vectors: its last loop is split by `lanes`, the rest unrolled.

    Args:
        sch: the schedule.
        block: the copy.
        inside: how many loops lie around it that are not its own.
        lanes: what divides the last loop.
    """
    *outer, last = sch.get_loops(block)[inside:]
    rest, vector = sch.split(last, [None, lanes])
    unroll_all(sch, [*outer, rest])
    sch.vectorize(vector)
