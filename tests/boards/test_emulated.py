"""Cross-built code on an emulated aarch64 board: it computes what the model computes, over RPC too.

Times from an emulator say nothing about speed, and none is looked at.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from boards import emulated
from boards_kit import Running, children, free_port, run, running, until

import tvmsep
from tvmsep.api import prepare
from tvmsep.check import ROUNDINGS, relative_errors, weights_alone
from tvmsep.contracts import Trial
from tvmsep.graph import evaluate
from tvmsep.logs import read_log
from tvmsep.targets import load_target

SMALL_V1 = "mobilenet_v1:width=0.25,resolution=128"
LIMIT, ROUNDING = 1e-5, 2e-5
"""Largest error, relative to the largest output: against the same network built for this host, and
against float64, where fp32 alone makes 1.3e-5 of V1's random weights (1.7e-5 in onnxruntime)."""

IN_GUEST = """
import sys, numpy as np
from tvmsep.bundle import Bundle
path, x, out, *counts = sys.argv[1:]
x = np.load(x)
for n in map(int, counts):
    with Bundle.load(path, threads=n) as net:
        np.save(f"{out}{n}.npy", net(x))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("board")


@pytest.fixture(scope="module")
def guest(folder: Path) -> Path:
    return emulated.python(folder)


@pytest.mark.parametrize(
    ("model", "layout", "dtype"),
    [
        (SMALL_V1, None, "float32"),
        ("mobilenet_v2:resolution=64", "nhwc", "float32"),
        ("mobilenet_v3_large:resolution=64", None, "float32"),
        ("efficientnet_lite0:resolution=64", "nchw8c", "float32"),
        ("mobilenet_v3_large:resolution=64", None, "float16"),
        (SMALL_V1, "nhwc", "float16"),
    ],
)
def test_a_cross_built_network_is_right(
    model: str, layout: str | None, dtype: str, guest: Path, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "net.tvmsep"
    core = "rpi5" if dtype == "float16" else "aarch64"
    hardware = load_target(str(emulated.target(folder, core)))
    report = tvmsep.build(
        model, target=hardware, threads=[1, 2], out=path, layout=layout, dtype=dtype
    )
    assert report.check is None
    prepared = prepare(model, target=hardware, threads=[1])
    (name,) = prepared.graph.inputs
    x = np.random.default_rng(3).standard_normal(prepared.graph.inputs[name], dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    script = tmp_path / "run.py"
    script.write_text(IN_GUEST)
    done = subprocess.run(
        [guest, script, path, tmp_path / "x.npy", tmp_path / "y", "1", "2"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tvmsep.build(model, threads=[1], logs=(), out=tmp_path / "here.tvmsep")
    with tvmsep.Bundle.load(tmp_path / "here.tvmsep") as net:
        here = [net(x)]
    exact = evaluate(prepared.graph, {name: x})
    for threads in (1, 2):
        got = [np.load(tmp_path / f"y{threads}.npy")]
        if dtype == "float16":
            alone = weights_alone(prepared.graph, [x], exact, dtype)
            assert 1e-5 < relative_errors(got, exact) <= ROUNDINGS * alone, threads
            continue
        assert relative_errors(got, here) <= LIMIT, threads
        assert relative_errors(got, exact) <= ROUNDING, threads


@pytest.fixture
def board(guest: Path, tmp_path: Path) -> Iterator[tuple[str, Running]]:
    """A tracker here, and `tvmsep board serve` on the emulated board: (tracker, the latter)."""
    port = free_port()
    at = f"127.0.0.1:{port}"
    words = ("board", "serve", "--key", "emulated", "--tracker", at, "--port", "0")
    with running(tmp_path, "tracker", "--port", str(port)):
        served = Running(tmp_path, *words, "--threads", "1", python=str(guest))
        try:
            served.hears("registered as emulated")
            yield at, served
        finally:
            if served.proc.poll() is None:
                served.stop()


def measured(log: Path) -> list[Trial]:
    return [t for t in read_log(log) if t.failure is None] if log.exists() else []


def test_tuned_over_rpc_and_killed_in_the_middle(
    board: tuple[str, Running], guest: Path, folder: Path, tmp_path: Path
) -> None:
    at, served = board
    target = emulated.target(folder)
    out = tmp_path / "net.tvmsep"
    log = out.with_suffix(".jsonl")
    words = ["tune", SMALL_V1, "--target", str(target), "--rpc", at, "--key", "emulated"]
    words += ["--threads", "1", "--cold", "-o", str(out)]
    with running(tmp_path, *words, "--trials", "5") as tuning:
        until(lambda: len(measured(log)) >= 2 or tuning.proc.poll() is not None, "two trials", 240)
        servers = children(served.proc.pid, "tvmsep.measure.server")
        assert servers, "no server on the board"
        for pid in servers:
            os.kill(pid, signal.SIGKILL)
        assert tuning.proc.wait(timeout=600) == 0, tuning.err.read_text()
    first = read_log(log)
    assert {t.target for t in first} == {"emulated"}
    assert len({(t.workload, str(t.config)) for t in measured(log)}) >= 3
    built = tmp_path / "built.tvmsep"
    words = ["build", SMALL_V1, "--target", str(target), "--threads", "1", "--log", str(log)]
    again = run(*words, "-o", str(built), "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["tuned_tasks"] >= 1
