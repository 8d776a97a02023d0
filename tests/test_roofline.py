"""The bound of a layer, from made-up limits; and the verb, which measures this host."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import msgspec
import pytest
from graph_kit import Net, defaults, plan_of

from tvmsep.compiler import emit, parts
from tvmsep.frontends import load_model
from tvmsep.measure import Farm
from tvmsep.measure.bandwidth import WEIGHTS, Bandwidth, Level, levels
from tvmsep.profile.roofline import roof, roofline
from tvmsep.targets import load_target

PEAK = 100e9
LIMITS = [
    Bandwidth(Level("L2", 1000, 500), 50e9),
    Bandwidth(Level("L3", 10_000, 5000), 20e9),
    Bandwidth(Level("memory", math.inf, 40_000), 10e9),
]


@pytest.mark.parametrize(
    ("flops", "moved", "bound", "level", "seconds"),
    [
        (10_000, 1000, "FMA peak", "L2", 100e-9),
        (1000, 1000, "L2", "L2", 20e-9),
        (1000, 1001, "L3", "L3", 1001 / 20e9),
        (1000, 100_000, "memory", "memory", 10e-6),
        (2_000_000, 100_000, "FMA peak", "memory", 20e-6),
        (0, 400, "L2", "L2", 8e-9),
    ],
)
def test_the_higher_limit_binds(
    flops: int, moved: int, bound: str, level: str, seconds: float
) -> None:
    limit = roof(flops, moved, moved / 2, PEAK, LIMITS)
    assert (limit.bound, limit.level) == (bound, level)
    assert limit.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("flops", "weights", "bound", "seconds"),
    [
        (1000, 800, WEIGHTS, 800 / 5e9),
        (1000, 0, "L2", 20e-9),
        (1000, 99, "L2", 20e-9),
        (20_000, 800, "FMA peak", 200e-9),
    ],
)
def test_weights_take_what_the_network_leaves_of_the_caches(
    flops: int, weights: int, bound: str, seconds: float
) -> None:
    limits = [*LIMITS, Bandwidth(Level(WEIGHTS, 0, 5000), 5e9)]
    limit = roof(flops, 1000, weights, PEAK, limits)
    assert (limit.bound, limit.level) == (bound, "L2")
    assert limit.seconds == pytest.approx(seconds)


def test_rows_of_a_network() -> None:
    """A kernel that runs twice, and an operator that no template takes."""
    net = Net()
    w = net.noise(16, 16, 1, 1)
    x = net.input(1, 16, 8, 8)
    for _ in range(2):
        x = net.op("Relu", net.op("Conv", x, w))
    target = load_target("x86-avx2")
    plan = plan_of(load_model(net.proto(net.op("Softmax", x, axis=1))), target, 1)
    found = parts(emit(plan, target, defaults(plan, target)))
    steps_s = [1e-6] * len(found)
    twice = [i for i, p in enumerate(found) if p.workload and p.workload.op == "pointwise"]
    steps_s[twice[0]], steps_s[twice[1]] = 0.4e-6, 0.5e-6
    rows = roofline(found, steps_s, PEAK, LIMITS)
    assert sum(r.time_share for r in rows) == pytest.approx(1)
    assert sum(r.runs * r.seconds for r in rows) == pytest.approx(sum(steps_s))
    (conv,) = (r for r in rows if r.runs == 2)
    flops, moved = 2 * 64 * 16 * 16, 4 * (64 * 16 + 16 * 16 + 64 * 16)
    assert (conv.flops, conv.bytes) == (flops, moved)
    assert conv.seconds == pytest.approx(0.45e-6)
    assert conv.flops_per_s == pytest.approx(flops / 0.45e-6)
    assert conv.peak_share == pytest.approx(flops / 0.45e-6 / PEAK)
    assert (conv.bound, conv.level) == ("L3", "L3")
    assert conv.share == pytest.approx(moved / 20e9 / 0.45e-6) and not conv.low
    (softmax,) = (r for r in rows if r.template == "")
    assert (softmax.flops, softmax.bytes, softmax.level) == (0, 2 * 4 * 64 * 16, "L3")
    assert softmax.share == pytest.approx(8192 / 20e9 / 1e-6) and softmax.low


def test_levels_fit_what_they_measure() -> None:
    target = msgspec.structs.replace(
        load_target("x86-zen4"), l2_bytes=1 << 20, l3_bytes=32 << 20, cores=8
    )
    l2, l3, memory = levels(target, 4)
    assert 4 * l2.buffer_bytes == l2.holds_bytes / 2
    assert l2.holds_bytes < 4 * l3.buffer_bytes < l3.holds_bytes == 32 << 20
    assert 4 * memory.buffer_bytes == 4 * (32 << 20)
    names = [level.name for level in levels(msgspec.structs.replace(target, l3_bytes=0), 4)]
    assert names == ["L2", "memory"]
    weights = levels(target, 4, 10 << 20)[-1]
    assert (weights.name, weights.holds_bytes) == (WEIGHTS, 0)
    assert 0.99 * (10 << 20) < 4 * weights.buffer_bytes <= 10 << 20
    assert levels(target, 4, 100)[-1].name == "memory"  # no line for each thread


def test_weights_are_really_read() -> None:
    """More of them than any cache holds arrive as memory does, not as a page of zeros."""
    target = load_target("local")
    with Farm(target, builders=1) as farm:
        size = min(4 * max(target.l3_bytes, target.l2_bytes), 512 << 20)
        found = {b.level.name: b.bytes_per_s for b in farm.bandwidths(1, size)}
    assert found[WEIGHTS] < min(3 * found["memory"], found["L2"])


def inspect(*words: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "tvmsep.cli",
        "inspect",
        "mobilenet_v1:width=0.25,resolution=32",
    ]
    return subprocess.run([*command, *words], capture_output=True, text=True, timeout=240)


def test_the_verb_measures_every_layer() -> None:
    done = inspect("--roofline", "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found["bandwidths"])[-2:] == ["memory", WEIGHTS]
    assert found["holds_bytes"][WEIGHTS] == 0
    assert all(rate > 0 for rate in found["bandwidths"].values())
    assert found["peak_flops"] > 0 and found["network_s"] > 0
    rows = found["layers"]
    assert sum(r["runs"] for r in rows if r["layer"].startswith("depthwise")) == 13
    assert sum(r["runs"] for r in rows if r["layer"].startswith(("pointwise", "dense"))) == 14
    assert found["layers_s"] == pytest.approx(sum(r["runs"] * r["seconds"] for r in rows))
    for r in rows:
        assert r["seconds"] > 0 and r["share"] == pytest.approx(r["bound_s"] / r["seconds"])
        assert r["low"] == (r["share"] < found["low_under"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--roofline", "--savings"], "give one of them"),
        (["--log", "net.jsonl"], "--roofline"),
        (["--roofline", "--log", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], says: str) -> None:
    done = inspect(*words)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
