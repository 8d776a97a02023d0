"""What a CUDA device can do at most, measured: its multiply-adds, and the bandwidth of its memory.

`peak.py` and `bandwidth.py` are the same for CPUs, and what they return is what these do. The
multiply-adds of a thread are independent and stay in registers. The bandwidth of the L2 is that of
reading: blocks read a buffer that fits the L2 and no L1, each from another place on. The memory is
read and written in place, once a run, in a buffer of several times the L2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Gpu

if TYPE_CHECKING:
    from tvm import IRModule

PEAK, LAST_LEVEL, MEMORY = "peak", "L2", "memory"
THREADS = 256
_CHAINS = 8
"""Independent multiply-adds of a thread."""
_STEPS = 512
_WAVES = 2
"""How often as many blocks as run at once: what starting and ending takes does not show."""
RUN_S = 0.3
"""Time that one measurement may take."""
_MOST_RUNS = 30
_CALLS = 10
"""Launches of a run, queued one behind the other, so that launching takes no time of its own."""


def blocks(gpu: Gpu) -> int:
    """How many run at once."""
    return gpu.sms * min(gpu.blocks_per_sm, gpu.threads_per_sm // THREADS)


def _vectors(gpu: Gpu, level: str) -> int:
    """Size of a level's buffer in fp32 vectors of four, a whole number for each thread."""
    each = blocks(gpu) * THREADS
    wanted = gpu.l2_bytes // 2 if level == LAST_LEVEL else max(4 * gpu.l2_bytes, 32 << 20)
    return max(1, wanted // (16 * each)) * each


def shapes(gpu: Gpu, name: str) -> list[tuple[int, ...]]:
    """Of a kernel's fp32 parameters."""
    if name == PEAK:
        return [(_WAVES * blocks(gpu) * THREADS, _CHAINS), (2,)]
    vectors = _vectors(gpu, name)
    return [(vectors, 4), (blocks(gpu) * THREADS, 4)] if name == LAST_LEVEL else [(vectors, 4)]


def flop(gpu: Gpu) -> float:
    """Of one launch of the kernel `PEAK`."""
    return 2.0 * _STEPS * shapes(gpu, PEAK)[0][0] * _CHAINS


def buffer_bytes(gpu: Gpu, level: str) -> int:
    """Of what a level's kernel reads."""
    return 16 * _vectors(gpu, level)


def moved_bytes(gpu: Gpu, name: str) -> float:
    """By one launch of another kernel: read, and for the memory written too."""
    size = float(buffer_bytes(gpu, name))
    return 2 * size if name == MEMORY else blocks(gpu) * size


def module(gpu: Gpu) -> IRModule:
    """The kernels, for a CUDA target."""
    import tvm

    def params(name: str) -> str:
        found = zip("ab", shapes(gpu, name), strict=False)
        return ", ".join(f'{p}: T.Buffer({shape}, "float32")' for p, shape in found)

    def head(name: str, grid: int) -> list[str]:
        return [
            "    @T.prim_func(s_tir=True)",
            f"    def {name}({params(name)}):",
            f'        T.func_attr({{"global_symbol": "{name}", "tirx.noalias": True}})',
            f'        for i in T.thread_binding({grid}, thread="blockIdx.x"):',
            f'            for t in T.thread_binding({THREADS}, thread="threadIdx.x"):',
        ]

    inner = " " * 16
    grid = blocks(gpu)
    passes = _vectors(gpu, LAST_LEVEL) // THREADS
    place = f"(k + i * {passes // grid}) % {passes}"
    text = [
        "@I.ir_module",
        "class Ceiling:",
        *head(PEAK, _WAVES * grid),
        f'{inner}acc = T.alloc_buffer(({_CHAINS},), scope="local")',
        f"{inner}for c in T.unroll({_CHAINS}):",
        f"{inner}    acc[c] = a[i * {THREADS} + t, c]",
        f"{inner}for k in range({_STEPS}):",
        f"{inner}    for c in T.unroll({_CHAINS}):",
        f"{inner}        acc[c] = acc[c] * b[0] + b[1]",
        f"{inner}for c in T.unroll({_CHAINS}):",
        f"{inner}    a[i * {THREADS} + t, c] = acc[c]",
        *head(LAST_LEVEL, grid),
        f'{inner}acc = T.alloc_buffer((4,), scope="local")',
        f"{inner}for v in T.vectorized(4):",
        f"{inner}    acc[v] = T.float32(0)",
        f"{inner}for k in range({passes}):",
        f"{inner}    for v in T.vectorized(4):",
        f"{inner}        acc[v] = acc[v] + a[({place}) * {THREADS} + t, v]",
        f"{inner}for v in T.vectorized(4):",
        f"{inner}    b[i * {THREADS} + t, v] = acc[v]",
        *head(MEMORY, _vectors(gpu, MEMORY) // THREADS),
        f"{inner}for v in T.vectorized(4):",
        f"{inner}    a[i * {THREADS} + t, v] = a[i * {THREADS} + t, v] + T.float32(1)",
    ]
    return tvm.script.from_source("\n".join(text) + "\n")


def times(remote: Any, library: Any, gpu: Gpu, name: str, number: int, repeats: int) -> list[float]:
    """Seconds of one launch of a kernel: means of `number` launches in a row, `repeats` times."""
    import numpy as np
    from tvm import runtime

    device = remote.device("cuda", 0)
    tensors = []
    for shape in shapes(gpu, name):
        tensors.append(runtime.empty(shape, "float32", device))
        if name == PEAK:
            tensors[-1].copyfrom(np.full(shape, 0.5, np.float32))
    timer = library.time_evaluator(name, device, number=number, repeat=repeats)
    return [float(s) for s in timer(*tensors).results]


def seconds(remote: Any, library: Any, gpu: Gpu, name: str) -> list[float]:
    """As `times`, as many as fit `RUN_S`."""
    (once,) = times(remote, library, gpu, name, 1, 1)
    number = max(1, min(_CALLS, int(RUN_S / once)))
    repeats = max(1, min(_MOST_RUNS, int(RUN_S / (once * number))))
    return times(remote, library, gpu, name, number, repeats)
