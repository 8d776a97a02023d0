"""Profiles: what a difference is made of, from made-up times; and the verb, on this host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from graph_kit import Net, defaults, plan_of

import tvmsep
from tvmsep.compiler import PROBE_RUNS, PROBES, compile_library, emit, lower, parts, stamp
from tvmsep.contracts import BundleError, InputError
from tvmsep.frontends import load_model
from tvmsep.graph import Plan
from tvmsep.profile import Profile
from tvmsep.profile.measure import gap, parse_relax, profile_bundle
from tvmsep.targets import load_target

SMALL = "mobilenet_v1:width=0.25,resolution=32,classes=10"


def network(threads: int = 1) -> Plan:
    """A kernel that runs twice, an operator without a template, an output that is a view."""
    net = Net()
    x = net.input(1, 16, 8, 8)
    w = net.noise(16, 16, 1, 1, scale=0.3)
    for _ in range(2):
        x = net.op("Relu", net.op("Conv", x, w))
    y = net.op("Softmax", x, axis=1)
    model = load_model(net.proto(y, net.op("Reshape", y, net.ints(1, -1))))
    return plan_of(model, load_target("local"), threads)


def test_the_difference_adds_up() -> None:
    cost = {"reading": 1e-6, "empty": 3e-6, "fork": 7e-6}
    found = gap(100e-6, 85e-6, 90e-6, cost, kernels=10, parallel=4)
    assert found.readings_s == pytest.approx(10e-6)
    assert found.dispatch_s == pytest.approx(6e-6)
    assert found.cache_s == pytest.approx(-6e-6)
    assert found.fork_join_s == pytest.approx(16e-6)
    assert found.kernel_dispatch_s == pytest.approx(20e-6)
    assert 100e-6 + found.dispatch_s - found.readings_s + found.cache_s == pytest.approx(90e-6)


def test_parts_of_a_parsed_text_are_those_of_the_module() -> None:
    import tvm

    target = load_target("local")
    plan = network()
    module = emit(plan, target, defaults(plan, target))
    again = tvm.script.from_source(module.script(show_meta=False))
    found = parts(again)
    assert found == parts(module)
    ours = [s.workload for s in plan.steps if s.workload is not None]
    assert [p.workload for p in found if p.workload] == ours
    configs = defaults(plan, target)
    for part in found:
        if part.workload:
            assert (part.template, part.config) == (
                configs[part.workload][0],
                configs[part.workload][1].key,
            )
    softmax = next(p for p in found if p.workload is None)
    assert softmax.bytes == 2 * 4 * 16 * 64 and softmax.template == ""


@pytest.mark.parametrize("between", [True, False])
def test_a_stamped_network_computes_the_same(between: bool, tmp_path: Path) -> None:
    import numpy as np
    import tvm
    from tvm.runtime.vm import VirtualMachine

    target, plan, runs = load_target("local"), network(), 3
    module = emit(plan, target, defaults(plan, target))
    stamped = stamp(module, target, 1, runs, between=between)
    steps = len(parts(module)) + len(PROBES) * PROBE_RUNS if between else 1
    assert stamped.shape == (1 + runs * (steps + 1), 2)
    x = np.random.default_rng(0).standard_normal((1, 16, 8, 8)).astype("float32")
    arguments = [x, *plan.params.values()]
    results = []
    for i, mod in enumerate((module, stamped.module)):
        path = tmp_path / f"{i}.so"
        path.write_bytes(compile_library(lower(mod, target), target))
        vm = VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
        tensors = [tvm.runtime.tensor(a) for a in arguments]
        stamps = tvm.runtime.tensor(np.zeros(stamped.shape, "int64"))
        answer = vm["main"](*tensors, *([stamps] if i else []))
        results.append([answer[k].numpy() for k in range(2)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    words = answer[2].numpy()
    assert words[0, 0] == steps + 1
    times = words[1 : steps + 2, 0] * 1_000_000_000 + words[1 : steps + 2, 1]
    assert (np.diff(times) >= 0).all() and times[0] > 0
    assert not words[steps + 2 :].any()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "net.tvmsep"
    tvmsep.build(SMALL, out=path, threads=[1], logs=())
    return path


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tvmsep.cli", "profile", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_the_verb_profiles_a_bundle(bundle: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    done = run(bundle, "--json", "--trace", trace)
    assert done.returncode == 0, done.stderr
    import msgspec

    found = msgspec.json.decode(done.stdout, type=Profile)
    assert found.threads == 1 and found.network_s > 0
    shares = [r.time_share for r in found.layers]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1)
    assert found.layers_s == pytest.approx(sum(r.seconds * r.runs for r in found.layers))
    assert found.layers_s == pytest.approx(sum(s.seconds for s in found.steps))
    assert sum(r.runs for r in found.layers if r.layer.startswith("depthwise")) == 13
    g = found.gap
    assert found.network_s == pytest.approx(
        found.layers_s + g.dispatch_s - g.readings_s + g.cache_s
    )
    assert g.kernels == len(found.steps) and g.parallel == 0
    events = json.loads(trace.read_text())["traceEvents"]
    layers = [e for e in events if e["ph"] == "X"]
    assert [e["name"] for e in layers] == [s.layer for s in found.steps]
    for before, after in zip(layers, layers[1:], strict=False):
        assert after["ts"] == pytest.approx(before["ts"] + before["dur"])
    assert {e["name"] for e in events if e["ph"] == "M"} == {"process_name", "thread_name"}


def test_a_bundle_of_an_earlier_tvmsep_is_to_be_built_again(bundle: Path) -> None:
    from tvmsep.bundle import Package

    with Package(bundle) as package:
        text = package.read("relax/threads1.txt").decode()
    assert any(p.workload for p in parts(parse_relax(text, bundle)))
    with pytest.raises(BundleError, match="build it again"):
        parse_relax(text.replace("tvmsep.workload", "tvmsep.unknown"), bundle)
    with pytest.raises(BundleError, match="inspect MODEL --roofline"):
        parse_relax(text[: len(text) // 2], bundle)
    with pytest.raises(BundleError, match="inspect MODEL --roofline"):
        parse_relax(text[: text.index("@R.function")].rstrip() + "\n", bundle)


def test_a_variant_that_is_not_there(bundle: Path) -> None:
    with pytest.raises(InputError, match="give --threads 1"):
        profile_bundle(bundle, 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["missing.tvmsep"], "missing.tvmsep"),
        (["{bundle}", "--trace", "{bundle}"], "it is what is read"),
        (["{bundle}", "--trace", "none/t.json"], "cannot write none/t.json"),
        (["{bundle}", "--trace", "."], "it is a folder"),
        (["{bundle}", "--board", "127.0.0.1:1"], "HOST:PORT/KEY"),
        (["{bundle}", "--board", "127.0.0.1:1/pi"], "127.0.0.1:1"),
        (["{bundle}", "--board", "here/pi"], "not an address"),
    ],
)
def test_a_mistake_is_one_line(bundle: Path, words: list[str], says: str) -> None:
    done = run(*(w.format(bundle=bundle) for w in words))
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
