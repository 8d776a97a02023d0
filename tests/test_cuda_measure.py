"""Measuring on a CUDA device: what works, every way in which a device can fail, cross-building.

The device is emulated: TVM's own runtime for CUDA runs on stand-ins for NVIDIA's libraries. Times
of it are looked at for their presence, never for their size.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cuda_boards
import pytest

import tvmsep
from tvmsep.api.comparing import compare
from tvmsep.boards.doctor import Finding, examine_board
from tvmsep.boards.lookup import Reached
from tvmsep.contracts import BoardError, Config, LogError, Target, Task, Trial, Workload
from tvmsep.logs import LogFile, read_log
from tvmsep.measure import Built, Failed, Farm, Measured, builder
from tvmsep.measure.device import Device, fault, misfit
from tvmsep.measure.network import columns
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import load_target

if sys.platform != "linux":
    pytest.skip("TVM has CUDA, and its emulator runs, on Linux only", allow_module_level=True)

W = Workload(
    op="depthwise", ic=8, oc=8, groups=8, ih=6, iw=6, kh=3, kw=3, pads=(1, 1, 1, 1), in_block=4,
    out_block=4, epilogue=("bias", "relu"),
)  # fmt: skip
SHAPES = {"x": W.in_shape, "w": (2, 3, 3, 4), "bias": (2, 4), "out": W.out_shape}


@pytest.fixture(scope="module", autouse=True)
def device() -> Iterator[None]:
    with cuda_boards.emulated():
        yield


@pytest.fixture(scope="module")
def target() -> Target:
    return cuda_boards.target()


@pytest.fixture(scope="module")
def task(target: Target) -> Task:
    return Task(workload=W, target=target.name, threads=1, template="cuda_depthwise@1")


@pytest.fixture(scope="module")
def farm(target: Target) -> Iterator[Farm]:
    with Farm(target, builders=1, run_timeout_s=5.0) as made:
        yield made


@pytest.fixture(scope="module")
def good(farm: Farm, task: Task, target: Target) -> Built:
    (built,) = farm.build([(task, TEMPLATES["cuda_depthwise"].default(W, target, 1))])
    assert isinstance(built, Built), built
    return built


@pytest.fixture
def candidate(target: Target, task: Task, tmp_path: Path) -> Callable[..., Built]:
    """Makes a library of a kernel's body for thread `t` of one block; its tensors are given."""

    def make(body: str, threads: int = 32) -> Built:
        import tvm

        params = ", ".join(f'{n}: T.Buffer({s}, "float32")' for n, s in SHAPES.items())
        lines = [
            "@T.prim_func(s_tir=True)",
            f"def main({params}):",
            '    T.func_attr({"tirx.noalias": True})',
            '    for b in T.thread_binding(1, thread="blockIdx.x"):',
            f'        for t in T.thread_binding({threads}, thread="threadIdx.x"):',
            textwrap.indent(textwrap.dedent(body), " " * 12),
        ]
        func = tvm.script.from_source("\n".join(lines) + "\n")
        return builder.link_candidate(func, task, target, tmp_path)

    return make


def run(farm: Farm, task: Task, built: Built) -> Measured | Failed:
    (outcome,) = farm.run([(task, Config(), built)])
    return outcome


# What works


def test_a_candidate_is_checked_and_timed(farm: Farm, task: Task, good: Built) -> None:
    (outcome,) = farm.run([(task, Config(), good)], repeats=5)
    assert isinstance(outcome, Measured), outcome
    assert len(outcome.times_s) == 5 and min(outcome.times_s) > 0
    assert outcome.error < 1e-5
    assert farm.board.cpu == f"emulated CUDA device ({cuda_boards.ARCH})"


def test_limits_of_the_device_are_measured(farm: Farm) -> None:
    assert farm.peak_flops_per_core() > 0
    levels = {b.level.name: b.bytes_per_s for b in farm.bandwidths(1)}
    assert [*levels] == ["L2", "memory"] and min(levels.values()) > 0


# What fails

FAR = 1 << 26
FAULTS = {
    "nothing": ("if t > 40:\n    out[0, 0, t, 0] = 1.0", 32, "wrong_output", "never written"),
    "zeros": (
        "for i, j in T.grid(2, 36):\n    if t < 4:\n        out[0, i, j, t] = 0.0",
        32, "wrong_output", "relative error 1",
    ),
    "threads": ("out[0, 0, t % 36, 0] = 1.0", 2048, "launch_error", "CUDALaunch"),
    "beyond": (f"out[0, 0, {FAR} + t, 0] = x[0, 0, {FAR} + t, 0]", 32, "illegal_address", "memory"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "threads", "failure", "words"), FAULTS.values(), ids=FAULTS)
def test_faults_are_typed_and_the_next_candidate_is_sound(
    farm: Farm, task: Task, good: Built, candidate: Callable[..., Built],
    body: str, threads: int, failure: str, words: str,
) -> None:  # fmt: skip
    outcome = run(farm, task, candidate(body, threads))
    assert isinstance(outcome, Failed) and outcome.failure == failure, outcome
    assert words in outcome.detail
    assert isinstance(run(farm, task, good), Measured)


@pytest.mark.parametrize(
    ("faults", "failure"),
    [
        ("memory:100000", "out_of_memory"),
        ("launch:*", "launch_error"),
        ("address:*", "illegal_address"),
        ("failed:*", "launch_error"),
        ("hang:*", "timeout"),
    ],
)
def test_faults_of_the_device_are_typed(
    target: Target, task: Task, good: Built, faults: str, failure: str
) -> None:
    with cuda_boards.emulated(faults), Farm(target, builders=0, run_timeout_s=2.0) as farm:
        outcome = run(farm, task, good)
    assert isinstance(outcome, Failed) and outcome.failure == failure, outcome
    assert outcome.board == "local"


def test_cudas_words_are_told_apart() -> None:
    lost = "CUDALaunch Error: CUDA_ERROR_ILLEGAL_ADDRESS\n grid=(1,1,1),  block=(32,1,1)"
    assert fault(lost) == "illegal_address"
    assert fault("CUDA Runtime Error: an illegal memory access was encountered") == (
        "illegal_address"
    )
    assert fault("CUDA: out of memory") == "out_of_memory"
    assert fault("CUDALaunch Error: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES") == "launch_error"
    assert fault("unspecified launch failure") == "launch_error"
    assert fault("module has no function tvmsep_kernel") is None


def test_a_board_without_the_targets_device_is_refused(target: Target) -> None:
    assert target.gpu is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVMSEP_EMULATOR_ARCH", "sm_90")
        with Farm(target, builders=0) as farm, pytest.raises(BoardError, match="capability 9.0"):
            farm.connect()
        patch.setenv("TVMSEP_CUDA_COMPILER", "nvrtc")
        patch.setenv("LD_LIBRARY_PATH", "")
        with Farm(target, builders=0) as farm, pytest.raises(BoardError, match="580"):
            farm.connect()
    orin = Device(name="Orin", capability=87, runtime=13000, sms=16, memory_bytes=1, free_bytes=1)
    assert misfit(orin, target.gpu, target.name) and not orin.emulated


# In the network, over RPC


def test_launches_belong_to_steps() -> None:
    assert columns([7, 1, 8, 9, 2, 5], [-1, 1, -1, 2]) == [0, 1, 2, 2, 3, 3]
    assert columns([1, 1], [1, 1]) == [0, 1]
    assert columns([6, 1], [1]) == [0, 0]
    with pytest.raises(RuntimeError, match="order"):
        columns([2, 1], [1, 2])


def test_tunes_over_rpc_resumes_profiles_and_compares(target: Target, tmp_path: Path) -> None:
    from tvmsep.profile.measure import profile_bundle

    model, out, log = cuda_boards.small(tmp_path / "m.onnx"), tmp_path / "m.tvmsep", tmp_path / "l"
    with cuda_boards.board() as (tracker, server):
        how: dict[str, Any] = {
            "target": target, "tracker": tracker.place, "key": "board", "builders": 1, "log": log
        }  # fmt: skip
        first = tvmsep.tune(model, out=out, trials=12, **how)
        trials = read_log(log)
        assert {t.phase for t in trials} == {"search", "network"}
        assert all(t.emulated and t.board == server.name for t in trials)
        measured = [t for t in trials if t.failure is None]
        assert measured and all(min(t.times_s) > 0 for t in measured)
        (result,) = first.results
        assert any("emulated" in note for note in result.state.notes)
        assert result.state.whole_s[1] > 0 and result.state.kernels_s[1] > 0
        again = tvmsep.tune(model, out=out, trials=4, budget_s=6.0, **how)
        known = {(t.task_key, t.as_config()) for t in trials if t.phase == "search"}
        later = [t for t in read_log(log)[len(trials) :] if t.phase == "search"]
        assert len(later) <= 4
        assert not {(t.task_key, t.as_config()) for t in later} & known
        assert again.results[0].state.trials <= 4
        found = profile_bundle(out, tracker=tracker.place, key="board")
        pair = compare(
            [f"one={out}", f"other={out}"], target=target.name, rounds=2,
            tracker=tracker.place, key="board",
        )  # fmt: skip
    assert any("emulated" in warning for warning in pair.warnings), pair.warnings
    assert found.gap.events and found.cpu.startswith("emulated")
    ours = [s for s in found.steps if s.seconds > 0]
    assert len(ours) == len(found.steps) and found.layers_s == pytest.approx(
        sum(s.seconds for s in found.steps)
    )


def test_logs_keep_emulated_times_apart(tmp_path: Path) -> None:
    base: dict[str, Any] = {
        "workload": W, "template": "cuda_depthwise", "template_version": 1, "config": {},
        "times_s": (1e-3,), "target": "t4", "threads": 1, "board": "b", "tvm": "0", "tvmsep": "0",
        "date": "2026-01-01", "seed": 0,
    }  # fmt: skip
    with LogFile(tmp_path / "l", target="t4") as log:
        log.append(Trial(cpu="Tesla T4 (sm_75)", **base))
        with pytest.raises(LogError, match="emulated"):
            log.append(Trial(cpu="emulated CUDA device (sm_75)", **base))


def test_doctor_examines_the_device(target: Target) -> None:
    def examine(which: Target) -> dict[str, Finding]:
        at = Reached(*server.place, "board", False)
        return {f.check: f for f in examine_board(at, which)}

    with cuda_boards.board() as (_, server):
        found = examine(target)
        assert found["GPU"].level == "warn" and "emulated" in found["GPU"].says
        assert found["kernel"].says.endswith("on the GPU")
    with cuda_boards.board() as (_, server):
        found = examine(load_target("h100"))
        assert found["GPU"].level == "bad" and "sm_90" in found["GPU"].says
        assert "kernel" not in found
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_LIBRARY_PATH", "")
        with cuda_boards.board() as (_, server):
            found = examine(target)
            assert found["GPU"].level == "bad" and "580" in found["GPU"].advice


# For a board of another architecture


def test_a_jetsons_candidate_is_built_here(tmp_path: Path) -> None:
    from elftools.elf.elffile import ELFFile

    from tvmsep.codegen.cubin import kernel_resources
    from tvmsep.codegen.imports import cuda_modules, imports_of

    orin = load_target("jetson-orin")
    assert orin.gpu is not None
    task = Task(workload=W, target=orin.name, threads=1, template="cuda_depthwise@1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVMSEP_CUDA_COMPILER", "nvrtc")
        config = TEMPLATES["cuda_depthwise"].default(W, orin, 1)
        built = builder.build_candidate(task, orin, config, tmp_path)
    assert isinstance(built, Built), built
    library = built.so.read_bytes()
    with built.so.open("rb") as file:
        elf = ELFFile(file)
        assert elf.get_machine_arch() == "AArch64"
        names = {s.name for s in elf.get_section_by_name(".dynsym").iter_symbols()}
    assert {"__tvm_ffi_tvmsep_kernel", "__tvm_ffi_tvmsep_time"} <= names
    packed = imports_of(library)
    assert packed is not None
    (module,) = cuda_modules(packed)
    assert module.compiled and module.code[:4] == b"\x7fELF"
    (kernel,) = kernel_resources(module.code, orin.gpu)
    assert kernel.name.startswith("tvmsep_kernel") and kernel.spill_bytes == 0
