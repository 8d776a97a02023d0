"""The benchmark for GPUs: words, refusals without a device, and its rounds with fake engines."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import cuda
import pytest
from engines import Engine
from engines.gpu import GPU_ENGINES
from harness.driver import on_device
from harness.runner import BENCHMARKS, Runner

from tvmsep.bundle import device
from tvmsep.contracts import InputError
from tvmsep.targets import load_target

TESTS = Path(__file__).parent


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--engines", "glow"], "no engine 'glow'"),
        (["--dtypes", "float32,int4"], "no dtype 'int4'"),
        (["--budget", "soon"], "--budget 'soon'"),
        (["--log", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_arguments_refused(words: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        cuda.parse(words)


def test_tensorrt_only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda _: None)
    assert cuda.parse([]).engines == [n for n in GPU_ENGINES if n != "tensorrt"]
    with pytest.raises(InputError, match="pip install tensorrt torch"):
        cuda.parse(["--engines", "tvmsep,tensorrt"])
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda _: object())
    assert cuda.parse([]).engines == list(GPU_ENGINES)


def test_without_a_device_nothing_is_installed_or_tuned(tmp_path: Path) -> None:
    if device.device_misfit(load_target("cuda").gpu) is None:
        pytest.skip("there is a device")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "cuda.py"), "--environments", str(tmp_path)],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: nothing can be measured here: ")
    assert not list(tmp_path.iterdir())


def test_the_target_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "emulated", lambda: False)
    wanted = {75: "t4", 80: "a100", 86: "rtx-30", 87: "jetson-orin", 89: "rtx-40", 90: "h100",
              100: "cuda"}  # fmt: skip
    for here, name in wanted.items():
        monkeypatch.setattr(device, "capability", lambda here=here: here)
        assert cuda.find_target(None).name == name
    for here, name, says in (
        (75, "jetson-orin", "it is for sm_87, the device here is sm_75"),
        (86, "a100", "a100 is tuned for sm_80, the device is sm_86"),
    ):
        monkeypatch.setattr(device, "capability", lambda here=here: here)
        with pytest.raises(InputError, match=f"nothing can be measured here: {says}"):
            cuda.find_target(name)
    with pytest.raises(InputError, match="rpi4 has no GPU"):
        cuda.find_target("rpi4")
    monkeypatch.setattr(device, "emulated", lambda: True)
    with pytest.raises(InputError, match="emulated"):
        cuda.find_target(None)


def test_runs_on_a_device_are_many_enough() -> None:
    asked: list[int] = []

    def run(runs: int) -> list[float]:
        asked.append(runs)
        return [1e-3] * runs

    times, _ = on_device(run, 50)
    assert len(times) == sum(n for n in asked if n == 50) >= 50


def test_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes = {
        name: Engine(name, "fake_gpu_engine", "onnxruntime", ours=name == "tvmsep")
        for name in ("tvmsep", "torch", "torch-compile", "tensorrt")
    }
    monkeypatch.setattr(cuda, "GPU_ENGINES", fakes)
    monkeypatch.setattr(cuda, "Runner", partial(Runner, paths=(BENCHMARKS, TESTS)))
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda _: object())
    tuned: list[tuple[str, str]] = []

    def tune(spec: str, model: Path, dtype: str, target: object, args: object) -> list[str]:
        tuned.append((spec, dtype))
        return []

    monkeypatch.setattr(cuda, "tune", tune)
    out = tmp_path / "out.json"
    network = "mobilenet_v1:width=0.25,resolution=32"
    args = cuda.parse(["--networks", network, "--rounds", "1", "--json", str(out), "--runs", "20"])
    folder = tmp_path / "work"
    folder.mkdir()
    cuda.compare_all(args, load_target("t4"), folder)
    assert tuned == [(network, "float32"), (network, "float16")]
    first, second = json.loads(out.read_text())["networks"]
    rows = {r["turn"]["engine"]: r for r in first["rows"]}
    # torch-compile is quickest and wrong in float32: torch is the best peer; right in float16.
    assert rows["torch-compile"]["wrong"] and rows["tvmsep"]["best_peer"] == "torch"
    assert rows["tvmsep"]["ratio"] == pytest.approx(0.5)
    halves = {r["turn"]["engine"]: r for r in second["rows"]}
    assert not halves["torch-compile"]["wrong"]
    assert halves["tvmsep"]["ratio"] == pytest.approx(2.0)
    assert "no such device" in first["left_out"]["tensorrt/1"]
    printed = capsys.readouterr().out
    assert "| torch |" in printed and "WRONG OUTPUT" in printed
