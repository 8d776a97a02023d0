"""Fused depthwise and pointwise kernels: where they may stand, and when they are taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from graph_kit import Net, compile_plan, defaults, noise_for, plan_of, relative, run_library

import tvmsep
from tvmsep import api
from tvmsep.bundle import Package
from tvmsep.contracts import Target, Task, Trial, Workload
from tvmsep.frontends import Imported, load_model
from tvmsep.graph import Plan, evaluate, from_relax, fuse, fusible
from tvmsep.logs import best_trials
from tvmsep.measure import Failed, Farm
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import load_target
from tvmsep.tuner.choice import GAIN, choose_plan


@pytest.fixture(scope="module")
def local() -> Target:
    return load_target("local")


def pair(**change: Any) -> Workload:
    fields: dict[str, Any] = {
        "op": "dwpw", "ic": 32, "ih": 12, "iw": 10, "oc": 48, "kh": 3, "kw": 5, "sh": 2, "sw": 1,
        "pads": (1, 2, 1, 2), "groups": 32, "in_block": 16, "out_block": 16,
        "mid_epilogue": ("bias", "relu6"), "epilogue": ("bias", "add"),
    }  # fmt: skip
    return Workload(**{**fields, **change})


def test_a_pair_is_the_sum_of_its_parts() -> None:
    w = pair()
    first, last = w.parts
    assert (first.op, last.op) == ("depthwise", "pointwise") and Workload.joined(first, last) == w
    assert w.macs == 6 * 10 * 32 * 15 + 6 * 10 * 32 * 48
    assert w.params == 32 * 15 + 32 + 32 * 48 + 48
    assert w.bytes_moved == 4 * (32 * 12 * 10 + w.params + 2 * 48 * 6 * 10)
    assert w.label == "dwpw 3x5+relu6 s2,1 12x10 32>48+add"


def test_workloads_without_a_pair_keep_their_keys() -> None:
    w = Workload(op="depthwise", ic=16, ih=4, iw=4, oc=16, groups=16, in_block=16, out_block=16)
    assert b"mid_epilogue" not in msgspec.json.encode(w)
    assert w.key == "4220d2d00cf93999"
    again = msgspec.json.decode(msgspec.json.encode(pair()), type=Workload)
    assert again == pair() and again.key == pair().key


def test_defaults_that_are_spelt_out_change_no_key() -> None:
    _, last = pair().parts
    spelt = msgspec.structs.replace(last, pads=tuple([0] * 4), mid_epilogue=())
    assert spelt == last and spelt.key == last.key


def network() -> Imported:
    """A pair that fits, one that adds a residual, and two whose middle is needed elsewhere."""
    net = Net()
    x = net.op("Relu", net.conv(net.input(1, 3, 24, 24), 16, 3, pads=[1, 1, 1, 1]))
    a = net.conv(net.depthwise(x), 16)
    b = net.op("Add", net.conv(net.op("Relu", net.depthwise(a, 5)), 16), a)
    twice = net.op("Relu", net.depthwise(b))
    c = net.op("Add", net.conv(twice, 16), twice)
    seen = net.op("Relu", net.depthwise(c))
    d = net.conv(seen, 24)
    return load_model(net.proto(d, seen))


@pytest.mark.parametrize("threads", [1, 2])
def test_what_lies_between_must_not_be_needed(local: Target, threads: int) -> None:
    imported = network()
    plan = plan_of(imported, local, threads)
    pairs = fusible(plan, local)
    assert [w.kh for w in pairs.values()] == [3, 5]
    assert "add" in [*pairs.values()][1].epilogue
    fused = fuse(plan, local, pairs)
    assert len(fused.steps) == len(plan.steps) - 2
    assert [*fused.params] == [*plan.params] and fused.flops == plan.flops
    inputs = noise_for(imported, 3)
    name = next(iter(plan.inputs))
    exact = evaluate(from_relax(imported.module), {name: inputs[0]})
    for each in (plan, fused, fuse(plan, local, [*pairs][:1])):
        _, library = compile_plan(each, local)
        assert relative(run_library(library, each, inputs), exact) < 1e-5


def test_channels_over_threads_are_not_fused(local: Target) -> None:
    plan = plan_of(load_model("mobilenet_v1:width=0.25,resolution=64"), local, 2)
    assert fusible(plan, local)
    assert all(w.out_split == "rows" and w.oh >= 16 for w in fusible(plan, local).values())


# The choice


def trial(w: Workload, target: Target, seconds: float, **change: Any) -> Trial:
    template = TEMPLATES[w.op]
    fields: dict[str, Any] = {
        "workload": w, "template": w.op, "template_version": template.version,
        "config": dict(template.default(w, target, 1)), "times_s": (seconds,) * 3,
        "phase": "network", "target": target.name, "threads": 1, "board": "b", "cpu": "c",
        "tvm": "0", "tvmsep": "0", "date": "d", "seed": 0,
    }  # fmt: skip
    return Trial(**{**fields, **change})


def a_pair(local: Target) -> tuple[Plan, Workload]:
    net = Net()
    x = net.conv(net.input(1, 3, 16, 16), 16, 3, pads=[1, 1, 1, 1])
    plan = plan_of(load_model(net.proto(net.conv(net.depthwise(x), 16))), local, 1)
    (w,) = fusible(plan, local).values()
    return plan, w


@pytest.mark.parametrize(
    ("ratio", "change", "taken"),
    [
        (1 - 2 * GAIN, {}, True),
        (1 - GAIN / 2, {}, False),
        (1.5, {}, False),
        (0.5, {"phase": "search"}, False),
        (0.5, {"template_version": 99}, False),
        (0.5, {"threads": 2}, False),
        (0.5, {"config": {"rows": 3}}, False),
        (0.5, {"times_s": (), "failure": "runtime_error"}, False),
    ],
)
def test_fused_where_it_wins_by_enough(
    local: Target, ratio: float, change: dict[str, Any], taken: bool
) -> None:
    plan, w = a_pair(local)
    first, last = w.parts
    trials = [trial(first, local, 3e-6), trial(last, local, 7e-6)]
    trials.append(trial(w, local, ratio * 10e-6, **change))
    chosen, grounds = choose_plan(plan, local, best_trials(trials))
    assert ("dwpw" in [s.template for s in chosen.steps]) == taken
    # What a bundle keeps is enough to decide alike.
    again, _ = choose_plan(plan, local, best_trials([b.trial for b in grounds]))
    assert [s.template for s in again.steps] == [s.template for s in chosen.steps]


def test_without_times_nothing_is_fused(local: Target) -> None:
    plan, _ = a_pair(local)
    chosen, grounds = choose_plan(plan, local, {})
    assert chosen.steps == plan.steps and not grounds


def test_networks_of_both_plans_take_turns(local: Target) -> None:
    plan, w = a_pair(local)
    both = fuse(plan, local, fusible(plan, local))
    choices = [defaults(plan, local), defaults(both, local)]
    with Farm(local, builders=1) as farm:
        answer = farm.run_networks([plan, both], choices, rounds=1, whole=True)
        assert not isinstance(answer, Failed), answer
        assert [set(t) for t in answer.kernels] == [set(c) for c in choices]
        assert w in answer.kernels[1] and w not in answer.kernels[0]
        other = plan_of(load_model("mobilenet_v1:width=0.25,resolution=64"), local, 1)
        with pytest.raises(ValueError, match="differ in inputs"):
            farm.run_networks([plan, other], [choices[0], defaults(other, local)], rounds=1)


# The verbs


def program(bundle: Path) -> str:
    with Package(bundle) as package:
        return package.read("relax/threads1.txt").decode()


def test_tune_then_build_from_its_log_and_its_bundle(
    tmp_path: Path, local: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same kernels from the run, from its log, and from the log that the bundle keeps."""
    net = Net()
    x = net.conv(net.input(1, 3, 24, 24), 16, 3, pads=[1, 1, 1, 1])
    model = net.proto(net.conv(net.depthwise(x), 16))
    monkeypatch.setattr("tvmsep.tuner.choice.GAIN", -9.0)  # fused whatever it takes
    out = tmp_path / "a.tvmsep"
    report = tvmsep.tune(model, out=out, target=local, threads=1, trials=24, builders=1)
    assert report.result is not None and report.result.state.whole_s[1] > 0
    assert report.tuned == report.tasks and report.manifest.variants[0].estimate_s
    from_log, from_bundle = tmp_path / "b.tvmsep", tmp_path / "c.tvmsep"
    api.build(model, out=from_log, target=local, threads=1, logs=[out.with_suffix(".jsonl")])
    api.build(model, out=from_bundle, target=local, threads=1, logs=[out])
    assert "def dwpw_" in program(out)
    assert program(from_log) == program(out) == program(from_bundle)
    plain = tmp_path / "d.tvmsep"
    api.build(model, out=plain, target=local, threads=1, logs=[])
    assert "def dwpw_" not in program(plain)
    image = np.random.default_rng(0).standard_normal((1, 3, 24, 24), dtype=np.float32)
    outputs = []
    for path in (out, plain):
        with tvmsep.Bundle.load(path) as bundle:
            outputs.append(np.asarray(bundle(image)))
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def tasks_of(plans: Sequence[Plan], target: Target) -> list[Task]:
    return [t for plan in plans for t in plan.tasks(target)]


def test_a_task_that_both_plans_share_is_tuned_once(local: Target) -> None:
    prepared = api.prepare("mobilenet_v2:width=0.5,resolution=96", target=local, threads=[1])
    separate, fused = prepared.networks()
    tasks = prepared.tasks()
    assert len({t.key for t in tasks}) == len(tasks)
    assert {t.key for t in tasks} == {t.key for t in tasks_of([separate, fused], local)}
    assert any(t.template == "dwpw" for t in tasks)
