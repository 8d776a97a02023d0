"""Every template computes what NumPy computes, for any shape, config and target it accepts."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from workload_kit import ACTS, workloads

from tvmsep.codegen import (
    example_inputs,
    kernel,
    machine_code,
    reference,
    relative_error,
    unscheduled,
)
from tvmsep.codegen.assembly import hot_loop
from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.graph.plan import choose_block, choose_split, layouts, vectors_of
from tvmsep.schedules import CPU, TEMPLATES, template_for
from tvmsep.schedules.epilogue import activate, activate_numpy
from tvmsep.targets import load_target, misfit, target_names

TOLERANCE = {"float32": 2e-5, "float16": 4e-3}
"""Of a kernel; in float16 three of its last places, and what sums of 64 products lose."""
X86 = [n for n in target_names() if n.startswith("x86")]
RUNNABLE = [n for n in X86 if misfit(load_target(n)) is None]
LANES = "lanes"
"""A target that this host runs, taken for one whose multiply-adds take lanes, as NEON's do."""


def run(w: Workload, target: Target, config: Config) -> float:
    """Compile, run, and compare; returns the relative error."""
    import tvm

    w = in_vectors(w, target)

    template = template_for(w, target)
    assert template is not None, w
    lib = machine_code(kernel(w, target, template.name, config), target)
    inputs = example_inputs(w, 0)
    out = tvm.runtime.tensor(np.full(w.out_shape, np.nan, w.out_dtype))
    lib["main"](*map(tvm.runtime.tensor, inputs), out)
    return relative_error(out.numpy(), reference(w, inputs), w.oc)


def in_vectors(w: Workload, target: Target) -> Workload:
    """The workload as a plan has it: how many vectors its blocks hold."""
    if w.op == "channels":
        return w
    runs = (vectors_of(block, target, w.dtype) for block in (w.in_block, w.out_block))
    return msgspec.structs.replace(w, **dict(zip(("in_run", "out_run"), runs, strict=True)))


def check(w: Workload, target: Target, config: Config) -> None:
    error = run(w, target, config)
    assert error < TOLERANCE[w.dtype], f"{w.label} {config} on {target.name}: error {error}"


def sample(space: Space, rng: random.Random) -> Config:
    configs = space.configs()
    assert configs, "an empty space"
    return rng.choice(configs)


def target_here(name: str) -> Target:
    if name != LANES:
        return load_target(name)
    return msgspec.structs.replace(
        load_target(), name=LANES, lanes=4, vector_registers=32, broadcast_operand=False,
        half_width_is_free=False, lane_operand=True, half_arithmetic=True,
    )  # fmt: skip


@pytest.mark.parametrize("target_name", [*RUNNABLE, LANES])
@pytest.mark.parametrize("name", CPU)
def test_equals_numpy(name: str, target_name: str) -> None:
    target = target_here(target_name)
    template = TEMPLATES[name]
    dtypes = ("float32", "float16") if target.half_arithmetic else ("float32",)
    seen = Counter[tuple[str, str]]()

    @settings(
        max_examples=12 if target_name != LANES else 24, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data(), st.integers(0, 2**31), st.sampled_from((1, 2)))
    def prop(data: st.DataObject, seed: int, threads: int) -> None:
        dtype = data.draw(st.sampled_from(dtypes))
        layout = data.draw(st.sampled_from(("", *layouts(target, dtype))))
        w = data.draw(workloads(name, lambda c: choose_block(c, target, layout, dtype)))
        w = in_vectors(msgspec.structs.replace(w, dtype=dtype), target)
        if not template.accepts(w, target):
            return
        seen[layout, dtype] += 1
        space = template.space(w, target, threads)
        default = template.default(w, target, threads)
        assert default in space, f"{w.label}: the default {default} is outside the space"
        check(w, target, default)
        check(w, target, sample(space, random.Random(seed)))

    prop()
    assert {dtype for _, dtype in seen} == set(dtypes)
    assert len({layout for layout, _ in seen}) > 1


@pytest.mark.skipif("x86-avx2" not in RUNNABLE, reason="needs a target with few registers")
@pytest.mark.parametrize("layout", ["", "nhwc"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("size", "n", "threads"), [(7, 2, 2), (7, 1, 1), (9, 1, 3), (14, 1, 2)])
def test_tiles_need_not_divide_the_pixels(
    size: int, n: int, threads: int, scaled: bool, layout: str
) -> None:
    target, template = load_target("x86-avx2"), TEMPLATES["pointwise"]
    blocks = choose_block(16, target, layout), choose_block(48, target, layout)
    w = Workload(
        op="pointwise", n=n, ic=16, ih=size, iw=size, oc=48, in_block=blocks[0],
        out_block=blocks[1], epilogue=("bias", "relu6", "add"),
        out_split=choose_split(size, size, threads, scaled=scaled), scaled=scaled,
    )  # fmt: skip
    w = in_vectors(w, target)
    configs = template.space(w, target, threads).configs()
    uneven = {
        (c["loop"], c["tile_p"], c["chunks"]): c for c in configs if size**2 % c.int("tile_p")
    }
    if scaled and threads > 1 and w.out_split == "rows":  # each thread scales its own pixels
        assert not uneven
        return
    assert {tile for _, tile, _ in uneven} >= {4, 5} - {d for d in (4, 5) if size**2 % d == 0}
    for config in uneven.values():
        check(w, target, config)
    some = next(iter(uneven.values()))
    whole = unscheduled(w, target, "pointwise", some).params[-1].ty.shape
    assert tuple(map(int, whole)) == w.out_shape


@pytest.mark.skipif("x86-avx2" not in RUNNABLE, reason="needs a target with few registers")
@pytest.mark.parametrize("layout", ["", "nhwc"])
@pytest.mark.parametrize(
    ("width", "n", "threads", "stride"), [(11, 2, 2, 1), (14, 1, 1, 2), (17, 1, 3, 1)]
)
def test_register_tiles_of_a_pair_need_not_divide_a_row(
    width: int, n: int, threads: int, stride: int, layout: str
) -> None:
    target = load_target("x86-avx2")
    blocks = choose_block(16, target, layout), choose_block(32, target, layout)
    w = Workload(
        op="dwpw", n=n, groups=16, ic=16, ih=6 * stride, iw=width * stride, oc=32, kh=3, kw=3,
        pads=(1, 1, 1, 1), sh=stride, sw=stride, in_block=blocks[0], out_block=blocks[1],
        out_split="rows", mid_epilogue=("bias", "relu6"), epilogue=("bias", "add"),
    )  # fmt: skip
    w = in_vectors(w, target)
    uneven = {
        (c["tile_h"], c["tile_w"], c["loop"], "prefetch" in c): c
        for c in TEMPLATES["dwpw"].space(w, target, threads).configs()
        if width % c.int("tile_w")
    }
    few = {tile for tile in (3, 4, 5, 6) if 0 < -width % tile <= width / 8}
    assert {tile for _, tile, *_ in uneven} == few and few
    for config in uneven.values():
        check(w, target, config)
    some = next(iter(uneven.values()))
    whole = unscheduled(w, target, "dwpw", some).params[-1].ty.shape
    assert tuple(map(int, whole)) == w.out_shape


@pytest.mark.parametrize("oc", [8, 16, 32, 40, 48])
@pytest.mark.parametrize(("ic", "block"), [(3, 0), (16, 8)])
def test_convolutions_of_few_registers_leave_room_for_their_scalars(
    ic: int, block: int, oc: int
) -> None:
    target = load_target("x86-avx2")
    w = Workload(
        op="conv", ic=ic, ih=112, iw=112, oc=oc, kh=3, kw=3, pads=(1, 1, 1, 1), in_block=block,
        out_block=8,
    )  # fmt: skip
    default = TEMPLATES["conv"].default(w, target, 1)
    assert default in TEMPLATES["conv"].space(w, target, 1)
    pixels, blocks = default.int("tile_w"), default.int("tile_oc")
    assert pixels * blocks + pixels + 1 <= target.vector_registers
    assert default["unroll"] == "kw"


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize(
    ("ic", "kernel_size", "stride", "dilation", "pads"),
    [
        (3, 3, 2, 1, (0, 0, 1, 1)), (3, 3, 2, 1, (1, 1, 1, 1)), (1, 5, 1, 1, (2, 3, 2, 1)),
        (4, 3, 1, 2, (2, 2, 2, 2)), (2, 2, 3, 1, (1, 0, 0, 4)),
    ],
)  # fmt: skip
def test_first_layers_may_read_their_image_where_it_lies(
    ic: int, kernel_size: int, stride: int, dilation: int, pads: tuple[int, int, int, int],
    name: str,
) -> None:  # fmt: skip
    target, template = load_target(name), TEMPLATES["conv"]
    w = Workload(
        op="conv", n=2, ic=ic, ih=13, iw=14, oc=24, kh=kernel_size, kw=kernel_size, pads=pads,
        sh=stride, sw=stride, dh=dilation, dw=dilation, in_block=0, out_block=8,
        epilogue=("bias", "relu6"),
    )  # fmt: skip
    assert template.default(w, target, 1)["direct"] == 1
    direct = {
        (c["tile_w"], c["loop"], c["order"], c["unroll"]): c
        for c in template.space(w, target, 1).configs()
        if "direct" in c
    }
    rng = random.Random(kernel_size)
    for config in rng.sample([*direct.values()], min(4, len(direct))):
        check(w, target, config)
        assert 'sblock("pad")' not in str(kernel(w, target, "conv", config))
        before = Config({k: v for k, v in config.items() if k != "direct"})
        assert 'sblock("pad")' in str(kernel(w, target, "conv", before)), "as it was"


def test_only_plain_padded_inputs_may_be_read_where_they_lie() -> None:
    target = load_target("x86-avx2")
    w = Workload(
        op="conv", ic=3, ih=32, iw=32, oc=16, kh=3, kw=3, pads=(1, 1, 1, 1), in_block=0, out_block=8
    )  # fmt: skip
    blocked = msgspec.structs.replace(w, ic=16, in_block=8)
    assert "direct" in TEMPLATES["conv"].space(w, target, 1).knobs
    for other in (blocked, msgspec.structs.replace(w, pads=(0, 0, 0, 0))):
        assert "direct" not in TEMPLATES["conv"].space(other, target, 1).knobs
        assert "direct" not in TEMPLATES["conv"].default(other, target, 1)
    assert "direct" not in TEMPLATES["conv"].default(w, load_target("rpi4"), 1)


@pytest.mark.parametrize(("tile_p", "tile_oc"), [(4, 3), (3, 4), (6, 2), (2, 6)])
def test_twelve_accumulators_stay_in_sixteen_registers(tile_p: int, tile_oc: int) -> None:
    target, template = load_target("x86-avx2"), TEMPLATES["pointwise"]
    w = Workload(op="pointwise", ic=96, ih=12, iw=12, oc=192, in_block=8, out_block=8)
    config = Config(tile_p=tile_p, tile_oc=tile_oc, loop="oc", chunks=1, unroll=8)
    assert config in template.space(w, target, 1)
    lib = machine_code(kernel(w, target, "pointwise", config), target)
    loop = hot_loop(lib.inspect_source("s").splitlines())
    assert (loop.fmas, loop.spills) == (8 * 12, 0), loop.lines


@pytest.mark.parametrize(("ic", "oc", "size"), [(512, 512, 14), (384, 96, 14), (240, 80, 14)])
def test_few_registers_take_twelve_accumulators_and_unroll_a_block(
    ic: int, oc: int, size: int
) -> None:
    target = load_target("x86-avx2")
    w = Workload(op="pointwise", ic=ic, ih=size, iw=size, oc=oc, in_block=8, out_block=8)
    default = TEMPLATES["pointwise"].default(w, target, 1)
    assert default.int("tile_p") * default.int("tile_oc") == 12
    assert default["unroll"] == 8


@pytest.mark.parametrize(("ic", "oc"), [(1024, 1024), (960, 160)])
def test_few_registers_do_not_take_a_row_of_seven_pixels(ic: int, oc: int) -> None:
    target = load_target("x86-avx2")
    w = Workload(op="pointwise", ic=ic, ih=7, iw=7, oc=oc, in_block=8, out_block=8)
    default = TEMPLATES["pointwise"].default(w, target, 1)
    tile_p, tile_oc = default.int("tile_p"), default.int("tile_oc")
    assert tile_p + tile_oc < tile_p * tile_oc, "more loads than multiply-adds"


@pytest.mark.parametrize("name", target_names())
def test_defaults_lie_in_their_space_for_real_layers(name: str) -> None:
    target = load_target(name)
    for ic, oc, size in (
        (32, 64, 112), (24, 144, 56), (40, 240, 28), (96, 576, 14), (960, 160, 7),
        (32, 16, 112), (21, 35, 2), (64, 32, 1),
    ):  # fmt: skip
        for op in ("pointwise", "depthwise"):
            w = Workload(
                op=op,  # type: ignore[arg-type]
                ic=ic, ih=size, iw=size, oc=ic if op == "depthwise" else oc,
                groups=ic if op == "depthwise" else 1,
                kh=3 if op == "depthwise" else 1, kw=3 if op == "depthwise" else 1,
                pads=(1, 1, 1, 1) if op == "depthwise" else (0, 0, 0, 0),
                in_block=choose_block(ic, target),
                out_block=choose_block(ic if op == "depthwise" else oc, target), epilogue=("bias",),
            )  # fmt: skip
            template = template_for(w, target)
            assert template is not None and template.name in (op, f"cuda_{op}")
            for threads in (1, 2, 3, 4, 8) if target.gpu is None else (1,):
                default = template.default(w, target, threads)
                assert default in template.space(w, target, threads), (w.label, threads, default)


@pytest.mark.parametrize("name", ["x86-zen4", "x86-avx2", "rpi3", "rpi4"])
def test_scaled_defaults_lie_in_their_space(name: str) -> None:
    target, template = load_target(name), TEMPLATES["pointwise"]
    for ic, oc, size in ((32, 16, 144), (40, 24, 150), (40, 24, 260), (672, 112, 14), (16, 8, 7)):
        for threads in (1, 2, 4, 8):
            w = Workload(
                op="pointwise", ic=ic, ih=size, iw=size, oc=oc, in_block=choose_block(ic, target),
                out_block=choose_block(oc, target), epilogue=("bias",), scaled=True,
                out_split=choose_split(size, size, threads),
            )  # fmt: skip
            default = template.default(w, target, threads)
            assert default in template.space(w, target, threads), (w.label, threads, default)


@pytest.mark.parametrize("size", [11, 13, 17, 19, 28, 38, 56, 112, 149])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_default_keeps_all_threads_busy(size: int, stride: int) -> None:
    target = load_target("x86-zen4")
    for threads in (2, 4, 8, 16):
        w = Workload(
            op="depthwise", ic=32, oc=32, groups=32, ih=size, iw=size, kh=3, kw=3, sh=stride,
            sw=stride, pads=(1, 1, 1, 1), in_block=16, out_block=16, in_split="rows",
            out_split="rows",
        )  # fmt: skip
        if w.oh < 4 * threads:
            continue  # such layers are split by channels
        c = TEMPLATES["depthwise"].default(w, target, threads)
        rows = c.int("rows")
        assert -(-rows // threads) * threads / rows <= 1.25, (threads, c)


@pytest.mark.parametrize("act", ACTS)
def test_activations_match_numpy_far_out(act: str) -> None:
    import tvm
    from tvm import te

    values = np.linspace(-100, 100, 4096, dtype=np.float32)
    x = te.placeholder(values.shape, name="x")
    func = te.create_prim_func([x, te.compute(values.shape, lambda i: activate(act, x[i]))])
    lib = tvm.compile(func, target="llvm")
    out = tvm.runtime.tensor(np.zeros_like(values))
    lib(tvm.runtime.tensor(values), out)
    want = activate_numpy(act, values.astype(np.float64))
    np.testing.assert_allclose(out.numpy(), want, rtol=3e-6, atol=1e-7)


def test_a_wrong_kernel_is_noticed() -> None:
    """The check itself must be able to fail."""
    w = Workload(op="pointwise", ic=16, ih=4, iw=4, oc=16, in_block=16, out_block=16)
    inputs = example_inputs(w, 0)
    want = reference(w, inputs)
    assert relative_error(want.astype(np.float32), want, w.oc) < 1e-6
    bent = want.copy()
    bent[0, 0, 3, 5] += 1e-2 * np.abs(want).max()
    assert relative_error(bent, want, w.oc) > 5e-3
    bent[0, 0, 3, 5] = np.nan
    assert relative_error(bent, want, w.oc) == float("inf")
