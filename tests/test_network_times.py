"""Kernels timed inside their network: the whole way, on this host."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm
from graph_kit import Net
from tvm.runtime.vm import VirtualMachine

from tvmsep.compiler import emit
from tvmsep.contracts import Config, Target, Workload
from tvmsep.frontends import load_model
from tvmsep.graph import Plan, from_relax, make_plan, normalise
from tvmsep.measure import Built, Failed, Farm, builder, errands, harness, session
from tvmsep.measure.network import RUNS
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import load_target

Choice = dict[Workload, tuple[str, Config]]


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("local")


@pytest.fixture(scope="module")
def farm(target: Target) -> Iterator[Farm]:
    with Farm(target, builders=1) as made:
        yield made


def network(target: Target, threads: int) -> tuple[Plan, list[Choice]]:
    """A small network with a kernel that is used twice, an operator that no template takes, two
    outputs of which one shares memory, and two choices of configs for it."""
    net = Net()
    x = net.input(1, 16, 8, 8)
    w = net.noise(16, 16, 1, 1, scale=0.3)
    a = net.op("Relu", net.op("Conv", x, w))
    b = net.op("Relu", net.op("Conv", a, w))
    c = net.op("Softmax", b, axis=1)
    model = load_model(net.proto(c, net.op("Reshape", c, net.ints(1, -1))))
    plan = make_plan(normalise(from_relax(model.module)), target, threads)
    choices: list[Choice] = [{}, {}]
    for task in plan.tasks(target):
        template = TEMPLATES[task.template]
        space = template.space(task.workload, target, threads).configs()
        choices[0][task.workload] = task.template, template.default(task.workload, target, threads)
        choices[1][task.workload] = task.template, space[-1]
    return plan, choices


@pytest.mark.parametrize("threads", [1, 2])
def test_every_kernel_of_every_variant(farm: Farm, target: Target, threads: int) -> None:
    if threads > target.cores:
        pytest.skip(f"this host has {target.cores} cores")
    plan, choices = network(target, threads)
    assert any(s.node is not None for s in plan.steps)
    began = time.monotonic()
    answer = farm.run_networks([plan] * 2, choices, rounds=2, whole=True)
    took = time.monotonic() - began
    assert not isinstance(answer, Failed)
    assert len(answer.kernels) == 2
    for times in answer.kernels:
        assert set(times) == set(choices[0])
        assert all(len(t) == 2 * RUNS and min(t) > 0 for t in times.values())
    count = {t.workload: t.count for t in plan.tasks(target)}
    assert 2 in count.values()
    assert sum(sum(t) * count[w] for times in answer.kernels for w, t in times.items()) < took
    assert len(answer.whole_s) == 2 * RUNS and min(answer.whole_s) > 0


def test_too_slow_a_network_is_a_failure(
    farm: Farm, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, choices = network(target, 1)
    monkeypatch.setattr(errands, "NETWORK_TIMEOUT_S", 1e-4)
    answer = farm.run_networks([plan] * 2, choices, rounds=1)
    assert isinstance(answer, Failed) and "0.0001 s" in answer.detail
    monkeypatch.undo()
    assert not isinstance(farm.run_networks([plan] * 2, choices, rounds=1), Failed)


def test_linked_from_candidates_it_computes_the_same(
    farm: Farm, target: Target, tmp_path: Path
) -> None:
    plan, (choice, _) = network(target, 1)
    tasks = {t.workload: t for t in plan.tasks(target)}
    builds = farm.build([(tasks[w], config) for w, (_, config) in choice.items()])
    objects = {
        w: b.object
        for w, b in zip(choice, builds, strict=True)
        if isinstance(b, Built) and b.object
    }
    assert len(objects) == len(choice) > 1
    names = dict(zip(objects, harness.names(), strict=False))
    kernels = {names[w]: path for w, path in objects.items()}
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in plan.inputs.values()]
    found = []
    for extern, linked in [(None, {}), (names, kernels)]:
        module = emit(plan, target, choice, extern=extern)
        if extern:
            assert not set(names.values()) & {v.name_hint for v in module.get_global_vars()}
        library = builder.build_network(tvm.ir.save_json(module), target, linked, tmp_path)
        vm = VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
        tensors = [tvm.runtime.tensor(a) for a in [*inputs, *plan.params.values()]]
        out = vm["main"](*tensors)
        found.append([o.numpy() for o in (out if len(plan.outputs) > 1 else [out])])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.ptp(one) > 0
    answer = farm.run_networks([plan], [choice], rounds=1, kernels=[objects])
    assert not isinstance(answer, Failed) and set(answer.kernels[0]) == set(choice)


@pytest.mark.parametrize("turns", [[0, None], [0, 1, None], [0, 1, 2, 3]])
def test_no_variant_is_always_first_or_after_the_same_one(
    target: Target, turns: list[int | None]
) -> None:
    order: list[int | None] = []

    class Slot:
        board = SimpleNamespace(name="board")

        def timing(self) -> AbstractContextManager[None]:
            return nullcontext()

        def call(self, what: Any, *arguments: Any, limit_s: float) -> Any:
            if what is session.time_network:
                order.append(arguments[0])
                return np.zeros((1, 1))
            return None

    count = len(turns)
    answer = errands.time_networks(None, target, turns, 2 * count, Slot())  # type: ignore[arg-type]
    assert not isinstance(answer, Failed)
    assert {turn: len(times) for turn, times in answer[1].items()} == dict.fromkeys(
        turns, 2 * count
    )
    rounds = [order[i : i + count] for i in range(0, len(order), count)]
    assert all(set(r) == set(turns) for r in rounds)
    assert Counter(r[0] for r in rounds) == dict.fromkeys(turns, 2)
    before = {(a, b) for r in rounds for a, b in itertools.pairwise(r)}
    assert all((b, a) in before for a, b in before)
