"""Comparing on boards that a tracker lends: on one of them, in fresh sessions."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from farm_kit import KEY, BoardServer, Tracker
from test_cli import refused, tvmsep

from tvmsep import api
from tvmsep.compare import board as there
from tvmsep.compare import run
from tvmsep.contracts import BoardError
from tvmsep.measure import Farm
from tvmsep.measure.errands import _renew
from tvmsep.measure.load import Load, between
from tvmsep.measure.slot import Slot
from tvmsep.targets import load_target

if sys.platform != "linux":
    pytest.skip("boards are looked at through /proc", allow_module_level=True)

MODEL = "mobilenet_v1:width=0.25,resolution=32"
TASK = "dense 1x1 256>1000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("there")
    api.build(MODEL, out=home / "a.tvmsep", threads=[1], logs=())
    return home


@contextlib.contextmanager
def park(count: int) -> Iterator[tuple[Tracker, list[BoardServer]]]:
    tracker, boards = Tracker(), []
    try:
        boards += [BoardServer(tracker, 1) for _ in range(count)]
        yield tracker, boards
    finally:
        for board in boards:
            board.close()
        tracker.close()


def where(tracker: Tracker) -> list[str]:
    host, port = tracker.place
    return ["--rpc", f"{host}:{port}", "--key", KEY]


def renewed(slot: Slot) -> str:
    _renew(slot)
    return slot.board.name


def test_a_comparison_stays_on_one_board() -> None:
    target = load_target("local")
    with park(2) as (tracker, boards):
        with Farm(target, builders=0, tracker=tracker.place, key=KEY, one_board=True) as farm:
            names = [farm._ask(renewed) for _ in range(6)]
        assert len(set(names)) == 1 and names[0] in {b.name for b in boards}
        assert all(b.sessions for b in boards)  # the other one was lent too, and given back


def test_it_ends_where_its_board_does() -> None:
    target = load_target("local")
    with park(2) as (tracker, boards):
        with Farm(
            target, builders=0, tracker=tracker.place, key=KEY, one_board=True,
            connect_timeout_s=3.0,
        ) as farm:  # fmt: skip
            home = farm.connect().name
            next(b for b in boards if b.name == home).kill()
            lost = farm.measure_turns([], [])
        assert (
            not isinstance(lost, tuple) and home in lost.detail and "not lent again" in lost.detail
        )
        assert isinstance(there._error(lost, f"board {home}"), BoardError)


def test_networks_are_compared_on_a_board(folder: Path) -> None:
    with park(2) as (tracker, boards):
        found = run.compare(
            [str(folder / "a.tvmsep"), "default"], build=api.build, threads=[1], rounds=3,
            tracker=tracker.place, key=KEY, claims=["a <= 1000 * default"],
        )  # fmt: skip
        sessions = [b.sessions for b in boards]
        assert found.board in {b.name for b in boards} and max(sessions) >= 3
    assert found.machine["board"] == found.board and found.machine["cpu"] != "unknown"
    assert [(e.name, len(e.rounds_s)) for e in found.entrants] == [("a", 3), ("default", 3)]
    assert found.largest_difference < 1e-6 and found.pairs[0].verdict == "cant_tell"
    assert not found.claims[0].holds  # three rounds show nothing


def test_kernels_are_compared_on_a_board(folder: Path) -> None:
    with park(1) as (tracker, boards):
        done = tvmsep(
            "compare", "default", "default", "--model", MODEL, "--task", TASK, "--threads", "1",
            "--rounds", "2", "--json", *where(tracker), cwd=folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["board"] == boards[0].name and found["board"] in done.stderr
        assert [len(e["rounds_s"]) for e in found["entrants"]] == [2, 2]


def test_what_cannot_run_there_is_refused(folder: Path) -> None:
    with park(1) as (tracker, _):
        for engine in ("onnxruntime", "stock-tvm", "metaschedule:64"):
            refused(
                "compare", "a.tvmsep", engine, *where(tracker), cwd=folder,
                says=[f"{engine} cannot be measured over RPC", "only bundles, logs and default"],
            )  # fmt: skip
        other = folder / "pi.tvmsep"
        api.build(MODEL, out=other, threads=[1], target="rpi4", logs=())
        refused(
            "compare", "a.tvmsep", "pi.tvmsep", *where(tracker), "--threads", "1", cwd=folder,
            says=["built for target rpi4", "--target"],
        )  # fmt: skip
        other.unlink()


def test_a_board_says_what_else_it_did() -> None:
    before = {"ticks": [100, 0, 0, 900, 0, 0, 0, 0], "own": 50, "mhz": 1500.0, "hot": 3}
    after = {"ticks": [200, 0, 50, 940, 0, 0, 0, 10], "own": 90, "mhz": 600.0, "hot": 5}
    assert between(before, after, 2.0) == Load(2.0, 0.05, 0.55, 600.0, 2)
    assert between(None, after, 2.0) == Load(2.0)
    bare = {"ticks": None, "own": 0, "mhz": None, "hot": None}
    assert between(bare, bare, 2.0) == Load(2.0)
    with park(1) as (tracker, _):
        with Farm(load_target("local"), builders=0, tracker=tracker.place, key=KEY) as farm:
            read = farm._ask(Slot.reading)
    assert set(read) == set(bare) and read["own"] >= 0 and len(read["ticks"]) == 8
