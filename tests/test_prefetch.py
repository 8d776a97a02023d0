"""Panels of weights are asked for: each line about once whenever the weights are read."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from tvmsep.codegen import example_inputs, kernel, reference, relative_error
from tvmsep.contracts import Config, Target, Workload
from tvmsep.contracts.workload import Split
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import load_target, misfit

AVX2 = load_target("x86-avx2")
here = pytest.mark.skipif(misfit(AVX2) is not None, reason="needs AVX2")
FLOATS = 16
"""In a cache line."""


def pointwise(
    size: int, ic: int, oc: int, *, n: int = 1, split: Split = "rows", **more: Any
) -> Workload:
    return Workload(
        op="pointwise", n=n, ic=ic, ih=size, iw=size, oc=oc, in_block=8, out_block=8,
        out_split=split, **more,
    )  # fmt: skip


def pair(size: int, ic: int, oc: int) -> Workload:
    return Workload(
        op="dwpw", groups=ic, ic=ic, ih=size, iw=size, oc=oc, kh=3, kw=3, pads=(1, 1, 1, 1),
        in_block=8, out_block=8,
    )  # fmt: skip


def prefetching(w: Workload, threads: int) -> list[tuple[str, Config]]:
    """Of each order of tiles and each number of chunks the first and the last such config.

    Of fused kernels also the first whose tiles do not divide a row.
    """
    template = next(t for t in ("pointwise", "dwpw") if TEMPLATES[t].accepts(w, AVX2))
    found: dict[tuple[object, object, bool], Config] = {}
    for c in TEMPLATES[template].space(w, AVX2, threads).configs():
        if "prefetch" in c:
            found.setdefault((c["loop"], c["chunks"], True), c)
            found[c["loop"], c["chunks"], False] = c
            if template == "dwpw" and w.ow % c.int("tile_w"):
                found.setdefault((c["loop"], "uneven", True), c)
    return [(template, c) for c in dict.fromkeys(found.values())]


def counted(func: Any, w: Workload) -> tuple[Any, int]:
    """The kernel with a last parameter that counts, for each line of weights, who asked for it."""
    import tvm_ffi
    from tvm import tirx

    lines = 2 * w.out_blocks * w.in_blocks * 64 // FLOATS  # parts are even: some ask beyond
    seen = tirx.decl_buffer((lines,), "int32", name="seen")

    def count(node: Any) -> Any:
        call = node.value
        if "llvm.prefetch" not in str(call):
            return node
        panel, row, lane = next(a for a in call.args if hasattr(a, "args")).args[0].indices
        at = ((panel * w.in_blocks * 8 + row) * 8 + lane) // FLOATS
        return tirx.BufferStore(seen, tirx.BufferLoad(seen, [at]) + 1, [at])

    def one_thread(loop: Any) -> Any:  # counts of several would race
        if int(loop.kind) != int(tirx.ForKind.PARALLEL):
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    body = tvm_ffi.structural_map(func.body, (tirx.Evaluate, count))
    body = tvm_ffi.structural_map(body, (tirx.For, one_thread))
    whole = tirx.PrimFunc([*func.params, seen], body, func.ret_type)
    return whole.with_attr("global_symbol", "main"), lines


def asked_for(w: Workload, template: str, config: Config) -> Any:
    """How often a run asks for each line; what it computes is checked."""
    import tvm

    func, lines = counted(kernel(w, AVX2, template, config), w)
    lib = tvm.compile(tvm.IRModule({"main": func}), target=tvm.target.Target("llvm"))
    inputs = example_inputs(w, 0)
    out = tvm.runtime.tensor(np.full(w.out_shape, np.nan, w.out_dtype))
    seen = tvm.runtime.tensor(np.zeros(lines, np.int32))
    lib["main"](*map(tvm.runtime.tensor, inputs), out, seen)
    assert relative_error(out.numpy(), reference(w, inputs), w.oc) < 2e-5, config
    return seen.numpy()


CASES = [
    (pointwise(7, 160, 96), 1, {"oc", "oc.oc", "px.oc"}),  # asks between the multiply-adds
    (pointwise(14, 32, 48), 1, {"oc", "oc.oc", "px.oc"}),  # has few to ask for: at a tile's begin
    (pointwise(7, 24, 40, n=2, split="channels"), 2, {"oc", "oc.oc"}),
    (pointwise(8, 16, 32), 2, {"px.oc"}),
    (pointwise(7, 40, 32, scaled=True), 1, {"px.oc"}),
    (pointwise(7, 200, 64, scaled=True, split="channels"), 2, {"oc.oc"}),
    (pair(7, 200, 48), 1, {"oc"}),
    (pair(14, 24, 48), 2, {"oc"}),
]


@here
@pytest.mark.parametrize(("w", "threads", "loops"), CASES)
def test_every_line_is_asked_for_when_weights_are_read(
    w: Workload, threads: int, loops: set[str]
) -> None:
    configs = prefetching(w, threads)
    assert {c["loop"] for _, c in configs} == loops
    if w.op == "dwpw" and w.ow == 14:
        assert any(w.ow % c.int("tile_w") for _, c in configs)
    for template, config in configs:
        asked = asked_for(w, template, config)
        weights = w.out_blocks * w.in_blocks * 64 // FLOATS
        passes = w.n * passes_over(w, config)
        assert (asked[:weights] >= passes).all(), (config, asked)
        assert asked.sum() <= 1.5 * passes * weights + 64, (config, asked)


@here
@pytest.mark.parametrize(("ic", "oc", "n"), [(200, 48, 1), (24, 96, 2), (8, 16, 1), (40, 64, 1)])
def test_dense_layers_ask_for_every_line_once_a_sample_tile(ic: int, oc: int, n: int) -> None:
    w = Workload(op="dense", n=n, ic=ic, ih=1, iw=1, oc=oc, in_block=8, out_block=8)
    template = TEMPLATES["dense"]
    assert template.default(w, AVX2, 1)["prefetch"] == 2
    assert "prefetch" not in template.default(w, load_target("rpi4"), 1)
    configs = {
        (c["tile_n"], c["tile_oc"], c["chunks"], c["unroll"]): c
        for c in template.space(w, AVX2, 2).configs()
        if "prefetch" in c
    }
    for (tile_n, *_), config in configs.items():
        seen = asked_for(w, "dense", config)
        weights = ic * oc // FLOATS
        asked = n // tile_n * (2 if config["unroll"] == 1 else 1)  # of a line of two channels
        assert (seen[:weights] == asked).all(), config
        assert not seen[weights:].any()


def passes_over(w: Workload, c: Config) -> int:
    """How often an image's weights are read."""
    if w.op == "dwpw":
        return w.oh // c.int("rows")
    return c.int("chunks") if c["loop"] == "px.oc" else 1


def test_it_is_the_default_where_weights_are_large_beside_the_image() -> None:
    def default(w: Workload, target: Target) -> Config:
        return TEMPLATES["pointwise"].default(w, target, 1)

    assert default(pointwise(7, 160, 960), AVX2)["prefetch"] == 2
    assert "prefetch" not in default(pointwise(56, 24, 144), AVX2)
    wide = msgspec.structs.replace(pointwise(7, 160, 960), in_block=16, out_block=16)
    assert default(wide, load_target("x86-zen4"))["prefetch"] == 2
    assert "prefetch" not in default(pointwise(7, 160, 960), load_target("rpi4"))


def test_configs_without_the_knob_are_those_of_before() -> None:
    w = pointwise(7, 160, 960)
    space = TEMPLATES["pointwise"].space(w, AVX2, 1)
    old = Config(tile_p=4, tile_oc=2, loop="oc", chunks=1, unroll=1)
    assert old in space
    assert Config(old, prefetch=0) == old
    assert Config(old, prefetch=2) in space
    assert Config(old, prefetch=3) not in space
    assert space.configs().count(old) == 1
    large = msgspec.structs.replace(w, ih=56, iw=56)
    assert Config(old, prefetch=2) not in TEMPLATES["pointwise"].space(large, AVX2, 1)


@here
def test_a_bundles_text_is_read_again() -> None:
    """TVM prints `tirx.prefetch` by a name that its parser does not know."""
    import tvm
    from tvm.script import from_source

    w = pointwise(7, 160, 96)
    func = kernel(w, AVX2, "pointwise", TEMPLATES["pointwise"].default(w, AVX2, 1))
    text = tvm.IRModule({"main": func}).script()
    assert "llvm.prefetch" in text
    again = from_source(text)
    assert again.script() == text


def test_symbols_with_a_prefix_leave_the_prefetches() -> None:
    """On any host: TVM's renaming alone cannot copy such a call."""
    from tvm import tirx

    from tvmsep.api import choose_configs, prepare
    from tvmsep.compiler import SYSTEM_LIB, emit, lower

    prepared = prepare("mobilenet_v1:width=0.25,resolution=128", target="x86-avx2", threads=1)
    plan = prepared.plans[1]
    module = emit(plan, prepared.target, choose_configs(prepared, plan, {})[0])
    lowered = lower(module.with_attr(SYSTEM_LIB, "net_"), prepared.target)
    kernels = {v.name_hint: f for v, f in lowered.functions_items() if isinstance(f, tirx.PrimFunc)}
    assert kernels
    assert all(name.startswith("net_") for name in kernels)
    assert all(f.attrs["global_symbol"] == name for name, f in kernels.items())
    assert any("llvm.prefetch" in f.script() for f in kernels.values())
