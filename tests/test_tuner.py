"""The search without hardware: a farm whose times are a formula, so every claim is exact."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmsep.contracts import Config, LogError, Target, Task, Trial, Workload
from tvmsep.graph import Plan
from tvmsep.graph.plan import Step
from tvmsep.logs import LogFile, best_trials, read_log
from tvmsep.measure import Board, Built, Failed, Measured, NetworkTimes
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import load_target
from tvmsep.tuner import TuneResult, TuneState, tune_tasks
from tvmsep.tuner.state import task_key

TARGET = load_target("x86-avx512")
PEAK = 100e9
MODEL = "mobilenet_v1:width=0.25,resolution=32"
Time = Callable[[Task, Config], float]


def pointwise(pixels: int, ic: int, oc: int, count: int = 1) -> Task:
    w = Workload(
        op="pointwise", ic=ic, ih=pixels, iw=pixels, oc=oc, in_block=16, out_block=16,
        epilogue=("bias", "relu6"),
    )  # fmt: skip
    assert TEMPLATES["pointwise"].accepts(w, TARGET)
    return Task(workload=w, target=TARGET.name, threads=1, template="pointwise", count=count)


TASKS = (pointwise(14, 64, 64, 3), pointwise(28, 32, 64), pointwise(7, 128, 128))


def space(task: Task) -> list[Config]:
    return TEMPLATES[task.template].space(task.workload, TARGET, task.threads).configs()


def bowl(task: Task, config: Config) -> float:
    """Smooth, one optimum per task, ripples that no neighbour shares."""
    seconds = task.workload.flops / PEAK
    for i, (_, value) in enumerate(sorted(config.items())):
        if isinstance(value, int):
            seconds *= 1 + 0.15 * abs(math.log2(max(value, 1)) - 1.5 - 0.5 * i)
        else:
            seconds *= 1 + 0.1 * (len(value) % 3)
    ripple = int(hashlib.sha256(config.key.encode()).hexdigest()[:4], 16) / 0xFFFF
    return seconds * (1 + 0.02 * ripple)


class FakeFarm:
    """Answers at once with times from a formula; keeps count of what it was asked to run."""

    def __init__(
        self,
        seconds: Time = bowl,
        fail: Callable[[Config], Failed | None] = lambda _: None,
        build_fail: Callable[[Config], Failed | None] = lambda _: None,
        program: Callable[[Task, Config], str] = lambda t, c: f"{t.key} {c.key}",
        pause_s: float = 0.0,
        overlaps: bool = False,
    ) -> None:
        self.seconds, self.fail, self.build_fail = seconds, fail, build_fail
        self.program, self.pause_s = program, pause_s
        self.ran: list[tuple[str, Config]] = []
        self.builders = self.boards = 1
        self.notes: list[str] = []
        self.overlaps = overlaps

    def connect(self) -> Board:
        return Board("fake", "127.0.0.1", 1, "fake", "Fake CPU", True)

    def known(self, task: Task) -> set[Config] | None:
        return None

    def start(
        self, built: Sequence[tuple[Task, Config, Built]]
    ) -> Iterator[tuple[int, Measured | Failed]]:
        return enumerate(self.run(built))

    def build(self, jobs: Sequence[tuple[Task, Config]]) -> list[Built | Failed]:
        return [
            self.build_fail(c) or Built(Path("/nowhere.so"), self.program(t, c)) for t, c in jobs
        ]

    def run(self, built: Sequence[tuple[Task, Config, Built]]) -> Iterator[Measured | Failed]:
        for task, config, _ in built:
            self.ran.append((task.key, config))
            time.sleep(self.pause_s)
            yield self.fail(config) or Measured((self.seconds(task, config),) * 3, 0.0)


def tune(
    farm: FakeFarm, path: Path, tasks: Sequence[Task] = TASKS, target: Target = TARGET, **how: Any
) -> tuple[TuneResult, list[Trial]]:
    with LogFile(path, target=target.name) as log:
        result = tune_tasks(tasks, target, farm, log, peak_flops_per_core=PEAK, **how)  # type: ignore[arg-type]
        return result, list(log.trials)


def search(trials: Sequence[Trial]) -> list[tuple[str, Config]]:
    return [(t.task_key, t.as_config()) for t in trials if t.phase == "search"]


def test_same_seed_same_trials_other_seed_others(tmp_path: Path) -> None:
    def run(name: str, seed: int) -> list[tuple[str, Config]]:
        return search(tune(FakeFarm(), tmp_path / name, trials=60, seed=seed)[1])

    first = run("a.jsonl", 3)
    assert run("b.jsonl", 3) == first
    assert run("c.jsonl", 4) != first


def test_until_exhausted_everything_is_measured_once_and_the_best_wins(tmp_path: Path) -> None:
    task = pointwise(7, 32, 32)
    farm = FakeFarm()
    result, trials = tune(farm, tmp_path / "log.jsonl", [task])
    tried = search(trials)
    assert result.reason in ("exhausted", "plateau")
    assert len(tried) == len(set(tried))
    if result.reason == "exhausted":
        assert {c for _, c in tried} == set(space(task))
    (best,) = result.best.values()
    assert best.config == min((c for _, c in tried), key=lambda c: bowl(task, c))


def test_trials_are_respected_and_every_task_gets_its_default(tmp_path: Path) -> None:
    result, trials = tune(FakeFarm(), tmp_path / "log.jsonl", trials=21)
    assert result.reason == "trials"
    assert len(search(trials)) == result.state.trials == 21
    assert all(math.isfinite(t.start_s) for t in result.state.tasks)
    # what the network spends most time on gets most trials
    most = max(result.state.tasks, key=lambda t: t.trials)
    assert most.task.count * most.start_s == max(
        t.task.count * t.start_s for t in result.state.tasks
    )


def test_budget_is_respected_with_the_final_round_inside(tmp_path: Path) -> None:
    start = time.monotonic()
    result, trials = tune(FakeFarm(pause_s=0.005), tmp_path / "log.jsonl", budget_s=1.5)
    took = time.monotonic() - start
    assert result.reason == "budget"
    assert took < 4.0  # on a busy machine too
    assert {t.phase for t in trials} == {"search", "final"}


def test_running_again_goes_on_and_measures_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    _, first = tune(FakeFarm(), path, trials=30)
    with path.open("ab") as torn:
        torn.write(path.read_bytes().splitlines()[0][:100])  # as a crash leaves it
    result, both = tune(FakeFarm(), path, trials=30)
    assert both[: len(first)] == first
    assert len(search(both)) == 60 and result.state.trials == 30
    assert max(Counter(search(both)).values()) == 1
    assert read_log(path) == both


def test_defaults_that_a_log_has_not_heard_of_come_first(tmp_path: Path) -> None:
    """As after an update that changed them."""
    path = tmp_path / "log.jsonl"
    result, first = tune(FakeFarm(), path, trials=30)
    defaults = {(task_key(s.task), s.default) for s in result.state.tasks}
    kept = [
        line
        for line, t in zip(path.read_bytes().splitlines(keepends=True), first, strict=True)
        if (t.task_key, t.as_config()) not in defaults
    ]
    path.write_bytes(b"".join(kept))
    _, both = tune(FakeFarm(), path, trials=len(defaults) + 3)
    later = search(both[len(kept) :])
    assert set(later[: len(defaults)]) == defaults and len(later) == len(defaults) + 3


def test_equal_programs_are_measured_once(tmp_path: Path) -> None:
    def program(task: Task, config: Config) -> str:
        return f"{task.key} {config['tile_p']}"

    farm = FakeFarm(
        lambda t, c: 1e-6 * c.int("tile_p"),
        fail=lambda c: Failed("wrong_output", "off") if c["tile_p"] == 1 else None,
        program=program,
    )
    task = pointwise(14, 32, 32)
    _, trials = tune(farm, tmp_path / "log.jsonl", [task], trials=100)
    runs = Counter(t.program for t in trials if t.phase == "search")
    assert len(search(trials)) > len(runs)  # some were answered without measuring
    times: dict[str, set[tuple[float, ...]]] = {}
    for t in trials:
        if t.phase == "search":
            times.setdefault(t.program, set()).add(t.times_s)
    assert all(len(different) == 1 for different in times.values())
    searched = len(farm.ran) - sum(t.phase == "final" for t in trials)
    assert searched == len(runs)


def test_failures_are_typed_logged_and_never_win(tmp_path: Path) -> None:
    def fail(config: Config) -> Failed | None:
        return Failed("wrong_output", "nan at [0]") if config.int("tile_p") > 7 else None

    def build_fail(config: Config) -> Failed | None:
        return Failed("compile_error", "boom") if config["loop"] == "oc" else None

    farm = FakeFarm(lambda t, c: 1e-4 / c.int("tile_p"), fail, build_fail)
    task = pointwise(28, 64, 64)
    result, trials = tune(farm, tmp_path / "log.jsonl", [task], trials=60)
    kinds = Counter(t.failure for t in trials)
    assert kinds["wrong_output"] > 0 and kinds["compile_error"] > 0
    assert result.state.tasks[0].failures == kinds["wrong_output"] + kinds["compile_error"]
    assert all(t.detail for t in trials if t.failure)
    (best,) = result.best.values()
    assert best.config.int("tile_p") <= 7
    # the model learns from failures: later proposals avoid them
    bad = [t.failure is not None for t in trials if t.phase == "search"]
    assert sum(bad[-20:]) < sum(bad[:20]) or sum(bad[-20:]) <= 5


def test_a_lost_board_ends_the_run_and_its_configs_are_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    ran: list[Config] = []

    def dies_after_20(config: Config) -> Failed | None:
        ran.append(config)
        return Failed("link_lost", "no route") if len(ran) > 20 else None

    result, trials = tune(FakeFarm(fail=dies_after_20), path, trials=500)
    assert result.reason == "board_lost"
    lost = [(t.task_key, t.as_config()) for t in trials if t.failure == "link_lost"]
    assert 0 < len(lost) <= 8 and len(result.best) == len(TASKS)
    sound = FakeFarm()
    again, both = tune(sound, path)
    assert again.reason in ("exhausted", "plateau")
    measured = [(t.task_key, t.as_config()) for t in both if t.phase == "search" and t.times_s]
    assert len(measured) == len(set(measured))
    states = {s.task.workload: s for s in again.state.tasks}
    assert any(s.lost & s.tried for s in states.values())


def test_ctrl_c_ends_with_the_best_so_far(tmp_path: Path) -> None:
    def stop(state: TuneState) -> None:
        if state.trials == 25:
            raise KeyboardInterrupt

    result, trials = tune(FakeFarm(), tmp_path / "log.jsonl", progress=stop)
    assert result.reason == "interrupted"
    assert len(trials) == 25 and len(result.best) == len(TASKS)
    assert result.state.phase == "ended"


def test_a_task_whose_first_batch_fails_is_not_given_up(tmp_path: Path) -> None:
    failures = iter(range(6))

    def fail(_: Config) -> Failed | None:
        return Failed("timeout", "slow") if next(failures, None) is not None else None

    result, _ = tune(FakeFarm(fail=fail), tmp_path / "l.jsonl", TASKS[:1], trials=40)
    assert result.best and result.state.tasks[0].failures == 6


def test_another_cpus_trials_decide_nothing_here(tmp_path: Path) -> None:
    class Slow(FakeFarm):
        def connect(self) -> Board:
            return Board("slow", "127.0.0.1", 1, "slow", "Slow CPU", True)

    log = tmp_path / "l.jsonl"
    fast, _ = tune(FakeFarm(), log, TASKS[:1], trials=24)
    slow, trials = tune(Slow(lambda t, c: 10 * bowl(t, c)), log, TASKS[:1], trials=24)
    (quick,), (late,) = fast.best.values(), slow.best.values()
    assert quick.trial.cpu == "Fake CPU" and late.trial.cpu == "Slow CPU"
    assert slow.state.trials == 24 and len(search(trials)) == 48
    assert late.seconds > 5 * quick.seconds


def test_the_model_beats_random_search_on_average(tmp_path: Path) -> None:
    task = pointwise(28, 64, 128)
    configs = space(task)
    order = sorted(configs, key=lambda c: bowl(task, c))
    trials = 48
    assert len(configs) > 3 * trials, "the space must be large enough for a search to matter"
    ranks, random_ranks = [], []
    for seed in range(6):
        result, _ = tune(FakeFarm(), tmp_path / f"{seed}.jsonl", [task], trials=trials, seed=seed)
        (best,) = result.best.values()
        ranks.append(order.index(best.config))
        drawn = np.random.default_rng(seed).permutation(len(configs))[:trials]
        random_ranks.append(min(order.index(configs[i]) for i in drawn))
    assert np.mean(ranks) < np.mean(random_ranks), (ranks, random_ranks)
    assert np.median(ranks) <= 0.01 * len(configs), ranks


# Logs


def a_trial(**change: Any) -> Trial:
    task = TASKS[0]
    fields: dict[str, Any] = {
        "workload": task.workload, "template": "pointwise", "template_version": 1,
        "config": dict(space(task)[0]), "times_s": (2e-6, 1e-6, 3e-6), "target": TARGET.name,
        "threads": 1, "board": "fake", "cpu": "c", "tvm": "0", "tvmsep": "0", "date": "d",
        "seed": 0,
    }  # fmt: skip
    return Trial(**{**fields, **change})


def test_a_log_is_made_by_its_first_trial(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    with LogFile(path) as log:
        assert not path.exists()
        log.append(a_trial())
    assert read_log(path) == [a_trial()]


@pytest.mark.parametrize(
    "content", [b"notes without a newline", b"notes\n", b"\x00\x01", b'{"a": 1}', b"[1]\n"]
)
def test_what_is_not_a_log_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(LogError, match="line 1: not a trial"):
        LogFile(path)
    assert path.read_bytes() == content


def test_other_targets_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with LogFile(path) as log:
        log.append(a_trial(target="x86-avx2"))
    with pytest.raises(LogError, match="is for x86-avx2, this run is for x86-avx512"):
        LogFile(path, target=TARGET.name)


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with LogFile(tmp_path / "log.jsonl") as log:
        log.append(a_trial())
        with pytest.raises(LogError, match="another tvmsep is writing"):
            LogFile(log.path)
    LogFile(log.path).close()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    with LogFile(tmp_path / "log.jsonl") as log:
        log.append(a_trial(schema=99))
    with pytest.raises(LogError, match="update tvmsep"):
        read_log(log.path)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    code = """
import resource, sys
from tvmsep.contracts import LogError
from tvmsep.logs import LogFile, read_log
sys.path.insert(0, sys.argv[2])
from test_tuner import a_trial
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
with LogFile(sys.argv[1]) as log:
    for n in range(100):
        try:
            log.append(a_trial(seed=n))
        except LogError as error:
            print(n, len(read_log(log.path)), len(log.trials), error)
            break
"""
    path = tmp_path / "log.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(Path(__file__).parent)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    appended, read, held, *words = done.stdout.split()
    assert appended == read == held and int(read) > 0
    assert "cannot write log" in " ".join(words)


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short write, as a disk gives that fills up; the trial is on it once there is space."""
    monkeypatch.setattr("tvmsep.logs.file.FULL_POLL_S", 0.0)
    said: list[str] = []
    with LogFile(tmp_path / "log.jsonl", say=said.append) as log:
        log.append(a_trial(seed=0))
        real, left = log._file, [5]

        class Full:
            def write(self, data: bytes) -> int:
                left[0] -= 1
                assert real is not None
                return real.write(data[:9] if left[0] > 0 else data)

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        log._file = Full()  # type: ignore[assignment]
        log.append(a_trial(seed=1))
        assert [t.seed for t in read_log(log.path)] == [0, 1] and left == [0]
        assert len(said) == 1 and "is full: waiting" in said[0]
        left[0] = 10**9
        monkeypatch.setattr("tvmsep.logs.file.FULL_WAIT_S", 0.05)
        with pytest.raises(LogError, match="No space left"):
            log.append(a_trial(seed=2))
        assert [t.seed for t in read_log(log.path)] == [0, 1]


def test_the_winner_after_an_early_stop() -> None:
    slow, fast, newer = (dict(c) for c in space(TASKS[0])[:3])
    log = [
        a_trial(config=slow, times_s=(2e-6,)),
        a_trial(config=fast, times_s=(1.9e-6,)),
        a_trial(config=slow, times_s=(1.5e-6,), phase="final"),
        a_trial(config=fast, times_s=(1.8e-6,), phase="final"),
    ]

    def winner(trials: list[Trial]) -> dict[str, Any]:
        (best,) = best_trials(trials).values()
        return dict(best.config)

    assert winner(log) == slow  # taken in turn, it was faster
    assert winner([*log, a_trial(config=newer, times_s=(1.95e-6,))]) == slow
    assert winner([*log, a_trial(config=newer, times_s=(1e-6,))]) == newer
    wrong = a_trial(config=slow, times_s=(), failure="wrong_output", phase="final")
    assert winner([*log, wrong]) == fast


class NetworkFarm(FakeFarm):
    """Also times networks, in which another config wins than alone."""

    def __init__(self, inside: Time, failed: Failed | None = None) -> None:
        super().__init__()
        self.inside, self.failed = inside, failed
        self.networks: list[int] = []

    def run_networks(
        self,
        plans: Sequence[Plan],
        choices: Sequence[Mapping[Workload, tuple[str, Config]]],
        *,
        rounds: int,
        whole: bool,
        kernels: Sequence[Mapping[Workload, Path]] = (),
    ) -> NetworkTimes | Failed:
        self.networks.append(len(choices))
        by_workload = {t.workload: t for plan in plans for t in plan.tasks(TARGET)}
        times = [
            {w: (self.inside(by_workload[w], c),) * rounds for w, (_, c) in choice.items()}
            for choice in choices
        ]
        return self.failed or NetworkTimes(times, (0.25,) * rounds if whole else ())


def a_plan() -> Plan:
    steps = [
        Step(f"v{t.workload.key}{i}", ["x"], [], t.workload, t.template)
        for t in TASKS
        for i in range(t.count)
    ]
    return Plan(steps, {}, {}, [], {}, {}, {}, 1)


def upside_down(task: Task, config: Config) -> float:
    return 1e-9 / bowl(task, config)


def test_the_network_decides_between_the_best_few(tmp_path: Path) -> None:
    farm = NetworkFarm(upside_down)
    result, trials = tune(farm, tmp_path / "log.jsonl", trials=60, plans=[a_plan()])
    assert {t.phase for t in trials} == {"search", "network"}
    assert farm.networks[1:] == [2, 1]  # the two best of each meet once more, then the winners
    assert result.state.whole_s == {1: 0.25}
    for state in result.state.tasks:
        mine = [t for t in trials if t.workload == state.task.workload]
        inside = {t.as_config() for t in mine if t.phase == "network"}
        assert state.default in inside and 3 <= len(inside) <= farm.networks[0]
        best = next(b for b in result.best.values() if b.trial.workload == state.task.workload)
        assert best.config == min(inside, key=lambda c: upside_down(state.task, c))
        assert best.mean_s == pytest.approx(upside_down(state.task, best.config))


def test_kernels_are_measured_alone_where_the_network_cannot_be_timed(tmp_path: Path) -> None:
    farm = NetworkFarm(upside_down, Failed("timeout", "no answer within 120 s"))
    result, trials = tune(farm, tmp_path / "log.jsonl", trials=60, plans=[a_plan()])
    assert {t.phase for t in trials} == {"search", "final"} and farm.networks
    assert "no answer within 120 s" in result.state.notes[0]
    assert {b.trial.phase for b in result.best.values()} == {"final"}
    assert len(result.best) == len(TASKS)


def test_a_slow_network_keeps_to_the_budget(tmp_path: Path) -> None:
    """A turn of a network of 50 ms is expected to take most of a second: few fit in four."""

    class Slow(NetworkFarm):
        turns = 0

        def run_networks(self, plans: Any, choices: Any, **how: Any) -> Any:
            self.turns += len(choices) * how["rounds"]
            return super().run_networks(plans, choices, **how)

    def seconds(task: Task, config: Config) -> float:
        return 0.01 + bowl(task, config)  # five kernels make a network of 50 ms

    farm = Slow(upside_down)
    farm.seconds = seconds
    tune(farm, tmp_path / "log.jsonl", budget_s=4.0, trials=60, plans=[a_plan()])
    assert 1 <= farm.turns <= 20  # and 34 where time is no matter
    without = Slow(upside_down)
    tune(without, tmp_path / "other.jsonl", trials=60, plans=[a_plan()])
    assert without.turns > 20


def test_no_time_is_left_for_the_network(tmp_path: Path) -> None:
    farm = NetworkFarm(upside_down)
    result, trials = tune(farm, tmp_path / "log.jsonl", budget_s=1e-9, plans=[a_plan()])
    assert farm.networks == [] and not [t for t in trials if t.phase == "network"]
    assert "no time left" in result.state.notes[0]


def test_what_a_run_found_before_it_was_stopped_can_win(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    tune(NetworkFarm(bowl), path, trials=12, plans=[a_plan()])

    class Stopped(NetworkFarm):
        def run_networks(self, *args: Any, **how: Any) -> Any:
            raise KeyboardInterrupt

    result, trials = tune(Stopped(bowl), path, trials=150, plans=[a_plan()])
    assert result.reason == "interrupted"
    for best in result.best.values():
        mine = [t for t in trials if t.task_key == best.trial.task_key and t.phase == "search"]
        assert best.config == min(mine, key=lambda t: t.median_s).as_config()


def test_a_network_without_tasks(tmp_path: Path) -> None:
    farm = NetworkFarm(upside_down)
    plan = Plan([], {}, {}, [], {}, {}, {}, 1)
    result, trials = tune(farm, tmp_path / "log.jsonl", [], plans=[plan])
    assert (result.best, trials, farm.networks) == ({}, [], [])


# The real thing, in a process of its own


def start_tune(folder: Path, *more: str) -> subprocess.Popen[str]:
    words = ["tune", MODEL, "-o", str(folder / "net.tvmsep"), "--threads", "1", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "tvmsep.cli", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "TVMSEP_TEST": str(folder)},
    )  # fmt: skip


def wait_for_lines(path: Path, count: int, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, f"no {count} trials within {timeout_s:g} s"
        time.sleep(0.02)


def processes_of(folder: Path) -> list[str]:
    """Command lines of live processes whose environment names the folder."""
    mark = f"TVMSEP_TEST={folder}".encode()
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (proc / "environ").read_bytes().split(b"\0"):
                found.append((proc / "cmdline").read_text())
        except (OSError, UnicodeDecodeError):
            continue  # another user's, or gone by now
    return found


def assert_all_end(folder: Path, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while left := processes_of(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for orphans in /proc")


@linux
def test_kill_9_in_mid_run_then_go_on(tmp_path: Path) -> None:
    log = tmp_path / "net.jsonl"
    first = start_tune(tmp_path, "--budget", "5m")
    try:
        wait_for_lines(log, 12)
        assert len(processes_of(tmp_path)) > 2  # else the check below proves nothing
    finally:
        first.kill()
        first.communicate(timeout=20)
    assert_all_end(tmp_path)
    assert not (tmp_path / "net.tvmsep").exists()
    before = read_log(log)
    assert len(before) >= 12
    second = start_tune(tmp_path, "--trials", "12")
    out, err = second.communicate(timeout=180)
    assert second.returncode == 0, err
    after = read_log(log)
    assert after[: len(before)] == before
    tried = search(after)
    assert len(tried) >= len(search(before)) + 12
    assert max(Counter(tried).values()) == 1
    assert "wrote" in out and (tmp_path / "net.tvmsep").exists()
    assert_all_end(tmp_path)


@linux
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_writes_the_best_so_far_and_leaves_no_process(
    tmp_path: Path, stop: signal.Signals
) -> None:
    run = start_tune(tmp_path, "--budget", "5m")
    try:
        wait_for_lines(tmp_path / "net.jsonl", 10)
        run.send_signal(stop)
        out, err = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 130, err
    assert "Traceback" not in err and "best so far" in err
    assert "wrote" in out
    assert_all_end(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.jsonl", "net.tvmsep"]
    assert search(read_log(tmp_path / "net.tvmsep"))  # the lines that were used lie inside


@linux
def test_a_second_interrupt_while_it_compiles_is_no_traceback(tmp_path: Path) -> None:
    run = start_tune(tmp_path, "--budget", "5m")
    try:
        wait_for_lines(tmp_path / "net.jsonl", 10)
        run.send_signal(signal.SIGINT)
        assert run.stderr is not None
        said = ""
        while "compiling" not in said:
            line = run.stderr.readline()
            assert line, said
            said += line
        time.sleep(0.3)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 130 and "Traceback" not in err, err
    assert_all_end(tmp_path)


def test_an_interrupt_that_became_a_runtime_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tvmsep.cli import app as commands
    from tvmsep.cli import interrupt, main

    def app(**_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise RuntimeError from error

    monkeypatch.setattr(commands, "app", app)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 130 and capsys.readouterr().err == "interrupted\n"
        interrupt.survived()
        monkeypatch.setattr(
            commands, "app", lambda **_: (_ for _ in ()).throw(RuntimeError("ours"))
        )
        with pytest.raises(RuntimeError, match="ours"):
            main()
    finally:
        signal.signal(signal.SIGINT, before)


def test_elapsed_time_stops_at_the_end() -> None:
    state = TuneState([], time.monotonic() - 2.0, 10.0, None)
    assert 1.9 < state.elapsed_s < 3.0
    ended = dataclasses.replace(state, ended=state.started + 5.0)
    assert ended.elapsed_s == pytest.approx(5.0)
