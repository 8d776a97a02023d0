"""Boards that measure nothing, the pipeline of batches, and learning from earlier logs."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_tuner import PEAK, TARGET, TASKS, FakeFarm, a_trial, bowl, pointwise, search, space, tune

from tvmsep import api
from tvmsep.contracts import Config, InputError, LogError, Task, Trial
from tvmsep.logs import LogFile, best_trials, read_log
from tvmsep.measure import Built, Failed, Measured, Measuring, NullBoard, ReplayBoard
from tvmsep.measure.offline import formula
from tvmsep.tuner import Strategy, TuneResult, tune_tasks
from tvmsep.tuner.model import CostModel

MODEL = "mobilenet_v1:width=0.25,resolution=32"


def tune_on(
    board: Measuring, path: Path, tasks: Sequence[Task] = TASKS, **how: Any
) -> tuple[TuneResult, list[Trial]]:
    with LogFile(path, target=TARGET.name, measured=False) as log:
        result = tune_tasks(tasks, TARGET, board, log, peak_flops_per_core=PEAK, **how)
        return result, list(log.trials)


# Boards elsewhere: batches overlap


class Elsewhere(FakeFarm):
    """Keeps the order in which it was asked."""

    def __init__(self, **how: Any) -> None:
        super().__init__(overlaps=True, **how)
        self.events: list[tuple[str, int]] = []

    def build(self, jobs: Sequence[tuple[Task, Config]]) -> list[Built | Failed]:
        self.events.append(("build", len(jobs)))
        return super().build(jobs)

    def start(
        self, built: Sequence[tuple[Task, Config, Built]]
    ) -> Iterator[tuple[int, Measured | Failed]]:
        self.events.append(("start", len(built)))
        answers = list(enumerate(self.run(built)))
        return iter(answers[::-1])  # boards are done when they are done


def test_the_next_batch_is_built_while_one_is_measured(tmp_path: Path) -> None:
    farm = Elsewhere()
    _, trials = tune(farm, tmp_path / "log.jsonl", trials=60)
    kinds = [kind for kind, _ in farm.events]
    # The first batches of two tasks are built as one; then a build always comes before a start.
    assert "".join(kind[0] for kind in kinds[:7]) == "bssbsbs"
    first = next(t for t in trials if t.phase == "search")
    assert len(search(trials)) == 60 and max(Counter(search(trials)).values()) == 1
    assert first.board == "fake"


def test_batches_that_overlap_are_chosen_equally_by_equal_seeds(tmp_path: Path) -> None:
    logs = [search(tune(Elsewhere(), tmp_path / f"{i}.jsonl", trials=80)[1]) for i in range(2)]
    assert logs[0] == logs[1]


def test_overlapping_until_exhausted_measures_everything_once(tmp_path: Path) -> None:
    task = pointwise(7, 32, 32)
    result, trials = tune(Elsewhere(), tmp_path / "log.jsonl", [task])
    assert result.reason in ("exhausted", "plateau")
    if result.reason == "exhausted":
        assert {c for _, c in search(trials)} == set(space(task))
    assert max(Counter(search(trials)).values()) == 1


def test_a_config_that_loses_its_board_twice_is_never_proposed_again(tmp_path: Path) -> None:
    task = pointwise(7, 32, 32)
    killer = space(task)[5]
    path = tmp_path / "log.jsonl"

    def fail(config: Config) -> Failed | None:
        return Failed("link_lost", "gone") if config == killer else None

    for _ in range(4):
        farm = FakeFarm(fail=fail)
        tune(farm, path, [task])
    assert sum(t.failure == "link_lost" for t in read_log(path)) == 2
    assert killer not in {c for _, c in farm.ran}


def test_what_found_no_board_has_lost_no_chance(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for _ in range(3):
        tune(FakeFarm(fail=lambda _: Failed("board_lost", "none")), path, TASKS[:1])
    result, _ = tune(FakeFarm(), path, TASKS[:1], trials=20)
    assert result.best and result.state.tasks[0].failures == 0


def test_the_board_that_measured_is_in_the_trial(tmp_path: Path) -> None:
    class Two(FakeFarm):
        def run(self, built: Sequence[tuple[Task, Config, Built]]) -> Iterator[Measured | Failed]:
            for i, (task, config, _) in enumerate(built):
                yield Measured((bowl(task, config),), 0.0, f"fake@{i % 2}")

    _, trials = tune(Two(), tmp_path / "log.jsonl", trials=30)
    assert {t.board for t in trials} == {"fake@0", "fake@1"}


def test_boards_left_out_are_told(tmp_path: Path) -> None:
    farm = FakeFarm()
    farm.notes.append("board b is left out")
    result, _ = tune(farm, tmp_path / "log.jsonl", trials=8)
    assert result.state.notes == ["board b is left out"]


# Replay and null


def test_replay_answers_what_was_measured_and_proposes_nothing_else(tmp_path: Path) -> None:
    def build_fail(config: Config) -> Failed | None:
        return Failed("compile_error", "boom") if config["loop"] == "oc" else None

    _, trials = tune(FakeFarm(build_fail=build_fail), tmp_path / "real.jsonl", trials=90)
    path = tmp_path / "again.jsonl"
    result, again = tune_on(ReplayBoard(trials), path)
    was = {(t.task_key, t.as_config()): t for t in trials if t.phase == "search"}
    assert result.reason in ("exhausted", "plateau")
    for t in again:
        then = was[t.task_key, t.as_config()]
        assert (t.times_s, t.failure, t.program) == (then.times_s, then.failure, then.program)
        assert t.board == "replay" and not t.measured
    assert len(result.best) == len(TASKS)


def test_answers_never_count_among_measurements(tmp_path: Path) -> None:
    path = tmp_path / "null.jsonl"
    _, trials = tune_on(NullBoard(), path, trials=10)
    real = a_trial(times_s=(1.0,))
    assert {b.trial.board for b in best_trials([real, *trials]).values()} == {"fake"}
    with pytest.raises(LogError, match="holds trials of board null, this run measures"):
        LogFile(path, target=TARGET.name)
    with LogFile(tmp_path / "real.jsonl", target=TARGET.name) as log:
        log.append(real)
        with pytest.raises(LogError, match="board null"):
            log.append(trials[0])
    with pytest.raises(LogError, match="holds trials of board fake, this run measures nothing"):
        LogFile(tmp_path / "real.jsonl", target=TARGET.name, measured=False)
    with pytest.raises(InputError, match="measures nothing"):
        api.build(MODEL, out=tmp_path / "n.tvmsep", target=TARGET, threads=1, logs=[path])
    assert not (tmp_path / "n.tvmsep").exists()


@pytest.mark.parametrize("strategy", ["xgboost", "random", "default"])
def test_strategies_on_the_null_board(strategy: Strategy, tmp_path: Path) -> None:
    result, trials = tune_on(NullBoard(), tmp_path / "n.jsonl", trials=60, strategy=strategy)
    assert all(math.isfinite(t.start_s) for t in result.state.tasks)
    if strategy == "default":
        assert result.reason == "exhausted" and len(search(trials)) == len(TASKS)
    else:
        assert len(search(trials)) == 60


def test_a_search_of_a_whole_model_writes_no_bundle(tmp_path: Path) -> None:
    said: list[str] = []
    result = api.search(
        MODEL, NullBoard(), log=tmp_path / "n.jsonl", target=TARGET, threads=1, trials=40,
        say=said.append,
    )  # fmt: skip
    assert result.state.trials == 40 and "measures nothing" in said[0]
    assert [p.name for p in tmp_path.iterdir()] == ["n.jsonl"]
    with pytest.raises(InputError, match="knows none of"):
        api.search(MODEL, ReplayBoard([]), log=tmp_path / "m.jsonl", target=TARGET, threads=1)


def refused(folder: Path, *words: str) -> str:
    """The one line with which `tune` ends."""
    done = subprocess.run(
        [sys.executable, "-m", "tvmsep.cli", "tune", MODEL, *words],
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1 and not list(folder.iterdir())
    return done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--board", "nul"], "write model, replay:LOG, null, or null:5ms"),
        (["--board", "null:-1s"], "write model, replay:LOG, null, or null:5ms"),
        (["--board", "replay:none.jsonl"], "cannot read log none.jsonl"),
        (["--board", "null", "-o", "x.tvmsep"], "measures nothing and takes no -o"),
        (["--strategy", "luck"], "write xgboost, random or default"),
        (["--cold", "--warm-start", "x.jsonl"], "contradict each other"),
        (["--board", "null", "--warm-start", "x.jsonl"], "cannot read log x.jsonl"),
    ],
)
def test_bad_words(tmp_path: Path, words: list[str], says: str) -> None:
    assert says in refused(tmp_path, *words)


# Earlier logs


def test_earlier_logs_rank_before_the_first_trial(tmp_path: Path) -> None:
    near, task = pointwise(14, 64, 128), pointwise(14, 64, 64)

    def trial(t: Task, c: Config, **change: Any) -> Trial:
        return a_trial(
            workload=t.workload, config=dict(c), times_s=(formula(t, c),), target=TARGET.name,
            **change,
        )  # fmt: skip

    prior = [trial(near, c) for c in space(near)]
    model = CostModel(0, TARGET.name, prior)
    model.fit([])
    assert model.trained
    configs = space(task)
    scores = model.predict(task, configs)
    true = sorted(configs, key=lambda c: formula(task, c))
    chosen = configs[int(scores.argmax())]
    assert true.index(chosen) < len(configs) / 10

    def first_batch(prior: list[Trial]) -> float:
        best = []
        for seed in range(5):
            path = tmp_path / f"{bool(prior)}{seed}.jsonl"
            _, trials = tune_on(NullBoard(), path, [task], trials=4, seed=seed, prior=prior)
            best.append(min(t.median_s for t in trials))
        return sum(best)

    assert first_batch(prior) < first_batch([])


def test_a_taught_run_begins_where_most_is_hoped_for(tmp_path: Path) -> None:
    """By earlier logs all configs of the costlier kernel take equally long."""
    cheap, costly = pointwise(14, 64, 64), pointwise(14, 64, 128)
    prior = [
        a_trial(
            workload=near.workload, config=dict(c), target=TARGET.name,
            times_s=(formula(near, c) if near.workload.oc == 64 else 1e-3,),
        )
        for near in (pointwise(28, 64, 64), pointwise(28, 64, 128))
        for c in space(near)
    ]  # fmt: skip

    def first(prior: list[Trial]) -> list[Trial]:
        path = tmp_path / f"{bool(prior)}.jsonl"
        return tune_on(NullBoard(), path, [cheap, costly], trials=3, prior=prior)[1]

    assert {t.workload.oc for t in first([])} == {128}
    taught = first(prior)
    assert {t.workload.oc for t in taught} == {64}
    model = CostModel(0, TARGET.name, prior)
    model.fit([])
    configs = space(cheap)
    scores = dict(zip(configs, model.predict(cheap, configs), strict=True))
    favourite = max((c for c in configs if c != taught[0].as_config()), key=lambda c: scores[c])
    assert taught[1].as_config() == favourite  # and none at random


def test_a_related_target_counts_less_than_this_one() -> None:
    task = pointwise(14, 64, 64)
    configs = space(task)[:200]

    def upside(c: Config) -> float:
        return 1e-9 / formula(task, c)

    def of(target: str, seconds: Any) -> list[Trial]:
        return [
            a_trial(workload=task.workload, config=dict(c), times_s=(seconds(c),), target=target)
            for c in configs
        ]

    here, there = of(TARGET.name, lambda c: formula(task, c)), of("x86-avx2", upside)
    model = CostModel(0, TARGET.name, [*there, *here])
    model.fit([])
    chosen = configs[int(model.predict(task, configs).argmax())]
    assert sorted(configs, key=lambda c: formula(task, c)).index(chosen) < len(configs) / 10
