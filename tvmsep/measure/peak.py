"""The FMA peak of one core of a board, measured: what "share of peak" is a share of.

A kernel with nothing but vector multiply-adds on registers, enough of them in flight to hide the
latency. The best of many short runs counts: nothing can run faster than the peak. A CUDA device
counts as one core; its kernel is in `ceiling.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Target
from tvmsep.measure import ceiling
from tvmsep.measure.library import build_library

if TYPE_CHECKING:
    from tvm import tirx

_STEPS = 10_000
_REPEATS = 30
SYMBOL = ceiling.PEAK


def _accumulators(t: Target) -> int:
    """More than latency times rate, and well within the registers."""
    return min(t.vector_registers - 4, max(8, int(1.5 * t.fma_latency_cycles * t.fma_per_cycle)))


def kernel(t: Target) -> tirx.PrimFunc:
    """Parameters: `a [accumulators, lanes]` (read and written), `b [2, lanes]`; a = a * b0 + b1."""
    import tvm

    source = f"""\
@T.prim_func(s_tir=True)
def {SYMBOL}(
    a: T.Buffer(({_accumulators(t)}, {t.lanes}), "float32"),
    b: T.Buffer((2, {t.lanes}), "float32"),
):
    T.func_attr({{"global_symbol": "{SYMBOL}", "tirx.noalias": True}})
    for k in range({_STEPS}):
        for j in T.unroll({_accumulators(t)}):
            for v in T.vectorized({t.lanes}):
                a[j, v] = a[j, v] * b[0, v] + b[1, v]
"""
    return tvm.script.from_source(source)


def measure(remote: Any, module: Any, t: Target) -> float:
    """FLOP/s of one core, from the compiled kernel on a board."""
    if t.gpu is not None:
        return ceiling.flop(t.gpu) / min(ceiling.seconds(remote, module, t.gpu, SYMBOL))
    return flop(t) / min(_time(remote, module, t, 5, _REPEATS))


def bursts(
    remote: Any, module: Any, t: Target, flops: float, burst_s: float, repeats: int
) -> tuple[float, ...]:
    """Seconds of equal pieces of work of about `burst_s` each, one after the other."""
    number = max(1, round(burst_s * flops / flop(t)))
    return tuple(s * number for s in _time(remote, module, t, number, repeats))


def flop(t: Target) -> float:
    """Of one call of the kernel."""
    if t.gpu is not None:
        return ceiling.flop(t.gpu)
    return 2.0 * _accumulators(t) * t.lanes * _STEPS


def _time(remote: Any, module: Any, t: Target, number: int, repeats: int) -> tuple[float, ...]:
    """Seconds of one call: means of `number` calls, `repeats` times."""
    import numpy as np
    from tvm import runtime

    if t.gpu is not None:
        return tuple(ceiling.times(remote, module, t.gpu, SYMBOL, number, repeats))
    device = remote.cpu(0)
    count = _accumulators(t)
    a = runtime.empty((count, t.lanes), "float32", device)
    a.copyfrom(np.ones((count, t.lanes), np.float32))
    b = runtime.empty((2, t.lanes), "float32", device)
    b.copyfrom(np.tile(np.array([[0.5], [0.5]], np.float32), (1, t.lanes)))
    timer = module.time_evaluator(SYMBOL, device, number=number, repeat=repeats)
    return tuple(float(s) for s in timer(a, b).results)


def build(t: Target, outdir: Path) -> Path:
    """Compile the kernel into a shared library in `outdir`."""
    if t.gpu is not None:
        return build_library(ceiling.module(t.gpu), t, outdir / "peak.so")
    return build_library(kernel(t), t, outdir / "peak.so")
