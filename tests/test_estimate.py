"""Modelled times: counts by hand, known-bad GPU configs last, boards that model, fused traffic."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from boards_kit import run
from graph_kit import Net

from tvmsep import api
from tvmsep.contracts import Config, InputError, Target, Task, Workload
from tvmsep.estimate import modelled
from tvmsep.estimate.access import bank_turns
from tvmsep.estimate.cpu import padded_macs
from tvmsep.estimate.gpu import kernel_seconds
from tvmsep.estimate.lowered import Kernel, read_kernel
from tvmsep.estimate.pair import SAVED, model_pair
from tvmsep.graph import fusible
from tvmsep.logs import best_trials, chosen_by, read_log
from tvmsep.measure import Built, Failed, ModelBoard
from tvmsep.schedules import TEMPLATES, template_for
from tvmsep.targets import load_target
from tvmsep.tuner.choice import choose_plan

pytestmark_mca = pytest.mark.skipif(
    not any(map(shutil.which, ("llvm-mca-22", "llvm-mca"))), reason="needs llvm-mca"
)


@pytest.fixture(scope="module")
def orin() -> Target:
    return load_target("jetson-orin")


def pointwise(side: int, ic: int, oc: int, **more: Any) -> Workload:
    return Workload(
        op="pointwise", ic=ic, ih=side, iw=side, oc=oc, in_block=4, out_block=4,
        epilogue=("bias", "relu6"), **more,
    )  # fmt: skip


def depthwise(side: int, channels: int) -> Workload:
    return Workload(
        op="depthwise", ic=channels, ih=side, iw=side, oc=channels, kh=3, kw=3, pads=(1, 1, 1, 1),
        groups=channels, in_block=4, out_block=4, epilogue=("bias", "relu6"),
    )  # fmt: skip


def by_hand(w: Workload, target: Target, **how: Any) -> Kernel:
    """A pointwise kernel without shared memory: `threads` a block, `blocks` or all it takes.

    A thread computes `pixels` vectors of four channels, `strided` ones of them far apart.
    """
    from tvm import s_tir

    threads, pixels, blocks = how.get("threads", 128), how.get("pixels", 1), how.get("blocks")
    sch = s_tir.Schedule(TEMPLATES["pointwise"].compute(w, target, Config()))
    acc, out = sch.get_sblock("acc"), sch.get_sblock("out")
    _, ob, p, o = sch.get_loops(out)
    po, pi = sch.split(p, [None, pixels])
    if blocks is None:
        flat = sch.fuse(ob, po)
        block, thread = sch.split(flat, [None, threads])
    else:
        flat = sch.fuse(ob, po)
        block, thread, rest = sch.split(flat, [blocks, threads, None])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    sch.vectorize(o)
    sch.compute_at(acc, pi if blocks is None else sch.get_loops(out)[-2])
    sch.set_scope(acc, 0, "local")
    sch.unroll(pi)
    return read_kernel(sch.mod["main"], target)


def test_counts_of_a_kernel_are_those_of_its_loops(orin: Target) -> None:
    w = pointwise(16, 64, 32)
    k = by_hand(w, orin, threads=128)
    assert (k.blocks, k.threads, k.shared) == (8 * 256 // 128, 128, 0)
    # Four channels a thread, each of 64 products, a bias and two clips.
    assert k.fmas == 4 * 64 + 4 * 3
    reads = {a.buffer: a for a in k.accesses if a.scope == "global" and not a.store}
    assert k.sizes == {"x": 4 * 64 * 256, "w": 4 * 64 * 32, "bias": 128, "out": 4 * 32 * 256}
    # A block of 128 neighbouring pixels of one channel block: all 64 channels of them, once each.
    assert reads["x"].footprint == 4 * 64 * 128
    assert reads["w"].footprint == 4 * 64 * 4
    stores = [a for a in k.accesses if a.store and a.scope == "global"]
    assert [a.sectors for a in stores] == [4 * 512 / 32]  # four warps of 512 bytes in a run


@pytest.mark.parametrize(
    ("words", "width", "turns"),
    [
        (range(32), 4, 1), ([0] * 32, 4, 1), (range(0, 64, 2), 4, 2), (range(0, 1024, 32), 4, 32),
        (range(0, 128, 4), 16, 4), (range(0, 1056, 33), 4, 1),
    ],
)  # fmt: skip
def test_bank_conflicts(words: Any, width: int, turns: int) -> None:
    at = np.asarray(list(words), np.int64) * 4
    assert bank_turns(at, width) == turns


def test_known_bad_configs_come_last(orin: Target) -> None:
    """A thread a block, one block for the image, no reuse: each far behind any default."""
    assert orin.gpu is not None
    for w in (pointwise(28, 128, 128), pointwise(56, 64, 64)):
        template = template_for(w, orin)
        assert template is not None
        good = modelled(w, orin, template.name, template.default(w, orin, 1), 1).seconds
        lone = kernel_seconds(by_hand(w, orin, threads=1), orin.gpu).seconds
        one = kernel_seconds(by_hand(w, orin, threads=128, blocks=1), orin.gpu).seconds
        none = kernel_seconds(by_hand(w, orin, threads=128), orin.gpu).seconds
        assert lone > 4 * good and one > 8 * good and none > 1.3 * good, (w.label, good)
        assert min(lone, one) > none


def test_a_depthwise_default_stands_in_the_better_half(orin: Target) -> None:
    w = depthwise(14, 512)
    default, others = sample(orin, w)
    assert sum(s >= default for s in others) > len(others) / 2
    assert orin.gpu is not None
    assert min(others) > max(w.bytes_moved / orin.gpu.bandwidth, w.flops / orin.gpu.fp32_flops)


@pytest.mark.parametrize(
    "w", [pointwise(28, 256, 256), pointwise(7, 160, 960, dtype="float16")], ids=lambda w: w.label
)
def test_the_default_of_a_product_leads_a_sample(orin: Target, w: Workload) -> None:
    """Counted from the tiling or from the lowered kernel, the limits are the same."""
    default, others = sample(orin, w)
    assert default <= 1.03 * min(others), (default, min(others))


def sample(t: Target, w: Workload) -> tuple[float, list[float]]:
    """Modelled seconds of the default and of a dozen others from the whole space."""
    template = template_for(w, t)
    assert template is not None
    configs = [
        c for c in template.space(w, t, 1).configs()
        if c.get("cores", "fp32") == "fp32" and c.get("pipeline") != "async"
    ]  # fmt: skip
    chosen = [template.default(w, t, 1), *configs[:: len(configs) // 12]]
    times = [modelled(w, t, template.name, c, 1).seconds for c in chosen]
    return times[0], times[1:]


def test_tail_and_occupancy(orin: Target) -> None:
    """One block more than there is room for at once costs a round; fewer registers hide more."""
    assert orin.gpu is not None
    k = by_hand(pointwise(16, 64, 32), orin)
    k.blocks = orin.gpu.sms * 8
    full = kernel_seconds(k, orin.gpu, registers=32)
    k.blocks += 1
    tail = kernel_seconds(k, orin.gpu, registers=32)
    assert full.busy == 1 and tail.busy < 0.9
    assert tail.limits_s["math"] > 1.1 * full.limits_s["math"]
    crowded = kernel_seconds(k, orin.gpu, registers=255)
    assert crowded.resident < full.resident and crowded.seconds >= tail.seconds


# Boards


def test_the_board_models_a_gpu(orin: Target) -> None:
    w = depthwise(14, 32)
    template = template_for(w, orin)
    assert template is not None
    task = Task(workload=w, target=orin.name, threads=1, template=template.name)
    configs = template.space(w, orin, 1).configs()[:3]
    with ModelBoard(orin, workers=1) as board:
        jobs = [(task, c) for c in configs]
        built = board.build([*jobs, (task, Config(nonsense=1))])
        assert all(isinstance(b, Built) for b in built[:3])
        assert isinstance(built[3], Failed) and built[3].failure == "compile_error"
        answers = list(board.run([(t, c, b) for (t, c), b in zip(jobs, built, strict=False)]))  # type: ignore[misc]
    want = [modelled(w, orin, template.name, c, 1).seconds for c in configs]
    assert [a.times_s[0] for a in answers] == pytest.approx(want)  # type: ignore[union-attr]
    assert board.connect().cpu.startswith("model of sm_87")


MODEL = "mobilenet_v1:width=0.25,resolution=32"


@pytestmark_mca
def test_modelled_logs_are_no_measurements(tmp_path: Path) -> None:
    log, out = tmp_path / "net.model.jsonl", tmp_path / "net.tvmsep"
    words = ("--target", "rpi4", "--threads", "1")
    done = run("tune", MODEL, *words, "--board", "model", "--trials", "12", "--log", str(log))
    assert done.returncode == 0, done.stderr
    assert "modelled, not measured (board model)" in done.stdout
    assert "times are modelled (model of cortex-a72 by LLVM" in done.stderr
    trials = read_log(log)
    assert sum(t.phase == "search" for t in trials) == 12
    assert all(t.modelled and not t.measured for t in trials)
    assert all(t.cpu.startswith("model of ") and t.times_s for t in trials)
    assert best_trials(trials) == {} and chosen_by(trials)

    report = run("build", MODEL, *words, "--log", str(log), "-o", str(out))
    assert report.returncode == 0, report.stderr
    assert "that a model chose: modelled, not measured" in report.stdout
    as_json = run("build", MODEL, *words, "--log", str(out), "-o", str(out), "--json")
    assert as_json.returncode == 2  # a bundle is not written over the log it is built from
    again = run(
        "build", MODEL, *words, "--log", str(out), "-o", str(tmp_path / "b.tvmsep"), "--json"
    )
    text = json.loads(again.stdout)
    assert text["modelled"] and text["variants"][0]["estimate_s"] is None

    mixed = tmp_path / "mixed.jsonl"
    trial = msgspec.structs.replace(trials[0], board="local", cpu="Cortex-A72")
    mixed.write_bytes(msgspec.json.encode(trial) + b"\n")
    refused = run(
        "build", MODEL, *words, "--log", str(log), "--log", str(mixed), "-o", str(tmp_path / "c")
    )
    assert refused.returncode == 2 and "measured times and some modelled" in refused.stderr
    onto = run("tune", MODEL, *words, "--board", "model", "--trials", "1", "--log", str(mixed))
    assert onto.returncode == 2 and "holds trials of board local" in onto.stderr


@pytestmark_mca
def test_a_cores_time_is_cycles_and_imbalance() -> None:
    rpi4 = load_target("rpi4")
    w = msgspec.structs.replace(pointwise(14, 256, 256), in_block=4, out_block=4)
    config = TEMPLATES["pointwise"].default(w, rpi4, 1)
    seconds = modelled(w, rpi4, "pointwise", config, 1).seconds
    peak = 2e9 * rpi4.clock_ghz * rpi4.lanes * rpi4.fma_per_cycle
    assert 0.9 * peak < w.flops / seconds <= peak
    slow = msgspec.structs.replace(rpi4, clock_ghz=rpi4.clock_ghz / 2)
    assert modelled(w, slow, "pointwise", config, 1).seconds == pytest.approx(2 * seconds)
    untold = msgspec.structs.replace(rpi4, clock_ghz=0.0)
    in_cycles = modelled(w, untold, "pointwise", config, 1).seconds
    assert in_cycles == pytest.approx(seconds * rpi4.clock_ghz)
    starved = msgspec.structs.replace(rpi4, bandwidth=1e6)
    assert modelled(w, starved, "pointwise", config, 1).seconds == w.bytes_moved / 1e6
    shared = modelled(w, rpi4, "pointwise", TEMPLATES["pointwise"].default(w, rpi4, 4), 4).seconds
    assert seconds / 4 <= shared * 1.01 < seconds


def test_padding_channels_are_computed_too() -> None:
    w = pointwise(8, 30, 33)
    assert padded_macs(w) == 64 * 32 * 36
    assert padded_macs(depthwise(8, 6)) == 64 * 9 * 8


def test_targets_without_a_model_say_so() -> None:
    with pytest.raises(InputError, match="x86-zen4 has no cycle model"):
        ModelBoard(load_target("x86-zen4"))


# Fusion


def test_a_pair_is_fused_where_half_the_traffic_goes(orin: Target) -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input(1, 8, 28, 28), 96))
    narrow = net.conv(net.op("Relu", net.depthwise(x)), 16)  # writes little: nearly all is between
    wide = net.conv(net.op("Relu", net.depthwise(narrow)), 256)
    prepared = api.prepare(net.proto(wide), target=orin)
    (plan,) = prepared.plans.values()
    pairs = fusible(plan, orin)
    known = {o: model_pair(w, orin) for o, w in pairs.items()}
    assert [p.worth for p in known.values()] == [True, False]
    chosen, grounds = choose_plan(plan, orin, {})
    made = [s.output for s in chosen.steps if s.workload is not None and s.workload.op == "dwpw"]
    assert made == list(pairs)[:1] and not grounds


def test_what_a_pair_saves_is_what_lies_between(orin: Target) -> None:
    w = Workload.joined(
        depthwise(28, 192), msgspec.structs.replace(pointwise(28, 192, 32), epilogue=())
    )
    pair = model_pair(w, orin)
    between = 2 * 4 * 28 * 28 * 192
    assert pair.separate_bytes - pair.fused.memory_bytes == pytest.approx(between, rel=0.02)
    assert pair.saved > SAVED
    wide = Workload.joined(depthwise(7, 1024), pointwise(7, 1024, 1024))
    assert model_pair(wide, orin).saved < SAVED  # weights are most of it
