"""Seconds of a kernel on a CPU, by a model; nothing is run.

The cycles of the hot loop (`mca`) times how often the kernel's multiply-adds need it, divided by
the threads that share them and their imbalance; or the bytes that must move once, over the memory's
bandwidth: whichever is longer. What stands outside the hot loop (epilogues, the start of a tile)
is left out, and every load is taken for a hit in L1 but for those bytes.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

from tvmsep.codegen import machine_code
from tvmsep.codegen.assembly import hot_loop
from tvmsep.contracts import Target, Workload
from tvmsep.estimate.mca import find_mca, loop_cycles, must_have_model

if TYPE_CHECKING:
    from tvm import tirx

_PARALLEL = 1


def padded_macs(w: Workload) -> int:
    """Multiply-accumulates that a kernel does: those of padding channels too."""
    if w.op == "dwpw":
        return sum(map(padded_macs, w.parts))
    oc = w.out_blocks * max(1, w.out_block)
    if not w.macs or w.op == "depthwise":
        return w.macs // max(1, w.oc) * oc
    ic = w.in_blocks * max(1, w.in_block) // w.groups
    return w.macs // (w.oc * (w.ic // w.groups)) * oc * ic


def cpu_seconds(
    func: tirx.PrimFunc, w: Workload, target: Target, threads: int
) -> tuple[float, str]:
    """Modelled seconds of a scheduled kernel, and the hash of its assembly.

    Without a clock in the target's file a cycle counts as a nanosecond.

    Args:
        func: what `tvmsep.codegen.kernel` makes.
        w: its workload.
        target: with a core that can be modelled.
        threads: that share it.

    Raises:
        InputError: the target names no core to model, or llvm-mca is missing, too old or refuses.
    """
    must_have_model(target)
    built = machine_code(func.with_attr("global_symbol", "main"), target)
    assembly = built.inspect_source("s")
    loop = hot_loop(assembly.splitlines())
    full = target.elements(w.dtype)
    lanes = min(full, w.vectors.out_block or full)
    if loop.fmas and w.macs:
        needed = padded_macs(w) / lanes / loop.fmas
        cycles = needed * loop_cycles(loop, target, find_mca())
    else:  # a vector moved a cycle
        cycles = w.bytes_moved / (4 * target.lanes)
    cycles *= _share(func, threads)
    seconds = cycles / ((target.clock_ghz or 1.0) * 1e9)
    if target.bandwidth and target.clock_ghz:
        seconds = max(seconds, w.bytes_moved / target.bandwidth)
    return seconds, hashlib.sha256(assembly.encode()).hexdigest()[:16]


def _share(func: tirx.PrimFunc, threads: int) -> float:
    """Of the work, what the thread with the most of it does."""
    extent = math.prod(_parallel(func.body)[:1])
    return -(-extent // threads) / extent if threads > 1 else 1.0


def _parallel(node: Any) -> list[int]:
    """Extents of the parallel loops, in their order."""
    if type(node).__name__ == "For" and int(node.kind) == _PARALLEL:
        return [int(node.extent)]
    inner = [getattr(node, name, None) for name in ("body", "block", "then_case", "else_case")]
    parts = [*(x for x in inner if x is not None), *getattr(node, "seq", ())]
    return [extent for part in parts for extent in _parallel(part)]
