"""The bandwidth of each level of a board's memory, measured: the sloping part of a roofline.

Each thread reads and writes its own part of a buffer in place, over and over: a read and a write
of every element, nothing else. How large the part is decides where it lies. The best of several
runs counts, as for the FMA peak. The kernels for CUDA devices are in `ceiling.py`.
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

_REPEATS = 15
_BUFFERS = 4
"""Of a cache's size: by bad luck one buffer's pages lie where they evict each other."""
_RUN_BYTES = 64 << 20
"""What one thread moves in one run, at least."""


@dataclass(frozen=True)
class Level:
    """One level of the memory, as all threads together see it."""

    name: str
    """`L2`, `L3` or `memory`."""
    holds_bytes: float
    """What fits: infinite for the memory."""
    buffer_bytes: int
    """What one thread's part has when this level is measured."""


@dataclass(frozen=True)
class Bandwidth:
    """A level's measured bandwidth: bytes read and bytes written, a second, by all threads."""

    level: Level
    bytes_per_s: float


def levels(t: Target, threads: int) -> list[Level]:
    """The levels, the fastest first: half a cache is measured, and four times the last one."""
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
    return [*found, Level("memory", float("inf"), 4 * max(last, t.l3_bytes) // threads)]


def _lines(level: Level) -> int:
    return level.buffer_bytes // (4 * LINE)


def module(t: Target, threads: int) -> IRModule:
    """One kernel a level, of its name; parameter `a [threads, lines, 16]`."""
    import tvm

    text = ["@I.ir_module", "class Bandwidth:"]
    for level in levels(t, threads):
        lines = _lines(level)
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


def measure(remote: Any, library: Any, t: Target, threads: int) -> list[Bandwidth]:
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
    for level in levels(t, threads):
        shape = (threads, _lines(level), LINE)
        count = 1 if level.holds_bytes == float("inf") else _BUFFERS
        buffers = [runtime.empty(shape, "float32", device) for _ in range(count)]
        timer = library.time_evaluator(level.name, device, number=1, repeat=_REPEATS)
        best_s = min(min(timer(a).results) for a in buffers)
        moved = 2 * 4 * LINE * _lines(level) * threads * _passes(level)
        found.append(Bandwidth(level, moved / float(best_s)))
    return found


def build(t: Target, threads: int, outdir: Path) -> Path:
    """Compile the kernels into a shared library in `outdir`."""
    if t.gpu is not None:
        return build_library(ceiling.module(t.gpu), t, outdir / "bandwidth.so")
    return build_library(module(t, threads), t, outdir / f"bandwidth{threads}.so")
