"""Seconds of a kernel on a GPU, by a model; nothing is run.

What the lowered kernel does is counted here; what that takes is in `schedules/cuda/limits.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from tvmsep.contracts import Gpu, Target
from tvmsep.estimate.access import SECTOR
from tvmsep.estimate.lowered import Kernel, read_kernel
from tvmsep.schedules.cuda.common import resident_blocks
from tvmsep.schedules.cuda.limits import Counts, limit_seconds, repeated, total_seconds

if TYPE_CHECKING:
    from tvm import tirx


class Unfit(Exception):
    """The model has no time: no block fits on a multiprocessor, or it is for tensor cores."""


class GpuTime(msgspec.Struct, frozen=True, kw_only=True):
    """Of one kernel: modelled, not measured."""

    seconds: float
    limits_s: dict[str, float]
    """What each limit alone would take."""
    blocks: int
    threads: int
    resident: int
    """Blocks that a multiprocessor holds at a time."""
    occupancy: float
    """Threads on a busy multiprocessor over those that it could hold."""
    busy: float
    """Blocks over those that there is room for in as many whole rounds: below 1 is the tail."""
    registers: int
    shared: int
    memory_bytes: int
    """From and to device memory."""
    l2_bytes: int
    """From and to L2: past a multiprocessor's own cache."""

    @property
    def bound(self) -> str:
        """The limit that binds."""
        return max(self.limits_s, key=lambda k: self.limits_s[k])


def gpu_seconds(func: tirx.PrimFunc, target: Target, registers: int | None = None) -> GpuTime:
    """Model a scheduled kernel.

    Args:
        func: what `tvmsep.codegen.kernel` makes.
        target: a GPU.
        registers: of a thread, where a compiler has said so; guessed from the schedule else.

    Raises:
        Unfit: no block of it fits on the device, or tensor cores multiply.
    """
    assert target.gpu is not None
    return kernel_seconds(read_kernel(func, target), target.gpu, registers)


def kernel_seconds(k: Kernel, gpu: Gpu, registers: int | None = None) -> GpuTime:
    """Model a kernel that was read; see `gpu_seconds`.

    Raises:
        Unfit: no block of it fits on the device, or tensor cores multiply.
    """
    if k.fragments:
        raise Unfit("tensor cores are not modelled")
    used = k.registers if registers is None else registers
    resident = resident_blocks(gpu, k.threads, min(used, gpu.registers_per_thread), k.shared)
    if not resident:
        raise Unfit(
            f"no block fits: {k.threads} threads of {used} registers, {k.shared} bytes of shared "
            "memory"
        )
    warps = -(-k.threads // gpu.warp)
    assigned = -(-k.blocks // gpu.sms)
    spilled = max(0, used - gpu.registers_per_thread)
    moves = [a for a in k.accesses if a.warps]
    l2_bytes, dram = _traffic(k, gpu, resident)
    counts = Counts(
        blocks=k.blocks, threads=k.threads, resident=resident, shared=k.shared > 0,
        fmas=k.fmas, ilp=k.ilp,
        others=warps * (3 * k.turns + 2 * spilled) + sum(2 * a.times * a.warps for a in moves),
        wavefronts=sum(a.times * a.wavefronts for a in moves) + 2 * warps * spilled,
        l2_bytes=l2_bytes, dram_bytes=dram, rounds=k.rounds, waits=k.waits, pipelined=k.pipelined,
    )  # fmt: skip
    limits = limit_seconds(counts, gpu)
    return GpuTime(
        seconds=total_seconds(limits),
        limits_s=limits, blocks=k.blocks, threads=k.threads, resident=resident,
        occupancy=min(resident, assigned) * warps * gpu.warp / gpu.threads_per_sm,
        busy=k.blocks / (assigned * gpu.sms), registers=used, shared=k.shared,
        memory_bytes=math.ceil(dram), l2_bytes=math.ceil(l2_bytes),
    )  # fmt: skip


def _traffic(k: Kernel, gpu: Gpu, resident: int) -> tuple[float, float]:
    """(Bytes between L1 and L2, bytes between L2 and memory) of the whole kernel.

    A block's reads of a buffer hit L1 from the second time on, as far as what the blocks on a
    multiprocessor touch has room beside their shared memory; of what has none, the reads within
    one turn of the outermost loop do. Stores pass through.
    """
    room = max(0, gpu.shared_per_sm - resident * k.shared) / resident
    reads: dict[str, tuple[float, float]] = {}
    stored = 0.0
    for a in k.accesses:
        if a.scope == "shared":
            continue
        moved = a.times * a.sectors * SECTOR
        if a.store or a.scope == "local":
            stored += moved
            continue
        if a.window <= room:
            moved = min(moved, float(a.window * a.windows))
        touched, before = reads.get(a.buffer, (0.0, 0.0))
        # Several loads of one buffer mostly read the same: the largest footprint is taken.
        reads[a.buffer] = (max(touched, float(a.footprint)), before + moved)
    all_touched = sum(t for t, _ in reads.values())
    hit = min(1.0, room / all_touched) if all_touched else 1.0
    past_l1 = {b: min(m, t) + max(0.0, m - t) * (1 - hit) for b, (t, m) in reads.items()}
    through = sum(past_l1.values()) * k.blocks
    stored *= k.blocks
    once = float(sum(k.sizes.values()))
    inputs = float(sum(k.sizes.get(b, 0) for b in reads))
    return through + stored, once + repeated(gpu, through, once, inputs)
