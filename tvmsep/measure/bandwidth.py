"""The bandwidth of each level of a board's memory, measured: the sloping part of a roofline.

Each thread reads and writes its own part of a buffer in place, over and over: a read and a write
of every element, nothing else. How large the part is decides where it lies. The best of several
runs counts, as for the FMA peak. The kernels for CUDA devices are in `ceiling.py`.

Weights are another matter. Since they were read the whole network has run, so they come from
wherever so much data ends up, and in a cache that a machine shares that is nobody's to choose: a
buffer as large as the network is read again and again, and the median counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Target
from tvmsep.measure import ceiling
from tvmsep.measure.harness import LINE
from tvmsep.measure.library import build_library

if TYPE_CHECKING:
    from tvm import IRModule

WEIGHTS = "weights"
_FILL = "fill"
_REPEATS = 15
_BUFFERS = 4
"""Of a cache's size: by bad luck one buffer's pages lie where they evict each other."""
_WIDE = 4 * LINE
"""Elements that one step of reading adds up: as many chains as hide the latency of an addition."""
_RUN_BYTES = 64 << 20
"""What one thread moves in one run, at least."""


@dataclass(frozen=True)
class Level:
    """One level of the memory, as all threads together see it."""

    name: str
    """`L2`, `L3`, `memory` or `weights`."""
    holds_bytes: float
    """What fits: infinite for the memory, nothing for weights, which are not looked up by size."""
    buffer_bytes: int
    """What one thread's part has when this level is measured."""


@dataclass(frozen=True)
class Bandwidth:
    """A level's measured bandwidth: bytes read and bytes written, a second, by all threads.

    Of weights the bytes read.
    """

    level: Level
    bytes_per_s: float


def levels(t: Target, threads: int, network_bytes: int = 0) -> list[Level]:
    """The levels, the fastest first: half a cache is measured, and four times the last one.

    With the bytes of a network's weights and largest layer, on a CPU, also where its weights lie.
    """
    if t.gpu is not None:
        near, far = (ceiling.buffer_bytes(t.gpu, n) for n in (ceiling.LAST_LEVEL, ceiling.MEMORY))
        return [
            Level(ceiling.LAST_LEVEL, t.gpu.l2_bytes, near),
            Level(ceiling.MEMORY, float("inf"), far),
        ]
    private = threads * t.l2_bytes
    found = [Level("L2", private, t.l2_bytes // 2)]
    last = private
    if t.l3_bytes > 2 * private:
        found.append(Level("L3", t.l3_bytes, t.l3_bytes // 2 // threads))
        last = t.l3_bytes
    found.append(Level("memory", float("inf"), 4 * max(last, t.l3_bytes) // threads))
    each = network_bytes // threads // (4 * _WIDE) * (4 * _WIDE)
    return [*found, Level(WEIGHTS, 0, each)] if each else found


def _lines(level: Level) -> int:
    return level.buffer_bytes // (4 * LINE)


def module(t: Target, threads: int, network_bytes: int = 0) -> IRModule:
    """One kernel a level, of its name; parameter `a [threads, lines, 16]`.

    For weights `a [threads, lines / 4, 64]` and their sums, `b [threads, 64]`.
    """
    import tvm

    text = ["@I.ir_module", "class Bandwidth:"]
    for level in levels(t, threads, network_bytes):
        lines = _lines(level)
        if level.name == WEIGHTS:
            text += [
                "    @T.prim_func(s_tir=True)",
                f"    def {WEIGHTS}(",
                f'        a: T.Buffer(({threads}, {lines * LINE // _WIDE}, {_WIDE}), "float32"),',
                f'        b: T.Buffer(({threads}, {_WIDE}), "float32"),',
                "    ):",
                f'        T.func_attr({{"global_symbol": "{WEIGHTS}", "tirx.noalias": True}})',
                f"        for t in T.parallel({threads}):",
                f"            for k in range({_passes(level)}):",
                f"                for i in range({lines * LINE // _WIDE}):",
                f"                    for v in T.vectorized({_WIDE}):",
                "                        b[t, v] = b[t, v] + a[t, i, v]",
                "    @T.prim_func(s_tir=True)",
                f"    def {_FILL}(",
                f'        a: T.Buffer(({threads}, {lines * LINE // _WIDE}, {_WIDE}), "float32"),',
                f'        b: T.Buffer(({threads}, {_WIDE}), "float32"),',
                "    ):",
                f'        T.func_attr({{"global_symbol": "{_FILL}", "tirx.noalias": True}})',
                f"        for t in T.parallel({threads}):",
                f"            for v in T.vectorized({_WIDE}):",
                "                b[t, v] = T.float32(1)",
                f"            for i in range({lines * LINE // _WIDE}):",
                f"                for v in T.vectorized({_WIDE}):",
                "                    a[t, i, v] = T.float32(1)",
            ]
            continue
        text += [
            "    @T.prim_func(s_tir=True)",
            f'    def {level.name}(a: T.Buffer(({threads}, {lines}, {LINE}), "float32")):',
            f'        T.func_attr({{"global_symbol": "{level.name}", "tirx.noalias": True}})',
            f"        for t in T.parallel({threads}):",
            f"            for k in range({_passes(level)}):",
            f"                for i in range({lines}):",
            f"                    for v in T.vectorized({LINE}):",
            "                        a[t, i, v] = a[t, i, v] + T.float32(1)",
        ]
    return tvm.script.from_source("\n".join(text) + "\n")


def _passes(level: Level) -> int:
    return -(-_RUN_BYTES // (2 * level.buffer_bytes))


def measure(
    remote: Any, library: Any, t: Target, threads: int, network_bytes: int = 0
) -> list[Bandwidth]:
    """Every level's bandwidth, from the compiled kernels on a board that runs so many threads."""
    from tvm import runtime

    if t.gpu is not None:
        return [
            Bandwidth(
                x,
                ceiling.moved_bytes(t.gpu, x.name)
                / min(ceiling.seconds(remote, library, t.gpu, x.name)),
            )
            for x in levels(t, threads)
        ]
    device = remote.cpu(0)
    found = []
    for level in levels(t, threads, network_bytes):
        if level.name == WEIGHTS:
            found.append(Bandwidth(level, _weights(device, library, threads, level)))
            continue
        shape = (threads, _lines(level), LINE)
        count = 1 if level.holds_bytes == float("inf") else _BUFFERS
        buffers = [runtime.empty(shape, "float32", device) for _ in range(count)]
        timer = library.time_evaluator(level.name, device, number=1, repeat=_REPEATS)
        best_s = min(min(timer(a).results) for a in buffers)
        moved = 2 * 4 * LINE * _lines(level) * threads * _passes(level)
        found.append(Bandwidth(level, moved / float(best_s)))
    return found


def _weights(device: Any, library: Any, threads: int, level: Level) -> float:
    """Bytes a second of what is read again and again: each pass finds what the last one left."""
    from tvm import runtime

    a = runtime.empty((threads, _lines(level) * LINE // _WIDE, _WIDE), "float32", device)
    b = runtime.empty((threads, _WIDE), "float32", device)
    # Memory that was never written is one page of zeros, whatever its size.
    library[_FILL](a, b)
    timer = library.time_evaluator(level.name, device, number=1, repeat=_REPEATS)
    times = sorted(timer(a, b).results)
    moved = 4 * LINE * _lines(level) * threads * _passes(level)
    return moved / float(times[len(times) // 2])


def build(t: Target, outdir: Path, threads: int, network_bytes: int = 0) -> Path:
    """Compile the kernels into a shared library in `outdir`."""
    if t.gpu is not None:
        return build_library(ceiling.module(t.gpu), t, outdir / "bandwidth.so")
    name = f"bandwidth{threads}-{network_bytes}.so"
    return build_library(module(t, threads, network_bytes), t, outdir / name)
