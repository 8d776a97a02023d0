"""Along what values are divided over the threads: what is open, and how times decide it."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from graph_kit import Net, compile_plan, noise_for, plan_of, relative, run_library
from hypothesis import given
from hypothesis import strategies as st

import tvmsep
from tvmsep import api
from tvmsep.bundle import Package
from tvmsep.contracts import Task, Trial, Workload
from tvmsep.contracts.workload import SPLITS
from tvmsep.frontends import Imported, load_model
from tvmsep.graph import Plan, Step, evaluate, from_relax, open_splits, other_splits, resplit
from tvmsep.logs import Best, LogFile, best_trials
from tvmsep.measure import Failed, NullBoard, ReplayBoard
from tvmsep.report.story import tell
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import load_target
from tvmsep.tuner import finals, tune_tasks
from tvmsep.tuner.choice import GAIN, choose_plan
from tvmsep.tuner.eliminate import MOST_NEIGHBOURS, Factor, cheapest
from tvmsep.tuner.state import same_code, task_key, winner_of

AVX2 = load_target("x86-avx2")


# The least sum


def total(factors: list[Factor], at: dict[str, str]) -> tuple[int, float]:
    costs = [f.costs[tuple(at[v] for v in f.scope)] for f in factors]
    return sum(n for n, _ in costs), sum(s for _, s in costs)


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, list[str]], list[Factor]]:
    names = [f"v{i}" for i in range(draw(st.integers(1, 7)))]
    domains = {v: ["a", "b", "c"][: draw(st.integers(1, 3))] for v in names}
    factors = []
    for _ in range(draw(st.integers(0, 9))):
        size = draw(st.integers(0, min(3, len(names))))
        scope = tuple(draw(st.permutations(names))[:size])
        ways = itertools.product(*(domains[v] for v in scope))
        cost = st.tuples(st.integers(0, 1), st.integers(0, 4).map(float))
        factors.append(Factor(scope, {at: draw(cost) for at in ways}))
    return domains, factors


@given(problems())
def test_elimination_finds_what_trying_all_finds(
    problem: tuple[dict[str, list[str]], list[Factor]],
) -> None:
    domains, factors = problem
    found = cheapest(domains, factors)
    every = [
        dict(zip(domains, at, strict=True)) for at in itertools.product(*domains.values())
    ]  # fmt: skip
    assert total(factors, found) == min(total(factors, at) for at in every)


def test_of_equal_costs_the_first_values_win() -> None:
    domains = {"x": ["b", "a"], "y": ["d", "c"]}
    flat = Factor(("x", "y"), {at: (0, 1.0) for at in itertools.product("ba", "dc")})
    assert cheapest(domains, [flat]) == {"x": "b", "y": "d"}


def test_a_value_between_too_many_keeps_its_first_value() -> None:
    """All pairs of many variables: no order of elimination has small tables."""
    names = [f"v{i}" for i in range(2 * MOST_NEIGHBOURS)]
    costs = {("a", "a"): (0, 1.0), ("a", "b"): (0, 0.5), ("b", "a"): (0, 0.5), ("b", "b"): (0, 0.0)}
    factors = [Factor(pair, costs) for pair in itertools.combinations(names, 2)]
    found = cheapest(dict.fromkeys(names, ["a", "b"]), factors)
    kept = [v for v in names if found[v] == "a"]
    assert len(kept) == len(names) - MOST_NEIGHBOURS - 1
    assert all(found[v] == "b" for v in names if v not in kept)


# What is open


def model() -> Any:
    """14 by 14 with a residual and a stride, between 28 by 28 and 7 by 7."""
    net = Net()
    x = net.op("Relu", net.conv(net.input(1, 3, 56, 56), 16, 3, pads=[1, 1, 1, 1], strides=[2, 2]))
    a = net.conv(net.depthwise(x, strides=[2, 2]), 64)
    b = net.op("Relu", net.conv(a, 96))
    c = net.op("Add", net.conv(net.depthwise(b), 64), a)
    d = net.conv(net.depthwise(net.op("Relu", net.conv(c, 96)), strides=[2, 2]), 256)
    return net.proto(d)


def network() -> Imported:
    return load_model(model())


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of(network(), AVX2, 2)


def sizes(plan: Plan, values: Any) -> set[int]:
    of = {s.output: s.workload.oh for s in plan.steps if s.workload is not None}
    return {of[v] for v in values}


def test_only_where_weights_and_image_are_about_as_large(plan: Plan) -> None:
    found = open_splits(plan)
    assert sizes(plan, found) == {14}
    of = {s.output: s.workload for s in plan.steps if s.workload is not None}
    assert all({of[v].out_split, split} == set(SPLITS) for v, split in found.items())
    assert [v for v, w in of.items() if w.oh == 14] == list(found)
    assert not open_splits(plan_of(network(), AVX2, 1))
    # More threads than rows: one of them would have none.
    many = msgspec.structs.replace(AVX2, cores=16)
    assert not open_splits(plan_of(network(), many, 16))


def test_the_networks_of_a_log_that_ships() -> None:
    for name, size in (("mobilenet_v1", {28, 14}), ("mobilenet_v2", {14})):
        found = plan_of(load_model(name), AVX2, 2)
        assert sizes(found, open_splits(found)) == size


def branches() -> Imported:
    """14 by 14: three branches, joined, beside a way that adds what lies far back."""
    net = Net()
    x = net.conv(net.input(1, 3, 28, 28), 32, 3, pads=[1, 1, 1, 1], strides=[2, 2])
    ways = [net.op("Relu", net.conv(x, 32)), net.op("Relu", net.conv(x, 48)), net.depthwise(x)]
    joined = net.op("Concat", *ways, axis=1)
    y = net.op("Add", net.conv(net.depthwise(net.conv(joined, 64)), 32), ways[0])
    return load_model(net.proto(net.conv(y, 64), net.conv(joined, 24)))


@pytest.mark.parametrize("imported", [network, branches])
def test_other_splits_show_every_kernel_between_all_that_may_be(
    imported: Callable[[], Imported],
) -> None:
    plan = plan_of(imported(), AVX2, 2)
    free = open_splits(plan)
    plans = [plan, *other_splits(plan)]
    assert any(s.workload and s.workload.op == "channels" for s in plan.steps) == (
        imported is branches
    )
    assert len(plans) == 4
    for i, step in enumerate(plan.steps):
        seen = {(w.in_split, w.out_split) for p in plans if (w := p.steps[i].workload)}
        ends = (step.inputs[0] in free, step.output in free)
        assert len(seen) == 2 ** sum(ends), step.output
    assert all([*p.params] == [*plan.params] and p.flops == plan.flops for p in plans)
    assert {p.layouts[v].split for p in plans for v in free} == set(SPLITS)


def test_splits_change_no_result(plan: Plan) -> None:
    imported = network()
    inputs = noise_for(imported, 3)
    exact = evaluate(from_relax(imported.module), {next(iter(plan.inputs)): inputs[0]})
    for each in [plan, *other_splits(plan)]:
        _, library = compile_plan(each, AVX2)
        assert relative(run_library(library, each, inputs), exact) < 1e-5


# What is chosen


def trials_of(plans: list[Plan], seconds: Any, **change: Any) -> list[Trial]:
    """A time inside the network for each kernel of these plans."""
    found = []
    for w in dict.fromkeys(s.workload for p in plans for s in p.steps if s.workload is not None):
        template = TEMPLATES[w.op]
        fields: dict[str, Any] = {
            "workload": w, "template": w.op, "template_version": template.version,
            "config": dict(template.default(w, AVX2, 2)), "times_s": (seconds(w),) * 3,
            "phase": "network", "target": AVX2.name, "threads": 2, "board": "b", "cpu": "c",
            "tvm": "0", "tvmsep": "0", "date": "d", "seed": 0,
        }  # fmt: skip
        found.append(Trial(**{**fields, **change}))
    return found


def splits_of(plan: Plan) -> list[tuple[str, str]]:
    return [(s.output, s.workload.out_split) for s in plan.steps if s.workload is not None]


def test_nothing_timed_leaves_all_as_planned(plan: Plan) -> None:
    chosen, grounds = choose_plan(plan, AVX2, {})
    assert chosen.steps == plan.steps and not grounds
    searched = trials_of(other_splits(plan), lambda w: 1e-6, phase="search")
    chosen, grounds = choose_plan(plan, AVX2, best_trials(searched))
    assert chosen.steps == plan.steps and not grounds


def test_what_the_search_finds_later_decides_nothing(plan: Plan) -> None:
    """A run that ended before its last rounds: its best config runs where it was timed to be."""
    plans = [plan, *other_splits(plan)]
    planned = {s.workload for s in plan.steps}
    trials = trials_of(plans, lambda w: 1e-5 if w in planned else 3e-5)
    (w,) = (s.workload for s in plan.steps if s.template == "depthwise" and s.workload
            and s.workload.oh == 14 and s.workload.sh == 1)  # fmt: skip
    config = TEMPLATES["depthwise"].space(w, AVX2, 2).configs()[-1]
    trials += trials_of([of_one(w)], lambda w: 2e-5, phase="search")
    trials += trials_of([of_one(w)], lambda w: 1e-6, phase="search", config=dict(config))
    winners = best_trials(trials)
    chosen, grounds = choose_plan(plan, AVX2, winners)
    assert splits_of(chosen) == splits_of(plan)
    task = next(t for t in chosen.tasks(AVX2) if t.workload == w)
    best = winner_of(task, winners)
    assert best is not None and best.config == config
    again, _ = choose_plan(plan, AVX2, best_trials([b.trial for b in grounds]))
    assert again.steps == chosen.steps


def test_kernels_of_an_older_log_are_taken_where_nothing_is_open() -> None:
    """Ten rows were divided before, and are too few now."""
    plan = plan_of(load_model("mobilenet_v1:resolution=160"), AVX2, 2)
    small = [s.output for s in plan.steps if s.workload and s.workload.oh == 10]
    assert small and not set(small) & set(open_splits(plan))
    before = resplit(plan, dict.fromkeys(small, "rows"))
    old = trials_of([before], lambda w: 1e-3)
    chosen, _ = choose_plan(plan, AVX2, best_trials(old))
    assert splits_of(chosen) == splits_of(before) != splits_of(plan)
    # Tuned again the planned ones have times of their own, of another day.
    new = trials_of([plan], lambda w: 2e-3, date="e")
    chosen, _ = choose_plan(plan, AVX2, best_trials([*old, *new]))
    assert splits_of(chosen) == splits_of(plan)


# The last rounds


def test_networks_without_code_of_their_own_join_when_configs_are_ranked(plan: Plan) -> None:
    own, alternative, *mixed = [plan, *other_splits(plan)]
    assert finals._of_own_code([own, alternative, *mixed]) == [own, alternative]
    assert len(mixed) == 2
    few = finals._at_once(8, [own, alternative])
    heavy = dataclasses.replace(own, params={"w": np.zeros((1 << 27) // 4, np.float32)})
    assert few == 8 and finals._at_once(8, [heavy] * 3) == finals.AT_ONCE // 3
    assert finals._at_once(8, [heavy] * 40) == 1


def test_what_was_not_timed_yet_is_ranked_as_the_same_code_elsewhere() -> None:
    w = one_task().workload
    rows = msgspec.structs.replace(w, in_split="rows")
    a, b, c = TEMPLATES["pointwise"].space(w, AVX2, 2).configs()[:3]
    times = {(w, a): [3.0, 3.0, 9.0], (w, b): [1.0, 2.0, 2.0]}
    assert finals._ranked(w, [a, b], times) == [b, a]
    assert finals._ranked(rows, [a, c, b], times) == [b, a, c]
    times[rows, a] = [1.0]
    assert finals._ranked(rows, [b, a, c], times) == [a, b, c]  # by its own place alone


def test_a_log_of_other_splits_alone_is_taken(plan: Plan) -> None:
    """Its kernels are tuned, those of the plan are not."""
    other = other_splits(plan)[0]
    chosen, _ = choose_plan(plan, AVX2, best_trials(trials_of([other], lambda w: 1e-3)))
    assert splits_of(chosen) == splits_of(other)


@pytest.mark.parametrize(("gain", "taken"), [(0.5 * GAIN, False), (2 * GAIN, True)])
def test_other_splits_must_win_by_enough(plan: Plan, gain: float, taken: bool) -> None:
    other = other_splits(plan)[0]
    theirs = {s.workload for s in other.steps} - {s.workload for s in plan.steps}
    trials = trials_of([plan, other], lambda w: 1e-5 * (1 - gain if w in theirs else 1.0))
    chosen, _ = choose_plan(plan, AVX2, best_trials(trials))
    assert splits_of(chosen) == splits_of(other if taken else plan)


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_the_least_of_all_and_its_grounds_make_it_again(
    plan: Plan, seed: int
) -> None:
    rng = random.Random(seed)
    plans = [plan, *other_splits(plan)]
    winners = best_trials(trials_of(plans, lambda w: rng.uniform(1e-6, 2e-6)))
    planned = {s.workload for s in plan.steps}

    def seconds(p: Plan) -> float:
        found = 0.0
        for s in p.steps:
            assert s.workload is not None
            task = Task(workload=s.workload, target=AVX2.name, threads=2, template=s.template)
            own = s.workload in planned
            found += winners[task_key(task)].seconds / (1.0 if own else 1 - GAIN)
        return found

    free = open_splits(plan)
    every = [
        resplit(plan, {v: free[v] for v, other in zip(free, at, strict=True) if other})
        for at in itertools.product([False, True], repeat=len(free))
    ]
    chosen, grounds = choose_plan(plan, AVX2, winners)
    assert seconds(chosen) == pytest.approx(min(map(seconds, every)))
    assert splits_of(chosen) != splits_of(plan)
    again, _ = choose_plan(plan, AVX2, best_trials([b.trial for b in grounds]))
    assert again.steps == chosen.steps


def test_a_pair_is_fused_where_rows_and_one_kernel_win_together(plan: Plan) -> None:
    """By channels each kernel is faster than by rows, but two by rows as one are faster still."""
    rows = resplit(plan, dict.fromkeys(open_splits(plan), "rows"))
    prepared = api.prepare(model(), target=AVX2, threads=[2])
    fused = next(p for p in prepared.networks() if any(s.template == "dwpw" for s in p.steps))

    def seconds(w: Workload) -> float:
        if w.op == "dwpw":
            return 1e-6
        return 1.5e-6 if w.out_split == "rows" and w.oh == 14 else 1e-6

    winners = best_trials(trials_of([plan, rows, *other_splits(plan), fused], seconds))
    chosen, _ = choose_plan(plan, AVX2, winners)
    pairs = [s for s in chosen.steps if s.template == "dwpw"]
    assert pairs and all(s.workload and s.workload.out_split == "rows" for s in pairs)
    dearer = [
        msgspec.structs.replace(b.trial, times_s=(1.0,)) if b.trial.template == "dwpw" else b.trial
        for b in winners.values()
    ]
    chosen, _ = choose_plan(plan, AVX2, best_trials(dearer))
    assert not [s for s in chosen.steps if s.template == "dwpw"]


# Tasks of the same code


def test_kernels_of_the_same_code_are_tuned_once() -> None:
    prepared = api.prepare("mobilenet_v2:width=0.5,resolution=224", target=AVX2, threads=[2])
    tasks = prepared.tasks()
    codes = [(t.workload.kernel, t.threads) for t in tasks]
    assert len(set(codes)) == len(codes)
    made = {
        (s.workload.kernel, 2) for p in prepared.networks() for s in p.steps if s.workload
    }  # fmt: skip
    assert set(codes) == made
    # The counts are those of the plan that is asked for.
    plan = prepared.plans[2]
    counts = Counter(s.workload.kernel for s in plan.steps if s.workload is not None)
    assert {t.workload.kernel: t.count for t in tasks if t.workload.kernel in counts} == counts


def one_task() -> Task:
    w = Workload(
        op="pointwise", ic=64, ih=14, iw=14, oc=64, in_block=8, out_block=8,
        in_split="channels", out_split="channels",
    )  # fmt: skip
    return Task(workload=w, target=AVX2.name, threads=2, template="pointwise")


def test_a_time_in_a_network_wins_whoever_wrote_the_input() -> None:
    task = one_task()
    own, other = same_code(task)
    assert own == task_key(task)

    def best(w: Workload, phase: str) -> Best:
        (found,) = best_trials(trials_of([of_one(w)], lambda w: 1e-6, phase=phase)).values()
        return found

    rows = msgspec.structs.replace(task.workload, in_split="rows")
    mine, theirs = best(task.workload, "search"), best(rows, "network")
    assert winner_of(task, {}) is None
    assert winner_of(task, {own: mine}) is mine and winner_of(task, {other: theirs}) is theirs
    assert winner_of(task, {own: mine, other: theirs}) is theirs
    both = {own: best(task.workload, "network"), other: theirs}
    assert winner_of(task, both) is both[own]


def of_one(w: Workload) -> Plan:
    return Plan([Step("y", ["x"], [], w, w.op)], {}, {}, [], {}, {}, {}, 2)


def test_a_log_answers_for_kernels_of_the_same_code() -> None:
    task = one_task()
    rows = msgspec.structs.replace(task.workload, in_split="rows")
    (trial,) = trials_of([of_one(rows)], lambda w: 1e-6, phase="search")
    assert ReplayBoard([trial]).known(task) == {trial.as_config()}
    third = msgspec.structs.replace(task.workload, out_split="rows")
    assert not ReplayBoard([trial]).known(msgspec.structs.replace(task, workload=third))


# The verbs


def test_tune_times_other_splits_and_its_log_and_bundle_build_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvmsep.tuner.choice.GAIN", -9.0)  # others, whatever they take
    out = tmp_path / "a.tvmsep"
    local = load_target("local")
    if local.cores < 2:
        pytest.skip("one core")
    report = tvmsep.tune(two_layers(), out=out, target=local, threads=2, trials=24, builders=1)
    assert report.result is not None and report.result.state.whole_s[2] > 0
    prepared = api.prepare(two_layers(), target=local, threads=[2])
    plan = prepared.plans[2]
    assert report.tuned == report.tasks
    texts = [program(out)]
    for logs in ([out.with_suffix(".jsonl")], [out]):
        again = tmp_path / f"{len(texts)}.tvmsep"
        api.build(two_layers(), out=again, target=local, threads=2, logs=logs)
        texts.append(program(again))
    assert texts[0] == texts[1] == texts[2]
    planned = tmp_path / "planned.tvmsep"
    api.build(two_layers(), out=planned, target=local, threads=2, logs=[])
    assert open_splits(plan)
    assert divided(texts[0]) != divided(program(planned))
    image = np.random.default_rng(0).standard_normal((1, 3, 28, 28), dtype=np.float32)
    outputs = []
    for path in (out, planned):
        with tvmsep.Bundle.load(path) as bundle:
            outputs.append(np.asarray(bundle(image)))
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def two_layers() -> Any:
    net = Net()
    x = net.conv(net.input(1, 3, 28, 28), 32, 3, pads=[1, 1, 1, 1], strides=[2, 2])
    return net.proto(net.conv(net.depthwise(x), 64))


def divided(text: str) -> list[tuple[str, str]]:
    """How each kernel's input and output are."""
    found = re.findall(r'"tvmsep\.workload": ?"(.*?)(?<!\\)"', text)
    works = [msgspec.json.decode(w.replace('\\"', '"'), type=Workload) for w in found]
    assert works
    return [(w.in_split, w.out_split) for w in works]


def program(bundle: Path) -> str:
    with Package(bundle) as package:
        return package.read("relax/threads2.txt").decode()


def test_resuming_takes_trials_of_the_same_code(tmp_path: Path) -> None:
    task = one_task()
    rows = msgspec.structs.replace(task.workload, in_split="rows")
    with LogFile(tmp_path / "log.jsonl", target=AVX2.name, measured=False) as log:
        first = msgspec.structs.replace(task, workload=rows)
        tune_tasks([first], AVX2, NullBoard(), log, peak_flops_per_core=1e11, trials=5)
        result = tune_tasks([task], AVX2, NullBoard(), log, peak_flops_per_core=1e11, trials=5)
        configs = [t.as_config() for t in log.trials if t.phase == "search"]
        assert len(configs) == len(set(configs)) == 10
        assert result.state.tasks[0].trials == 10


def test_what_another_run_timed_is_part_of_the_whole(plan: Plan) -> None:
    """Its log has splits that none of this run's networks had."""
    other = other_splits(plan)[0]
    winners = best_trials(trials_of([other], lambda w: 1e-3))
    asked: list[Any] = []

    def run_networks(plans: list[Plan], choices: list[Any], **how: Any) -> Failed:
        asked.extend([*plans, *choices])
        return Failed("timeout", "as it happens")

    farm = SimpleNamespace(run_networks=run_networks)
    run: Any = SimpleNamespace(target=AVX2, best=lambda: winners, farm=farm)
    assert "as it happens" in finals._whole(run, plan, {})
    chosen, choice = asked
    assert splits_of(chosen) == splits_of(other)
    assert set(choice) == {s.workload for s in chosen.steps}
    key = {t.workload: task_key(t) for t in chosen.tasks(AVX2)}
    assert all(config == winners[key[w]].config for w, (_, config) in choice.items())
    # What nobody timed runs its default.
    winners, asked[:] = {}, []
    assert "as it happens" in finals._whole(run, plan, {})
    assert asked[0].steps == plan.steps and set(asked[1]) == {s.workload for s in plan.steps}


def test_what_a_log_divides_otherwise_is_compared_so() -> None:
    """The log that ships for Zen 4 is older than the rule for small images."""
    from tvmsep.api.comparing import _of_kernel

    log = str(Path(__file__).parents[1] / "logs/x86-zen4/mobilenet_v2.jsonl")
    told, plain = (
        _of_kernel(words, "mobilenet_v2", "x86-zen4", [2], None).plans[2]
        for words in ([log], ["default"])
    )
    small = {s.output for s in plain.steps if s.workload and s.workload.oh == 14}
    assert {split for v, split in splits_of(plain) if v in small} == {"channels"}
    assert "rows" in {split for v, split in splits_of(told) if v in small}


def test_a_report_has_each_code_once_and_the_faster_form() -> None:
    """Searched once, timed in two places; by rows it was slower, and is not added."""
    task = one_task()
    rows = msgspec.structs.replace(task.workload, in_split="rows")
    other = msgspec.structs.replace(task.workload, out_split="rows")
    trials = [
        *trials_of([of_one(task.workload)], lambda w: 4e-6, phase="search"),
        *trials_of([of_one(task.workload)], lambda w: 2e-6),
        *trials_of([of_one(rows)], lambda w: 3e-6),
        *trials_of([of_one(other)], lambda w: 9e-6, phase="search"),
        *trials_of([of_one(other)], lambda w: 9e-6),
    ]
    story = tell(trials, target=AVX2)
    assert sorted(t.best_s for t in story.tasks) == pytest.approx([2e-6, 9e-6])
    ends = {t.label.rpartition(", by ")[2] for t in story.tasks}
    assert ends == set(SPLITS)
    (network,) = story.networks
    assert network.after_s == pytest.approx(2e-6) and network.curve.best_s[-1] == 4e-6
    # A bundle that runs it in both places, one of them twice.
    counts = {2: {(task.workload.key, 2): 1, (rows.key, 2): 2}}
    (network,) = tell(trials, counts=counts, target=AVX2).networks
    assert network.after_s == pytest.approx(8e-6) and network.missing == 0
    # Before and after are of one place, where default and winner took turns.
    default = TEMPLATES["pointwise"].default(rows, AVX2, 2)
    winner = next(c for c in TEMPLATES["pointwise"].space(rows, AVX2, 2).configs() if c != default)
    place = trials_of([of_one(rows)], lambda w: 1e-6, config=dict(winner))
    (network,) = tell([*trials, *place], counts=counts, target=AVX2).networks
    assert network.after_s == pytest.approx(2e-6 + 2 * 1e-6)
    assert network.before_s == pytest.approx(3 * network.after_s)
    counts[2][one_task_of(96).key, 2] = 1
    (network,) = tell(trials, counts=counts, target=AVX2).networks
    assert network.after_s is None and network.missing == 1


def one_task_of(channels: int) -> Workload:
    return msgspec.structs.replace(one_task().workload, oc=channels)
