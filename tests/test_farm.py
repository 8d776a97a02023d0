"""Several boards under one tracker: they share the work, and may die, hang, return and be slow."""

from __future__ import annotations

import contextlib
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from farm_kit import KEY, BoardServer, Tracker, children

from tvmsep import api
from tvmsep.codegen import kernel
from tvmsep.contracts import BoardError, Config, Target, Task, Workload
from tvmsep.logs import read_log
from tvmsep.measure import Built, Failed, Farm, Measured, builder, dispatch, host, roster, session
from tvmsep.measure.slot import LONG_SESSION_S, REMOTE_SESSION_S, Lost, Slot
from tvmsep.rpc import client
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import load_target
from tvmsep.tuner import TuneState

if sys.platform != "linux":
    pytest.skip("these tests look at processes through /proc", allow_module_level=True)

W = Workload(
    op="pointwise", ic=32, oc=40, ih=7, iw=7, in_block=16, out_block=16, epilogue=("bias", "relu6")
)
HANG = 'for i in range(2000000000):\n    T.evaluate(T.call_extern("int32", "usleep", 10))'
ABORT = 'T.evaluate(T.call_extern("int32", "abort"))'
SOME_MS = 'T.evaluate(T.call_extern("int32", "usleep", 10000))\n'
RUN_TIMEOUT_S = 1.5


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("local")


@pytest.fixture(scope="module")
def task(target: Target) -> Task:
    return Task(workload=W, target=target.name, threads=1, template="pointwise@1")


@pytest.fixture(scope="module")
def good(target: Target, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Built:
    config = TEMPLATES["pointwise"].default(W, target, 1)
    func = kernel(W, target, "pointwise", config)
    return builder.link_candidate(func, task, target, tmp_path_factory.mktemp("good"))


@pytest.fixture
def candidate(target: Target, task: Task, tmp_path: Path) -> Callable[[str], Built]:
    """Makes a library out of a kernel body in TVMScript; `x`, `w`, `bias` and `out` are given."""

    def make(body: str) -> Built:
        import tvm

        shapes = {"x": W.in_shape, "w": (3, 32, 16), "bias": (3, 16), "out": W.out_shape}
        params = ", ".join(f'{n}: T.Buffer({s}, "float32")' for n, s in shapes.items())
        head = f"@T.prim_func(s_tir=True)\ndef main({params}):\n"
        func = tvm.script.from_source(head + textwrap.indent(body, "    "))
        return builder.link_candidate(func, task, target, tmp_path)

    return make


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits for boards that are a process away."""
    monkeypatch.setattr(dispatch, "POLL_S", 0.2)
    monkeypatch.setattr(dispatch, "RETRY_S", 0.1)
    monkeypatch.setattr(dispatch, "COMEBACK_S", 8.0)
    monkeypatch.setattr("tvmsep.measure.slot.HANDSHAKE_S", 2.0)


@contextlib.contextmanager
def park(count: int, delays: tuple[float, ...] = ()) -> Iterator[tuple[Tracker, list[BoardServer]]]:
    tracker, boards = Tracker(), []
    try:
        for i in range(count):
            boards.append(BoardServer(tracker, 1, delays[i] if i < len(delays) else 0.0))
        yield tracker, boards
    finally:
        for board in boards:
            board.close()
        tracker.close()


def a_farm(target: Target, tracker: Tracker, **how: float) -> Farm:
    return Farm(
        target, builders=0, tracker=tracker.place, key=KEY, run_timeout_s=RUN_TIMEOUT_S,
        connect_timeout_s=how.get("connect_timeout_s", 5.0),
    )  # fmt: skip


def far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each board says that it is a machine of its own, so that they measure at one time."""
    names = iter(range(1000))
    monkeypatch.setattr(host, "machine_of", lambda reported, address: f"machine-{next(names)}")


def until(true: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.02)


def test_boards_share_the_work_and_none_is_asked_twice(
    target: Target, task: Task, good: Built, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    far_away(monkeypatch)
    with park(3) as (tracker, boards):
        with a_farm(target, tracker) as farm:
            assert farm.connect().name in {b.name for b in boards}
            answers = list(farm.run([(task, Config(), good)] * 60))
            assert farm.overlaps
            assert all(isinstance(a, Measured) for a in answers), answers
            by = Counter(a.board for a in answers)
            assert set(by) == {b.name for b in boards} and sum(by.values()) == 60
            assert sum(len(children(b.proc.pid)) for b in boards) == 3
        until(lambda: not any(children(b.proc.pid) for b in boards))  # no session outlives it


def test_loopback_boards_are_this_host_and_are_timed_in_turn(
    target: Target, task: Task, good: Built, quick: None
) -> None:
    with park(2) as (tracker, _), a_farm(target, tracker) as farm:
        board = farm.connect()
        assert board.local and board.machine == host.host_id()
        assert not farm.overlaps
        assert all(isinstance(a, Measured) for a in farm.run([(task, Config(), good)] * 6))


def test_what_is_on_loopback_and_says_nothing_is_this_host() -> None:
    here = host.host_id()
    assert host.machine_of("", "127.0.0.1") == host.machine_of("", "localhost") == here
    assert host.machine_of("", "10.0.0.7") != host.machine_of("", "10.0.0.8")
    assert host.machine_of("pi-boot", "127.0.0.1") == "pi-boot"  # the end of a tunnel


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_board_that_goes_away_in_mid_run_loses_nothing(
    how: str, target: Target, task: Task, candidate: Callable[[str], Built], good: Built,
    quick: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    far_away(monkeypatch)
    with park(3) as (tracker, boards), a_farm(target, tracker) as farm:
        farm.connect()
        victim = boards[1]
        answers: dict[int, Measured | Failed] = {}
        running = farm.start([(task, Config(), good)] * 150)
        for at, answer in running:
            assert at not in answers
            answers[at] = answer
            if len(answers) == 20:
                until(lambda: victim.sessions > 0)
                victim.kill() if how == "kill" else victim.freeze()
            if len(answers) == 100 and how == "kill":
                victim.start()
        assert sorted(answers) == list(range(150))
        assert not [a for a in answers.values() if isinstance(a, Failed)]
        assert {b.name for b in boards} == {a.board for a in answers.values()}


def test_a_restarted_tracker_changes_nothing(
    target: Target, task: Task, good: Built, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    far_away(monkeypatch)
    with park(2) as (tracker, boards), a_farm(target, tracker) as farm:
        farm.connect()
        seen = 0
        for _, answer in farm.start([(task, Config(), good)] * 60):
            assert isinstance(answer, Measured), answer
            seen += 1
            if seen == 10:
                tracker.close()
            if seen == 30:
                again = Tracker(tracker.place[1])
                for board in boards:
                    board.tracker = again
                    again.add(board.place)
        assert seen == 60
        again.close()


def test_a_slow_board_gets_less(
    target: Target, task: Task, good: Built, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    far_away(monkeypatch)
    with park(2, (0.0, 0.02)) as (tracker, boards), a_farm(target, tracker) as farm:
        farm.connect()
        list(farm.run([(task, Config(), good)] * 2))
        until(lambda: boards[1].sessions > 0)
        answers = list(farm.run([(task, Config(), good)] * 60))
        assert all(isinstance(a, Measured) for a in answers), answers
        by = Counter(a.board for a in answers)
        assert 0 < by[boards[1].name] < by[boards[0].name]


@pytest.mark.parametrize(("body", "failure"), [(HANG, "timeout"), (ABORT, "crash")])
def test_a_candidate_that_kills_two_boards_is_quarantined(
    body: str, failure: str, target: Target, task: Task, candidate: Callable[[str], Built],
    good: Built, quick: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    far_away(monkeypatch)
    with park(2) as (tracker, boards), a_farm(target, tracker) as farm:
        farm.connect()
        list(farm.run([(task, Config(), good)] * 4))
        jobs = [(task, Config(), b) for b in (good, candidate(body), good, good, good)]
        answers = list(farm.run(jobs))
        bad = answers.pop(1)
        assert isinstance(bad, Failed) and bad.failure == failure
        assert "quarantined: sessions ended under it 2 times" in bad.detail
        assert all(isinstance(a, Measured) for a in answers), answers


def test_a_board_that_takes_no_uploads_leaves_the_work_to_others(
    target: Target, task: Task, good: Built, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    far_away(monkeypatch)
    with park(2) as (tracker, boards), a_farm(target, tracker) as farm:
        full = boards[0].name
        real = Slot.call

        def call(slot: Slot, fn: Any, *args: Any, **how: Any) -> Any:
            if slot.board.name == full and fn is session.measure:
                return Failed("upload_error", "No space left on device")
            return real(slot, fn, *args, **how)

        farm.connect()
        list(farm.run([(task, Config(), good)] * 4))
        until(lambda: farm.boards == 2)
        monkeypatch.setattr(Slot, "call", call)
        answers = list(farm.run([(task, Config(), good)] * 40))
        assert {a.board for a in answers if isinstance(a, Measured)} == {boards[1].name}
        assert not [a for a in answers if isinstance(a, Failed)]


def test_a_network_gets_a_session_that_lasts(target: Target, quick: None) -> None:
    """Its variants take turns in one session, longer than a candidate's may be."""
    with park(1) as (tracker, boards), a_farm(target, tracker) as farm:
        farm.connect()
        limits = [farm._ask(lambda slot: slot.session_s, s) for s in (0.0, LONG_SESSION_S, 0.0)]
        assert limits == [REMOTE_SESSION_S, LONG_SESSION_S, LONG_SESSION_S]
        until(lambda: boards[0].sessions >= 2)  # its server tells of them when it gets to it
        assert boards[0].sessions == 2


def test_all_boards_gone(
    target: Target, task: Task, good: Built, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "COMEBACK_S", 2.0)
    with park(1) as (tracker, boards), a_farm(target, tracker, connect_timeout_s=0.5) as farm:
        farm.connect()
        boards[0].kill()
        answers = list(farm.run([(task, Config(), good)] * 3))
        failures = [a.failure for a in answers if isinstance(a, Failed)]
        assert failures == ["link_lost", "board_lost", "board_lost"]


def test_a_tracker_with_nothing_to_lend(target: Target) -> None:
    with park(0) as (tracker, _), a_farm(target, tracker, connect_timeout_s=0.5) as farm:
        with pytest.raises(BoardError, match=rf"board {KEY} .*0\.5 s"):
            farm.connect()


def test_what_is_no_tracker_is_told_so() -> None:
    listener = Tracker()
    listener.close()
    with pytest.raises(BoardError, match="refused"):
        client.boards(listener.place, KEY)


def test_boards_of_another_kind_are_left_out() -> None:
    fast = [("A", 100e9), ("A", 96e9), ("A", 104e9)]
    for odd in (("A", 120e9), ("A", 80e9), ("B", 100e9)):
        group = roster.largest([odd, *fast])
        assert group in fast and not roster.alike(odd, group)
    assert roster.largest([("A", 50e9), ("A", 100e9)]) == ("A", 100e9)  # equals: the fastest


def test_a_board_that_keeps_losing_sessions_is_quarantined(
    target: Target, task: Task, good: Built, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of its losses is held against a candidate, and it may come back."""
    far_away(monkeypatch)
    with park(2) as (tracker, boards), a_farm(target, tracker) as farm:
        farm.connect()
        list(farm.run([(task, Config(), good)] * 4))
        until(lambda: farm.boards == 2)
        bad, real = boards[0].name, Slot.measure
        tried: list[float] = []

        def measure(slot: Slot, *args: Any) -> Measured | Failed:
            if slot.board.name == bad and len(tried) < roster.STRIKES:
                tried.append(time.monotonic())
                time.sleep(0.3)  # meanwhile the other one measures
                raise Lost("link_lost", "cut")
            time.sleep(0.05)
            return real(slot, *args)

        monkeypatch.setattr(Slot, "measure", measure)
        monkeypatch.setattr(roster, "QUARANTINE_S", 3.0)
        answers = list(farm.run([(task, Config(), good)] * 120))
        assert all(isinstance(a, Measured) for a in answers), answers
        assert len(tried) == roster.STRIKES
        (note,) = farm.notes
        assert f"{bad} is quarantined for 3 s: 3 sessions in a row" in note
        until(lambda: boards[0].sessions >= 2)
        assert {a.board for a in answers} == {b.name for b in boards}  # before, and again after


def test_an_odd_board_is_left_out_with_a_line(
    target: Target, task: Task, good: Built, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    far_away(monkeypatch)
    with park(3) as (tracker, boards):
        odd = boards[2].name

        def reference(library: Path, target: Target, limit_s: float, slot: Slot) -> float:
            return 50e9 if slot.board.name == odd else 100e9

        monkeypatch.setattr("tvmsep.measure.errands.reference", reference)
        with Farm(target, builders=1, tracker=tracker.place, key=KEY) as farm:
            assert farm.peak_flops_per_core() == 100e9
            (note,) = farm.notes
            assert f"{odd} is left out" in note and "50.0 GFLOP/s, the others' at 100.0" in note
            answers = list(farm.run([(task, Config(), good)] * 40))
            assert {a.board for a in answers} == {b.name for b in boards[:2]}
            until(lambda: not children(boards[2].proc.pid))  # it is free for others


def test_a_board_that_comes_late_takes_part(
    target: Target, task: Task, good: Built, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    far_away(monkeypatch)
    with park(1) as (tracker, boards), a_farm(target, tracker) as farm:
        farm.connect()
        by: Counter[str] = Counter()
        for _, answer in farm.start([(task, Config(), good)] * 300):
            by[answer.board] += 1
            if len(boards) == 1:
                boards.append(BoardServer(tracker, 1))
        assert sum(by.values()) == 300 and set(by) == {b.name for b in boards}


def test_a_model_is_tuned_on_several_boards(tmp_path: Path) -> None:
    """All of it: loopback boards in turn, one of them killed, the network timed on one board."""
    with park(2) as (tracker, boards):
        killed: list[int] = []

        def progress(state: TuneState) -> None:
            if state.trials == 30 and not killed:
                killed.append(boards[0].proc.pid)
                boards[0].kill()

        report = api.tune(
            "mobilenet_v1:width=0.25,resolution=32", out=tmp_path / "net.tvmsep", threads=1,
            tracker=tracker.place, key=KEY, builders=1, trials=60, progress=progress,
        )  # fmt: skip
        assert killed and report.result is not None and report.result.reason == "trials"
        until(lambda: not children(boards[1].proc.pid))
    trials = read_log(tmp_path / "net.jsonl")
    assert {t.board for t in trials} <= {b.name for b in boards} and all(t.cpu for t in trials)
    search = [(t.task_key, t.as_config()) for t in trials if t.phase == "search"]
    assert len(search) == len(set(search)) == 60
    assert not [t.failure for t in trials if t.failure]
    assert {t.board for t in trials if t.phase == "network"} == {boards[1].name}
    assert report.check is not None and sorted(p.name for p in tmp_path.iterdir()) == [
        "net.jsonl",
        "net.tvmsep",
    ]
