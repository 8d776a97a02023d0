"""Scripts that hurt, kill and crowd whole tuning runs, and check themselves; and two tables."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from campaign.deeds import KINDS

from tvmsep.contracts import Config
from tvmsep.measure import Failed, Measured

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODEL = "mobilenet_v1:width=0.25,resolution=32"


def script(name: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *words],
        capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_fault_of_each_kind() -> None:
    said = script("faults.py", "--faults", str(len(KINDS)), "--model", MODEL, "--rounds", "0")
    for kind in KINDS:
        assert f"| {kind} | 1 |" in said
    assert said.count("| holds |") == 4 and "DOES NOT" not in said


def test_killed_and_resumed() -> None:
    said = script("resume.py", "--kills", "3", "--span", "9")
    assert "3 kills" in said and "0 lost, 0 repeated; files left: none" in said


def test_more_boards_do_more() -> None:
    said = script("scaling.py", "--boards", "1,4", "--seconds", "3", "--no-build")
    rows = [line.split("|") for line in said.splitlines() if line.startswith("| ")][1:]
    one, four = (int(row[2]) for row in rows)
    assert 2 * one < four <= 4.2 * one  # they wait, and compute nothing


def test_tables_of_forms_in_turns() -> None:
    said = script("tiles.py", MODEL, "--tiles", "4x2", "--unroll", "4,2", "--rounds", "2")
    rows = [line for line in said.splitlines() if "pointwise" in line]
    assert len(rows) > 5 and "4x2 u2" in said
    assert any(len(re.findall(r"\b\d+\.\d{3}\b", row)) == 2 for row in rows), said
    said = script("prefetch.py", MODEL, "--rounds", "2", "--defaults")
    assert "the network" in said and "ratio" in said


def test_the_campaign_would_see_a_lost_trial_and_one_measured_twice() -> None:
    from faults import against_the_log
    from test_tuner import a_trial

    trial = a_trial(times_s=(1.0,), program="p")
    key, config = trial.task_key, Config(trial.config)
    good = (key, config, Measured((1.0,), 0.0))
    assert all(c.holds for c in against_the_log([good], [trial]))
    assert [c.holds for c in against_the_log([good, good], [trial])] == [False, False]
    assert [c.holds for c in against_the_log([good], [trial, trial])] == [False, False]
    other = (key, config, Failed("crash", ""))
    assert [c.holds for c in against_the_log([other], [trial])] == [False, True]
    assert [c.holds for c in against_the_log([], [trial])] == [False, True]
