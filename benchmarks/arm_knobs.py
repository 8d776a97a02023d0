"""What each knob does to the modelled cycles of ARM's hot loops: the tables of docs/arm.md.

python benchmarks/arm_knobs.py            # needs llvm-mca 22; measures nothing
"""

from __future__ import annotations

import re
from unittest import mock

import msgspec

from tvmsep.codegen import kernel, machine_code
from tvmsep.codegen.assembly import Loop, hot_loop
from tvmsep.contracts import Config, Target, Workload
from tvmsep.estimate.mca import find_mca, loop_cycles
from tvmsep.graph.plan import choose_block, layouts, vectors_of
from tvmsep.schedules import TEMPLATES, common
from tvmsep.targets import load_target

CORES = ("rpi3", "rpi4", "rpi5", "jetson-orin-cpu", "graviton3", "graviton4")
_BLOCKED = {"in_block": 4, "out_block": 4, "epilogue": ("bias", "relu6")}
POINTWISE = Workload(op="pointwise", ic=256, oc=256, ih=56, iw=56, **_BLOCKED)  # type: ignore[arg-type]
DEPTHWISE = Workload(
    op="depthwise", ic=128, oc=128, groups=128, ih=56, iw=56, kh=3, kw=3, pads=(1, 1, 1, 1),
    **_BLOCKED,  # type: ignore[arg-type]
)  # fmt: skip
STEM = Workload(
    op="conv", ic=3, oc=32, ih=224, iw=224, kh=3, kw=3, sh=2, sw=2, pads=(0, 0, 1, 1),
    **{**_BLOCKED, "in_block": 0},  # type: ignore[arg-type]
)  # fmt: skip
DENSE = Workload(op="dense", ic=1024, oc=1000, **{**_BLOCKED, "epilogue": ("bias",)})  # type: ignore[arg-type]

SWEEPS: dict[str, tuple[Workload, tuple[dict[str, int | str], ...]]] = {
    "pointwise 56x56 256": (
        POINTWISE,
        (
            {"tile_p": 4, "tile_oc": 2},
            {"tile_p": 7, "tile_oc": 2},
            {"tile_p": 8, "tile_oc": 2},
            {"tile_p": 14, "tile_oc": 1},
            {"tile_p": 4, "tile_oc": 4},
            {"tile_p": 2, "tile_oc": 4},
            {"tile_p": 14, "tile_oc": 2},
            {"tile_p": 7, "tile_oc": 2, "loads": "halves"},
            {"tile_p": 8, "tile_oc": 2, "loads": "halves"},
            {"tile_p": 14, "tile_oc": 1, "loads": "halves"},
            {"tile_p": 8, "tile_oc": 2, "unroll": 1},
            {"tile_p": 8, "tile_oc": 2, "unroll": 2},
        ),
    ),
    "depthwise 3x3 56x56 128": (
        DEPTHWISE,
        (
            {"tile_w": 4, "tile_h": 1},
            {"tile_w": 7, "tile_h": 1},
            {"tile_w": 14, "tile_h": 1},
            {"tile_w": 4, "tile_h": 2},
            {"tile_w": 7, "tile_h": 2},
            {"tile_w": 2, "tile_h": 4},
        ),
    ),
    "first convolution 3x3 s2 224x224 3>32": (STEM, ({"unroll": "kw"}, {"unroll": "all"})),
    "dense 1024>1000": (DENSE, ({"tile_oc": 5}, {"tile_oc": 10}, {"tile_oc": 10, "unroll": 1})),
}


FORMS = {
    "pointwise 56x56 256, 8x2 vectors": (POINTWISE, {"tile_p": 8, "tile_oc": 2}),
    "depthwise 3x3 56x56 128, tile_w=7": (DEPTHWISE, {"tile_w": 7, "tile_h": 1}),
}
"""Kernels that are shown in every layout and precision."""


def formed(w: Workload, t: Target, layout: str, dtype: str) -> Workload:
    """The workload in a layout and a precision, as a plan has it."""
    i, o = (choose_block(c, t, layout, dtype) for c in (w.ic, w.oc))
    runs = {"in_run": vectors_of(i, t, dtype), "out_run": vectors_of(o, t, dtype)}
    return msgspec.structs.replace(w, in_block=i, out_block=o, dtype=dtype, **runs)


def row(w: Workload, t: Target, knobs: dict[str, int | str], tool: str) -> str:
    """One cell: share of the multiply-add ports, loads a multiply-add, and spills if any.

    In float16 also multiply-adds of elements a cycle: a vector holds twice as many.
    """
    if w.op == "pointwise":
        knobs = {"unroll": w.vectors.in_block, "loads": "whole", **knobs}
    config = Config({**TEMPLATES[w.op].default(w, t, t.cores), **knobs})
    built = machine_code(kernel(w, t, w.op, config), t)
    loop = hot_loop(built.inspect_source("s").splitlines())
    cycles = loop_cycles(loop, t, tool)
    use = loop.fmas / (cycles * t.fma_per_cycle)
    spills = f", {loop.spills} spills" if loop.spills else ""
    half = w.dtype == "float16"
    pace = f", {loop.fmas * t.elements(w.dtype) / cycles:.1f} a cycle" if half else ""
    return f"{use:.0%} ({loop.loads / loop.fmas:.2f}{spills}{pace})"


def enclosing(assembly: list[str], inner: Loop) -> Loop:
    """What the next loop around a loop has beside it; empty where there is none."""
    start = assembly.index(inner.lines[0])
    at: dict[str, int] = {}
    spans = []
    for i, line in enumerate(assembly):
        if found := re.match(r"(\.L\w+):", line):
            at[found.group(1)] = i
        elif (jump := re.search(r"\s(\.L\w+)$", line)) and jump.group(1) in at:
            spans.append((at[jump.group(1)], i))
    end = min(b for a, b in spans if a == start)
    a, b = min(((a, b) for a, b in spans if a < start and b > end), key=lambda s: s[1] - s[0])
    rest = [*assembly[a:start], *assembly[end + 1 : b + 1]]
    return Loop(tuple(x.expandtabs(8) for x in rest if not re.match(r"\.Ltmp|\s+[.#]|\s*//", x)))


def parts(t: Target, tool: str, products: int) -> str:
    """Share of the ports with float16 sums of so many products, their adding in float32 counted."""
    w = formed(POINTWISE, t, "", "float16")
    knobs = {"tile_p": 8, "tile_oc": 2}
    config = Config({**TEMPLATES[w.op].default(w, t, t.cores), **knobs})
    with mock.patch.object(common, "HALF_SUM", products):
        built = machine_code(kernel(w, t, w.op, config), t)
    assembly = built.inspect_source("s").splitlines()
    loop, steps = hot_loop(assembly), products // w.in_block
    cycles = steps * loop_cycles(loop, t, tool)
    cycles += loop_cycles(enclosing(assembly, loop), t, tool)
    return f"{steps * loop.fmas / (cycles * t.fma_per_cycle):.0%}"


def forms(t: Target) -> list[tuple[str, str]]:
    """Layouts and precisions of a target, float16 where it computes in it."""
    dtypes = ("float32", "float16") if t.half_arithmetic else ("float32",)
    return [(layout, dtype) for dtype in dtypes for layout in layouts(t, dtype)]


def main() -> None:
    """Print Markdown."""
    tool = find_mca()
    targets = [msgspec.structs.replace(load_target(n), cores=4) for n in CORES]
    for title, (w, sweep) in SWEEPS.items():
        print(f"\n| {title} | {' | '.join(CORES)} |")
        print("|---" * (1 + len(CORES)) + "|")
        for knobs in sweep:
            name = " ".join(f"{k}={v}" for k, v in knobs.items())
            cells = [row(w, t, knobs, tool) for t in targets]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for title, (w, knobs) in FORMS.items():
        print(f"\n| {title} | {' | '.join(CORES)} |")
        print("|---" * (1 + len(CORES)) + "|")
        for form in dict.fromkeys(form for t in targets for form in forms(t)):
            cells = [
                row(formed(w, t, *form), t, knobs, tool) if form in forms(t) else ""
                for t in targets
            ]
            print(f"| {' '.join(form)} | {' | '.join(cells)} |", flush=True)
    able = [t for t in targets if t.half_arithmetic]
    print(f"\n| float16 sums, pointwise as above | {' | '.join(t.name for t in able)} |")
    print("|---" * (1 + len(able)) + "|")
    for products in (32, 64, 128):
        cells = [parts(t, tool, products) for t in able]
        print(f"| of {products} products | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
