"""Seconds of a kernel on a GPU, by a model; nothing is run.

A roofline with what separates schedules of one operator (Williams et al., CACM 2009; Volkov,
"Understanding Latency Hiding on GPUs", 2016): each of several limits gives a time, the longest of
them counts whole, the others in part, since they overlap imperfectly.

- `dram`: bytes that must move once, and what L2 cannot keep of what is read again;
- `l2`: what blocks read and write past L1;
- `l1`: turns of the data path of L1 and shared memory, bank conflicts and stray sectors included;
- `math`: arithmetic, at the rate that the threads on a multiprocessor can keep up;
- `issue`: all instructions;
- `latency`: how long one block waits for memory, times how often a multiprocessor begins anew.

Work is dealt out in whole blocks: the multiprocessor with the most of them is the one that counts
(waves and their tail). Rates that no target file states are constants below, with their source.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from tvmsep.contracts import Gpu, Target
from tvmsep.estimate.lowered import SECTOR, Kernel, read_kernel
from tvmsep.schedules.cuda.common import resident_blocks

if TYPE_CHECKING:
    from tvm import tirx

L2_BYTES_PER_CLOCK = 24.0
"""That one multiprocessor gets from L2. Measured 20 to 40 on V100, T4, A100 (Jia et al.,
arXiv:1804.06826 and 1903.07486)."""
SCHEDULERS = 4
"""Of a multiprocessor since Maxwell: each issues an instruction of one warp a clock."""
MATH_LATENCY, SHARED_LATENCY, GLOBAL_LATENCY = 4, 30, 500
"""Clocks from an instruction to the use of its result (Jia et al.); of global memory between L2
(200 to 260) and DRAM (400 to 800)."""
LOADS_AHEAD = 4
"""Turns of a loop without barriers whose loads the compiler starts before it needs the first."""
LAUNCH_S = 2e-6
"""From one kernel's end to the next one's start in a stream, about; the same for every config."""
OVERLAP = 0.15
"""Share in which the limits that are not the longest add to the time."""


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
    together = min(resident, assigned)
    clock = gpu.clock_ghz * 1e9

    def seconds(clocks_a_block: float) -> float:
        return assigned * clocks_a_block / clock

    # The warps that keep the units busy: one a scheduler, and more for what each has to wait for.
    waiting = SHARED_LATENCY if k.shared else MATH_LATENCY
    at_once = min(1.0, together * warps / (SCHEDULERS * (1 + waiting / max(1, k.ilp))))
    fp32_lanes = gpu.fp32_flops / (2 * gpu.sms * clock)
    spilled = max(0, used - gpu.registers_per_thread)
    moves = [a for a in k.accesses if a.warps]
    instructions = warps * (k.fmas + 3 * k.turns + 2 * spilled) + sum(
        2 * a.times * a.warps for a in moves
    )
    wavefronts = sum(a.times * a.wavefronts for a in moves) + 2 * warps * spilled
    l2_bytes, dram = _traffic(k, gpu, resident)
    computing = k.fmas / max(1, k.ilp) * MATH_LATENCY
    a_round = GLOBAL_LATENCY + 2 * SHARED_LATENCY
    rounds = k.rounds * a_round + computing
    if k.pipelined:
        rounds = a_round + max(rounds - computing, computing)
    chain = GLOBAL_LATENCY + rounds + k.waits * GLOBAL_LATENCY / LOADS_AHEAD
    limits = {
        "dram": dram / gpu.bandwidth,
        "l2": max(
            seconds(l2_bytes / k.blocks / L2_BYTES_PER_CLOCK),
            l2_bytes / (gpu.sms * L2_BYTES_PER_CLOCK * clock),
        ),
        "l1": seconds(wavefronts),
        "math": seconds(warps * gpu.warp * k.fmas / fp32_lanes / at_once),
        "issue": seconds(instructions / SCHEDULERS / at_once),
        "latency": max(1.0, assigned / resident) * chain / clock,
    }
    longest = max(limits.values())
    return GpuTime(
        seconds=LAUNCH_S + longest + OVERLAP * (sum(limits.values()) - longest),
        limits_s=limits, blocks=k.blocks, threads=k.threads, resident=resident,
        occupancy=together * warps * gpu.warp / gpu.threads_per_sm,
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
    kept = min(1.0, gpu.l2_bytes / once) if once else 1.0
    again = max(0.0, through - sum(k.sizes.get(b, 0) for b in reads))
    return through + stored, once + again * (1 - kept)
