"""Would a whole inverted residual in one kernel be faster? Measured on MobileNetV2's widest ones.

    python benchmarks/inverted.py --seconds 60

Pointwise, depthwise and pointwise as three kernels (each with its default config), against one
kernel that computes a few rows of the wide middle at a time, in a scratch buffer that stays in L2:
the rows that neighbouring tiles share are computed twice. Of the fused kernel's tilings a random
sample is timed for `--seconds` a block, on one thread; the best three then take turns with the
three kernels, on the same arrays. Printed is the lowest median of each.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmsep.codegen import (
    example_inputs,
    kernel,
    link_shared,
    machine_code,
    reference,
    relative_error,
)
from tvmsep.contracts import Target, Workload
from tvmsep.graph.plan import choose_block
from tvmsep.schedules import template_for
from tvmsep.schedules.common import divisors, finish_tile, prim_func, register_tile
from tvmsep.schedules.epilogue import finish
from tvmsep.targets import load_target

BLOCKS = ((112, 16, 96, 24, 2), (56, 24, 144, 24, 1), (56, 24, 144, 32, 2))
"""Image, channels in, in the middle, out, stride."""
ACT, ROUNDS, RUNS = ("bias", "relu6"), 12, 15


@dataclass(frozen=True)
class Tiling:
    """Knobs of the fused kernel."""

    rows: int
    """Output rows of a tile."""
    wide: tuple[int, int]
    """Pixels and channel blocks of the first part's register tile."""
    strip: int
    """Pixels of the depthwise part's."""
    last: tuple[int, int]
    """Pixels and channel blocks of the last part's."""
    unroll: int


def parts(block: tuple[int, ...], t: Target) -> list[Workload]:
    """The three workloads of an inverted residual."""
    size, ic, mid, oc, stride = block
    bi, bm, bo = (choose_block(c, t) for c in (ic, mid, oc))
    out = size // stride
    return [
        Workload(op="pointwise", ic=ic, ih=size, iw=size, oc=mid, in_block=bi, out_block=bm,
                 epilogue=ACT),
        Workload(op="depthwise", ic=mid, ih=size, iw=size, oc=mid, kh=3, kw=3, sh=stride,
                 sw=stride, pads=(1, 1, 1, 1), groups=mid, in_block=bm, out_block=bm,
                 epilogue=ACT),
        Workload(op="pointwise", ic=mid, ih=out, iw=out, oc=oc, in_block=bm, out_block=bo,
                 epilogue=("bias",)),
    ]  # fmt: skip


def tilings(work: list[Workload], t: Target) -> list[Tiling]:
    """Those whose register tiles and scratch promise something."""
    first, middle, last = work

    def tiles(width: int, blocks: int) -> list[tuple[int, int]]:
        pairs = itertools.product(divisors(width, 28), divisors(blocks, 6))
        low, high = t.vector_registers * 3 // 8, t.vector_registers * 7 // 8
        return [(p, o) for p, o in pairs if low <= p * o <= high]

    def scratch(rows: int) -> int:
        return 4 * ((rows - 1) * middle.sh + 3) * middle.iw * middle.in_blocks * middle.in_block

    rows = [r for r in divisors(middle.oh) if scratch(r) <= t.l2_bytes * 3 // 4]
    strips = [s for s in divisors(middle.ow, 14) if s >= 4]
    found = itertools.product(
        rows, tiles(first.ow, first.out_blocks), strips, tiles(last.ow, last.out_blocks), (1, 4)
    )
    return [Tiling(*knobs) for knobs in found]


def fused(work: list[Workload], t: Target, c: Tiling) -> Any:
    """The scheduled kernel; its parameters are theirs without the activations in between."""
    from tvm import s_tir, te, tirx

    first, middle, last = work
    x = te.placeholder(first.in_shape, name="x")

    def weight(name: str, *shape: int) -> Any:
        return te.placeholder(shape, name=name)

    we = weight("w_wide", first.out_blocks, first.in_blocks * first.in_block, first.out_block)
    be = weight("b_wide", first.out_blocks, first.out_block)
    wd = weight("w_dw", middle.out_blocks, 3, 3, middle.out_block)
    bd = weight("b_dw", middle.out_blocks, middle.out_block)
    wl = weight("w", last.out_blocks, last.in_blocks * last.in_block, last.out_block)
    bl = weight("b", last.out_blocks, last.out_block)

    def pointwise(name: str, w: Workload, read: Any, kernel: Any, bias: Any) -> Any:
        io = te.reduce_axis((0, w.in_blocks), name="io")
        ii = te.reduce_axis((0, w.in_block), name="ii")
        shape = (1, w.out_blocks, w.oh, w.ow, w.out_block)
        acc = te.compute(
            shape,
            lambda n, o, h, q, i: te.sum(
                read(n, io, h, q, ii) * kernel[o, io * w.in_block + ii, i], axis=[io, ii]
            ),
            name=f"{name}_acc",
        )
        return te.compute(
            shape,
            lambda n, o, h, q, i: finish(w.epilogue, acc[n, o, h, q, i], bias[o, i], None),
            name=name,
        )

    wide = pointwise(
        "wide", first, lambda n, c, h, q, i: x[n, c, h * first.iw + q, i], we, be
    )  # fmt: skip
    kh, kw = te.reduce_axis((0, 3), name="kh"), te.reduce_axis((0, 3), name="kw")

    def tap(n: Any, c: Any, h: Any, q: Any, i: Any) -> Any:
        row, column = h * middle.sh + kh - 1, q * middle.sw + kw - 1
        inside = tirx.all(row >= 0, row < middle.ih, column >= 0, column < middle.iw)
        value = te.if_then_else(inside, wide[n, c, row, column, i], tirx.const(0, "float32"))
        return value * wd[c, kh, kw, i]

    shape = (1, middle.out_blocks, middle.oh, middle.ow, middle.out_block)
    mid_acc = te.compute(shape, lambda *at: te.sum(tap(*at), axis=[kh, kw]), name="mid_acc")
    mid = te.compute(
        shape, lambda n, c, h, q, i: finish(ACT, mid_acc[n, c, h, q, i], bd[c, i], None), name="mid"
    )
    out = pointwise("out", last, lambda n, c, h, q, i: mid[n, c, h, q, i], wl, bl)

    sch = s_tir.Schedule(prim_func([x, we, be, wd, bd, wl, bl, out]))
    n, ob, h, col, lane = sch.get_loops(sch.get_sblock("out"))
    tile, row = sch.split(h, [None, c.rows])
    wo, wi = sch.split(col, [None, c.last[0]])
    oo, oi = sch.split(ob, [None, c.last[1]])
    sch.reorder(n, tile, oo, row, wo, oi, wi, lane)
    unroll = {"ii": c.unroll}
    register_tile(sch, sch.get_sblock("out_acc"), wo, ("io", "ii"), unroll, vector_axis=4)
    finish_tile(sch, (oi, wi), lane)
    block = sch.get_sblock("mid")
    sch.compute_at(block, tile, preserve_unit_loops=True)
    *_, column, lane = sch.get_loops(block)
    strips, pixel = sch.split(column, [None, c.strip])
    register_tile(
        sch, sch.get_sblock("mid_acc"), strips, ("kh", "kw"), {"kh": 0, "kw": 0}, vector_axis=4
    )
    finish_tile(sch, (pixel,), lane)
    block = sch.get_sblock("wide")
    sch.compute_at(block, tile, preserve_unit_loops=True)
    *_, cb, row, column, lane = sch.get_loops(block)
    wo, wi = sch.split(column, [None, c.wide[0]])
    co, ci = sch.split(cb, [None, c.wide[1]])
    sch.reorder(co, row, wo, ci, wi, lane)
    register_tile(sch, sch.get_sblock("wide_acc"), wo, ("io", "ii"), unroll, vector_axis=4)
    finish_tile(sch, (ci, wi), lane)
    sch.transform_layout(
        sch.get_sblock("out"), ("write", 0), lambda n, c, h, q, i: (n, c, h * last.ow + q, i)
    )
    return sch.mod["main"].with_attr({"global_symbol": "fused", "tirx.noalias": True})


def load(functions: dict[str, Any], t: Target, folder: Path) -> Any:
    """Compile, link and load."""
    import tvm

    name = f"lib{len(list(folder.iterdir()))}"
    lib = machine_code(tvm.IRModule(functions), t)
    lib.write_to_file(str(folder / f"{name}.o"))
    link_shared([folder / f"{name}.o"], folder / f"{name}.so", t)
    return tvm.runtime.load_module(str(folder / f"{name}.so"))


def median_s(run: Any) -> float:
    """Of a few calls."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def compare(block: tuple[int, ...], t: Target, seconds: float, folder: Path) -> str:
    """One line of the table."""
    import tvm

    work = parts(block, t)
    given = [example_inputs(w, seed) for seed, w in enumerate(work)]
    values = [given[0][0]]
    for w, arrays in zip(work, given, strict=True):
        values.append(reference(w, [values[-1], *arrays[1:]]))
    want = values[-1]
    x, out = (tvm.runtime.tensor(a.astype(np.float32)) for a in (values[0], np.zeros_like(want)))
    between = [tvm.runtime.tensor(np.zeros(w.out_shape, np.float32)) for w in work[:2]]
    weights = [[tvm.runtime.tensor(a) for a in arrays[1:]] for arrays in given]

    def check() -> None:
        error = relative_error(out.numpy(), want, work[2].oc)
        assert error < 1e-5, error

    functions = {}
    for i, w in enumerate(work):
        template = template_for(w, t)
        assert template is not None
        functions[f"k{i}"] = kernel(w, t, template.name, template.default(w, t, 1), f"k{i}")
    library = load(functions, t, folder)
    calls = list(zip([x, *between], weights, [*between, out], strict=True))

    def separate() -> None:
        for i, (source, constants, result) in enumerate(calls):
            library[f"k{i}"](source, *constants, result)

    separate()
    check()
    rng, sample, found = random.Random(0), tilings(work, t), []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        c = rng.choice(sample)
        module = load({"fused": fused(work, t, c)}, t, folder)

        def one(run: Any = module["fused"]) -> None:
            run(x, *itertools.chain(*weights), out)

        one()
        check()
        found.append((median_s(one), len(found), c, one))
    best = [one for *_, one in sorted(found)[:3]]
    times: list[list[float]] = [[] for _ in range(1 + len(best))]
    for _ in range(ROUNDS):
        for mine, run in zip(times, (separate, *best), strict=True):
            mine.append(median_s(run))
    apart, together = min(times[0]), min(map(min, times[1:]))
    size, ic, mid, oc, stride = block
    label = f"{size}x{size} {ic}>{mid}>{oc}" + f" s{stride}" * (stride > 1)
    return (
        f"| {label} | {apart * 1e6:.0f} | {together * 1e6:.0f} | "
        f"{together / apart:.2f} | {len(found)} |"
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of search, each (60)")
    asked = parser.parse_args()
    import tvm

    t = load_target("local")
    print("| block | three kernels, us | one kernel, us | ratio | tilings tried |")
    print("|---|---|---|---|---|")
    cpu = min(os.sched_getaffinity(0))
    tvm.get_global_func("runtime.config_threadpool")(-2, 1, [str(cpu)])
    with tempfile.TemporaryDirectory() as folder:
        for block in BLOCKS:
            print(compare(block, t, asked.seconds, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
