"""What bounds a kernel on a GPU, from counts: the model of tiled products and of `--board model`.

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

Counts come from a kernel's lowered TIR (`tvmsep/estimate`), or from a tiling alone (`tiles.py`),
which is what chooses defaults.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvmsep.contracts import Gpu
from tvmsep.schedules.cuda.common import fp32_lanes

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


@dataclass(frozen=True)
class Counts:
    """What a kernel does; of one block where nothing else is said."""

    blocks: int
    """Of the kernel."""
    threads: int
    resident: int
    """Blocks that a multiprocessor holds at a time, at least 1."""
    shared: bool
    """Whether operands come from shared memory."""
    fmas: float
    """Instructions of float arithmetic of a thread, a multiply and the add after it as one."""
    ilp: float
    """Independent sums of a thread."""
    others: float
    """Instructions of all warps that are no arithmetic."""
    wavefronts: float
    """Turns of the 128-byte data path of L1 and shared memory."""
    l2_bytes: float
    """Past L1, of the kernel."""
    dram_bytes: float
    """Past L2, of the kernel."""
    rounds: int
    """How often a block loads into shared memory and waits for it."""
    waits: float = 0
    """Turns of loops that load from global memory and wait for nobody else."""
    pipelined: bool = False
    """Whether the next round's loads are under way while one is computed."""


def limit_seconds(n: Counts, gpu: Gpu) -> dict[str, float]:
    """What each limit alone would take; see the module's docstring."""
    warps = -(-n.threads // gpu.warp)
    assigned = -(-n.blocks // gpu.sms)
    clock = gpu.clock_ghz * 1e9
    # The warps that keep the units busy: one a scheduler, and more for what each has to wait for.
    waiting = SHARED_LATENCY if n.shared else MATH_LATENCY
    together = min(n.resident, assigned)
    at_once = min(1.0, together * warps / (SCHEDULERS * (1 + waiting / max(1, n.ilp))))
    computing = n.fmas / max(1, n.ilp) * MATH_LATENCY
    a_round = GLOBAL_LATENCY + 2 * SHARED_LATENCY
    rounds = n.rounds * a_round + computing
    if n.pipelined:
        rounds = a_round + rounds - computing
    chain = GLOBAL_LATENCY + rounds + n.waits * GLOBAL_LATENCY / LOADS_AHEAD
    busiest = assigned / clock
    return {
        "dram": n.dram_bytes / gpu.bandwidth,
        "l2": n.l2_bytes / L2_BYTES_PER_CLOCK * max(busiest / n.blocks, 1 / (gpu.sms * clock)),
        "l1": busiest * n.wavefronts,
        "math": busiest * warps * gpu.warp * n.fmas / fp32_lanes(gpu) / at_once,
        "issue": busiest * (warps * n.fmas + n.others) / SCHEDULERS / at_once,
        "latency": max(1.0, assigned / n.resident) * chain / clock,
    }


def total_seconds(limits: dict[str, float]) -> float:
    """Of a kernel: its launch, the longest limit, and a part of the others."""
    longest = max(limits.values())
    return LAUNCH_S + longest + OVERLAP * (sum(limits.values()) - longest)


def repeated(gpu: Gpu, read: float, once: float, inputs: float) -> float:
    """Bytes read from memory more than once: of what blocks read again, what L2 cannot keep.

    Args:
        gpu: the device.
        read: bytes that all blocks read past L1.
        once: bytes of all tensors of the kernel.
        inputs: bytes of those that are read.
    """
    kept = min(1.0, gpu.l2_bytes / once) if once else 1.0
    return max(0.0, read - inputs) * (1 - kept)
