"""The cycle model of hot loops: its parts by hand, its figures for the targets' cores."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from boards_kit import run

from tvmsep.codegen.assembly import Loop, hot_loop
from tvmsep.contracts import InputError
from tvmsep.estimate.inorder import in_order_cycles
from tvmsep.estimate.mca import find_mca, loop_cycles, must_have_model
from tvmsep.profile.cycles import CycleModel
from tvmsep.targets import load_target, target_names

MODELLED = [n for n in target_names() if load_target(n).mca_cpu]
GOALS = {"rpi3": 0.75, "rpi4": 0.9, "rpi5": 0.9, "graviton3": 0.9}
"""Share of the multiply-add ports that pointwise hot loops reach at least."""


@pytest.fixture(scope="session")
def mca() -> str:
    try:
        return find_mca()
    except InputError as problem:
        pytest.skip(str(problem))


def independent(count: int) -> Loop:
    return Loop(tuple(f"fmla v{i}.4s, v30.4s, v31.s[1]" for i in range(count)))


@pytest.mark.parametrize("name", MODELLED)
def test_llvms_table_and_the_target_agree_on_multiply_adds(name: str, mca: str) -> None:
    target = load_target(name)
    cycles = loop_cycles(independent(24), target, mca)
    assert 24 / cycles == pytest.approx(target.fma_per_cycle, rel=0.05)


@pytest.mark.parametrize("name", GOALS)
def test_pointwise_keeps_the_ports_busy(name: str, mca: str) -> None:
    done = run("inspect", "mobilenet_v1", "--target", name, "--cycles", "--json")
    assert done.returncode == 0, done.stderr
    text = json.loads(done.stdout)
    assert text.pop("measured") is False
    model = msgspec.convert(text, CycleModel)
    assert model.target == name and len(model.loops) > 15
    pointwise = [x for x in model.loops if x.template == "pointwise"]
    assert len(pointwise) == 9
    for x in pointwise:
        assert x.fma_use >= GOALS[name] and x.spills == 0, x
    assert all(x.spills == 0 for x in model.loops if x.template == "depthwise")


def test_a_bundle_is_modelled_as_its_model_is(tmp_path: Path, mca: str) -> None:
    model = "mobilenet_v3_small:width=0.5,resolution=64"
    path = tmp_path / "net.tvmsep"
    built = run("build", model, "--target", "rpi4", "--threads", "2", "-o", str(path))
    assert built.returncode == 0, built.stderr
    words = ("--cycles", "--json", "--threads", "2")
    of_bundle = run("inspect", str(path), *words)
    of_model = run("inspect", model, "--target", "rpi4", *words)
    assert of_bundle.returncode == of_model.returncode == 0, of_bundle.stderr + of_model.stderr
    assert json.loads(of_bundle.stdout)["loops"] == json.loads(of_model.stdout)["loops"]
    table = run("inspect", str(path), "--cycles")
    assert "modelled, not measured" in table.stdout and "of FMA ports" in table.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("mobilenet_v1", "--cycles", "--target", "x86-zen4"), "x86-zen4 has no cycle model"),
        (("mobilenet_v1", "--cycles", "--roofline"), "give one of them"),
        (("no.tvmsep",), "is a bundle: inspect a model, or give --cycles"),
        (("no.tvmsep", "--cycles"), "no.tvmsep"),
    ],
)
def test_mistakes_are_named(words: tuple[str, ...], says: str) -> None:
    done = run("inspect", *words)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_a_gpu_has_another_table() -> None:
    with pytest.raises(InputError, match="inspect --resources"):
        must_have_model(load_target("jetson-orin"))


def test_without_the_analyser_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="needs llvm-mca 22 or newer: install it"):
        find_mca()
    old = tmp_path / "llvm-mca"
    old.write_text("#!/bin/sh\necho 'Debian LLVM version 14.0.6'\n".replace("/bin/sh", _shell()))
    old.chmod(0o755)
    with pytest.raises(InputError, match="is older"):
        find_mca()


def _shell() -> str:
    return shutil.which("sh", path="/bin:/usr/bin") or "/bin/sh"


def test_a_scoreboard_by_hand() -> None:
    sixteen = independent(16).code
    assert in_order_cycles(sixteen, [10] * 16, 4) == 16
    one = independent(1).code
    assert in_order_cycles(one, [10], 4) == 4
    # 128 bits take two cycles, and no multiply-add meanwhile; up to 64 take one.
    loads = [f"ldr q{20 + i}, [x0, #{16 * i}]" for i in range(4)]
    assert in_order_cycles(loads, [3] * 4, 4) == 8
    assert in_order_cycles(["ldp q0, q1, [x0]"], [3], 4) == 4
    assert in_order_cycles(["ld1 { v0.4s, v1.4s }, [x0]"], [3], 4) == 4
    mixed = [x for pair in zip(sixteen[:4], loads, strict=True) for x in pair]
    assert in_order_cycles(mixed, [10, 3] * 4, 4) == 12
    halves = [x.replace("q", "d") for x in mixed]
    assert in_order_cycles(halves, [10, 3] * 4, 4) == 8
    # Integer registers are loaded beside multiply-adds, and inserted beside vector loads only.
    integers = [x.replace("q", "x") for x in mixed]
    assert in_order_cycles(integers, [10, 3] * 4, 4) == 4
    insert = [f"mov v{10 + i}.d[1], x9" for i in range(4)]
    beside_loads = [x for pair in zip(halves[1::2], insert, strict=True) for x in pair]
    assert in_order_cycles(beside_loads, [3] * 8, 4) == 4
    beside_adds = [x for pair in zip(sixteen[:4], insert, strict=True) for x in pair]
    assert in_order_cycles(beside_adds, [3] * 8, 4) == 8
    # An insertion waits for the half that is there, an adder for a load, a load for its pointer.
    assert in_order_cycles(["ldr d1, [x0]", "mov v1.d[1], x9"], [3, 1], 4) == 4
    assert in_order_cycles(["ldr q1, [x0]", "fmla v0.4s, v1.4s, v2.s[0]"], [3, 10], 4) == 5
    chain = ["ldr x0, [x0]"]
    assert in_order_cycles(chain, [3], 4) == 3
    assert in_order_cycles(["add x0, x0, #1", "add x1, x1, #1"], [1, 1], 4) == 1
    # `bit` writes what it reads, and is no branch.
    assert in_order_cycles(["bit v0.16b, v1.16b, v2.16b"], [4], 4) == 4


def test_loads_and_spills_are_counted_by_register() -> None:
    loop = Loop((
        ".LBB0_1:", "ldp q0, q1, [x0, #16]", "ldr q2, [sp, #32]", "stp q3, q4, [sp]",
        "ld1r { v5.4s }, [x1]", "ld1 { v6.4s, v7.4s }, [x1]", "fmla v8.4s, v0.4s, v1.s[3]",
        "add x0, sp, #16", "b.ne .LBB0_1",
    ))  # fmt: skip
    assert (loop.fmas, loop.loads, loop.spills) == (1, 6, 2)
    old = Loop(("vld1.32 {d16, d17}, [r0:128]!", "vldr s0, [r1]", "vfma.f32 q0, q1, q2"))
    assert (old.fmas, old.loads, old.spills) == (1, 2, 0)
    assert hot_loop([]).code == []
