"""Targets that this host cannot run: built here, looked at as files and as assembly."""

import io
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

import tvmsep
from tvmsep.api import prepare
from tvmsep.boards.new_target import _ARM_CORES
from tvmsep.bundle import Package
from tvmsep.codegen import kernel, machine_code
from tvmsep.codegen.assembly import Loop, hot_loop
from tvmsep.contracts import Config, InputError, Target, Workload
from tvmsep.graph.plan import choose_block, vectors_of
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import load_target, target_names

ARM = [
    n
    for n in target_names()
    if load_target(n).machine in ("aarch64", "armv7l") and load_target(n).gpu is None
]
HALF = [n for n in ARM if load_target(n).half_arithmetic]
AARCH64 = [n for n in ARM if load_target(n).machine == "aarch64"]
RUNTIME = {
    *("memcpy", "memset", "TVMFFIErrorSetRaisedFromCStrParts", "TVMFFIErrorSetRaisedFromCStr"),
    *("pthread_create", "pthread_join", "sched_yield", "syscall", "clock_gettime"),
    *("posix_memalign", "free"),
}
"""What a kernel library may want of the process that loads it: libc, and TVM's runtime."""
UNWINDING = {"__aeabi_unwind_cpp_pr0", "__aeabi_unwind_cpp_pr1"}
"""Named by 32-bit Arm's tables of frames; libgcc_s has them, which C++ brings."""


def pointwise(ic: int, size: int, oc: int) -> Workload:
    return Workload(
        op="pointwise", ic=ic, ih=size, iw=size, oc=oc, in_block=4, out_block=4,
        epilogue=("bias", "relu6"),
    )  # fmt: skip


def depthwise(channels: int, size: int) -> Workload:
    return Workload(
        op="depthwise", ic=channels, oc=channels, groups=channels, ih=size, iw=size, kh=3, kw=3,
        pads=(1, 1, 1, 1), in_block=4, out_block=4, epilogue=("bias", "relu6"),
    )  # fmt: skip


def formed(w: Workload, t: Target, layout: str, dtype: str = "float32") -> Workload:
    i, o = (choose_block(c, t, layout, dtype) for c in (w.ic, w.oc))
    return msgspec.structs.replace(
        w, dtype=dtype, in_block=i, out_block=o, in_run=vectors_of(i, t, dtype),
        out_run=vectors_of(o, t, dtype),
    )  # fmt: skip


def hot(w: Workload, t: Target, **knobs: object) -> Loop:
    default = TEMPLATES[w.op].default(w, t, t.cores)
    func = kernel(w, t, w.op, Config({**default, **knobs}))
    library = machine_code(func, t)
    return hot_loop(library.inspect_source("s").splitlines())


@pytest.mark.parametrize("name", ARM)
def test_one_call_builds_for_a_board_that_is_not_here(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    out = tmp_path / "net.tvmsep"
    # Seven threads: this host need not have them.
    counts = [target.cores, 1] if target.cores < 7 else [7]
    report = tvmsep.build(
        "mobilenet_v3_small:width=0.5,resolution=64", target=name, threads=counts, out=out
    )
    assert report.check is None and report.path == out
    with Package(out) as package:
        for variant in package.manifest.variants:
            check_library(package.read(variant.library), target)


def check_library(data: bytes, target: Target) -> None:
    elf = ELFFile(io.BytesIO(data))
    machine = {"aarch64": "EM_AARCH64", "armv7l": "EM_ARM"}[target.machine]
    assert (elf["e_machine"], elf["e_type"]) == (machine, "ET_DYN")
    dynamic = elf.get_section_by_name(".dynamic")
    assert dynamic is not None
    tags = {tag.entry.d_tag for tag in dynamic.iter_tags()}
    assert "DT_NEEDED" not in tags and not any("VERNEED" in str(t) for t in tags)
    table = elf.get_section_by_name(".dynsym")
    assert isinstance(table, SymbolTableSection)
    wanted = {s.name for s in table.iter_symbols() if s["st_shndx"] == "SHN_UNDEF" and s.name}
    allowed = RUNTIME | (UNWINDING if target.machine == "armv7l" else set())
    assert wanted <= allowed, wanted - allowed
    if target.machine == "armv7l":
        assert elf["e_flags"] & 0x05000000 == 0x05000000  # EABI 5


@pytest.mark.parametrize("name", ARM)
def test_a_target_says_where_its_facts_come_from(name: str) -> None:
    target = load_target(name)
    assert target.source and target.lanes == 4
    assert target.vector_registers == (32 if target.machine == "aarch64" else 16)
    for part in target.parts:
        core = _ARM_CORES[part.split()[1]]
        assert (core.mcpu, core.fma_latency_cycles, core.fma_per_cycle) == (
            target.mcpu, target.fma_latency_cycles, target.fma_per_cycle,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["rpi3", "rpi4", "aarch64", "armv7-neon", "x86-avx2"])
def test_half_precision_wants_a_core_that_computes_in_it(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} does not compute in it .fullfp16.*rpi5"):
        prepare("mobilenet_v1", target=name, dtype="float16")


def test_half_precision_is_refused_by_hosts_without_it() -> None:
    able = [t for t in map(load_target, target_names()) if t.half_arithmetic]
    assert [t.name for t in able] == ["graviton3", "graviton4", "jetson-orin-cpu", "rpi5"]
    assert all("asimdhp" in t.requires for t in able)


@pytest.mark.parametrize(
    ("name", "dtype", "known"),
    [
        ("rpi4", "float32", "nchw4c, nchw8c, nhwc"),
        ("rpi5", "float16", "nchw8c, nchw16c, nhwc"),
        ("x86-avx2", "float32", "nchw4c, nchw8c, nchw16c, nhwc"),
        ("x86-avx512", "float32", "nchw8c, nchw16c, nchw32c, nhwc"),
    ],
)
def test_layouts_that_a_target_has(name: str, dtype: str, known: str) -> None:
    with pytest.raises(InputError, match=f"{dtype} on target {name} give {known}$"):
        prepare("mobilenet_v1", target=name, dtype=dtype, layout="nchw")


def test_a_layout_leaves_no_vector_empty_and_weights_as_they_are() -> None:
    plans = {}
    for layout in ("nchw4c", "nchw8c", "nhwc"):
        (plan,) = prepare(
            "mobilenet_v3_small:width=0.5,resolution=64", target="rpi4", threads=2, layout=layout
        ).plans.values()
        plans[layout] = plan
        for w in (s.workload for s in plan.steps if s.workload):
            for c, block, run in ((w.ic, w.in_block, w.in_run), (w.oc, w.out_block, w.out_run)):
                vectors = -(-c // 4)
                wanted = {"nchw4c": 1, "nchw8c": 2 - vectors % 2, "nhwc": vectors}[layout]
                assert block == 0 or (block, run) == (4 * wanted, wanted)
    for plan in plans.values():
        for name, array in plans["nchw4c"].params.items():
            np.testing.assert_array_equal(array, plan.params[name])


@pytest.mark.parametrize("name", AARCH64)
def test_tiles_of_hand_written_kernels_are_in_the_space(name: str) -> None:
    target = load_target(name)
    for tile_p, w in ((4, pointwise(256, 14, 256)), (6, pointwise(256, 12, 256)),
                      (7, pointwise(256, 14, 256)), (8, pointwise(64, 56, 128))):  # fmt: skip
        space = TEMPLATES["pointwise"].space(w, target, target.cores)
        tiles = {(c.int("tile_p"), c.int("tile_oc")) for c in space.configs()}
        assert (tile_p, 2) in tiles, f"{tile_p} pixels by 8 channels"
        assert all(c.int("unroll") in (1, 2, 4) for c in space.configs())


@pytest.mark.parametrize("name", AARCH64)
@pytest.mark.parametrize("shape", [(32, 112, 64), (256, 14, 512), (1024, 7, 1024)])
def test_pointwise_multiplies_by_lanes(name: str, shape: tuple[int, int, int]) -> None:
    target = load_target(name)
    whole = {"loads": "whole"} if target.in_order else {}
    loop = hot(pointwise(*shape), target, **whole)
    assert loop.fmas >= 32 and loop.spills == 0
    by_lane = [x for x in loop.code if re.search(r"\bfmla\b.*\.s\[\d\]", x)]
    assert len(by_lane) == loop.fmas
    assert not [x for x in loop.code if re.match(r"(dup|ld1r|ldp? *s|ins)\b", x)]
    assert loop.loads <= 0.35 * loop.fmas
    scalars = hot(pointwise(*shape), target, unroll=1, **whole)
    assert scalars.loads > loop.loads * scalars.fmas / loop.fmas


@pytest.mark.parametrize("shape", [(32, 112, 64), (1024, 7, 1024)])
def test_loads_placed_by_hand_stand_between_the_last_multiply_adds(
    shape: tuple[int, int, int],
) -> None:
    loop = hot(pointwise(*shape), load_target("rpi3"))
    names = [x.split()[0] for x in loop.code]
    halves = [i for i, x in enumerate(loop.code) if x.startswith("ldr d")]
    assert loop.spills == 0 and len(halves) == names.count("mov") >= 15
    assert not [x for x in loop.code if x.startswith(("ldr q", "ldp", "ldr s"))]
    assert names[: halves[0]].count("fmla") == loop.fmas - len(halves) + 2
    assert all("fmla" in names[a:b] for a, b in zip(halves[:-2], halves[1:], strict=False))


@pytest.mark.parametrize("layout", ["nchw8c", "nhwc"])
def test_layouts_change_addresses_alone(layout: str) -> None:
    target = load_target("rpi4")
    for w in (pointwise(256, 14, 512), depthwise(128, 56)):
        blocked, other = hot(w, target), hot(formed(w, target, layout), target)
        assert (other.fmas, other.spills) == (blocked.fmas, 0)
        assert other.loads <= 1.15 * blocked.loads


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("layout", ["", "nhwc"])
def test_half_precision_multiplies_eight_lanes(name: str, layout: str) -> None:
    target = load_target(name)
    loop = hot(formed(pointwise(256, 14, 512), target, layout, "float16"), target)
    by_lane = [x for x in loop.code if re.search(r"\bfmla\b.*\.8h,.*\.h\[\d\]", x)]
    assert len(by_lane) == loop.fmas >= 64 and loop.spills == 0
    assert loop.loads <= 0.3 * loop.fmas
    loop = hot(formed(depthwise(128, 56), target, layout, "float16"), target)
    assert loop.spills == 0
    # The bias of a vector, once a tile.
    assert [x.split()[0] for x in loop.code if x.startswith("fcvt")] in ([], ["fcvtn", "fcvtn2"])
    assert all(".8h" in x for x in loop.code if x.startswith("fmla"))


@pytest.mark.parametrize("name", AARCH64)
@pytest.mark.parametrize("shape", [(128, 56), (512, 14)])
def test_depthwise_loads_each_pixel_once(name: str, shape: tuple[int, int]) -> None:
    target = load_target(name)
    w = depthwise(*shape)
    default = TEMPLATES["depthwise"].default(w, target, target.cores)
    loop = hot(w, target)
    columns, rows = default.int("tile_w"), default.int("tile_h")
    ideal = (columns + 2) * (rows + 2) + 9
    assert loop.fmas >= 9 * columns * rows and loop.spills == 0
    assert loop.loads <= 1.3 * ideal, (loop.loads, ideal)


def test_armv7_fuses_and_does_not_fall_back_to_scalars() -> None:
    target = load_target("armv7-neon")
    loop = hot(pointwise(256, 14, 512), target)
    assert loop.fmas and all("q" in x for x in loop.code if x.startswith("vfma"))
    assert not [x for x in loop.code if x.startswith(("vmul", "vmla"))]


@pytest.mark.parametrize("ic", [16, 96, 1024])
def test_armv7_uses_each_load_more_than_once(ic: int) -> None:
    target = load_target("armv7-neon")
    default = TEMPLATES["pointwise"].default(pointwise(ic, 14, 512), target, target.cores)
    assert default.int("tile_p") * default.int("tile_oc") >= 8


def test_a_scale_is_applied_within_a_chunk_where_loads_are_placed_by_hand() -> None:
    target = load_target("rpi3")
    w = msgspec.structs.replace(pointwise(96, 14, 64), scaled=True)
    default = TEMPLATES["pointwise"].default(w, target, target.cores)
    assert default["loads"] == "halves"
    lines = kernel(w, target, "pointwise", default).script().splitlines()
    (parallel,) = [i for i, x in enumerate(lines) if "T.parallel(" in x]
    scaled = next(i for i, x in enumerate(lines) if "scale" in x and " * " in x)
    assert scaled > parallel
