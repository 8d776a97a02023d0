"""The benchmark against other engines: words, rounds, sums and processes, with a fake engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import x86
from engines import ENGINES, Engine
from harness import environment, report
from harness.driver import MIN_RUNS, timed
from harness.model import Network, check_change, relative_error, specs, write_network
from harness.process import Failure, run
from harness.protocol import write_json
from harness.rounds import Sample, Series, Turn, order, play, summarise
from harness.runner import BENCHMARKS, Runner

from tvmsep.contracts import InputError
from tvmsep.targets import host_cores, load_target

TESTS = Path(__file__).parent


def sample(median_s: float, error: float = 0.0, busy: float = 1.0) -> Sample:
    return Sample((median_s,) * 5, busy, error)


# Words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("mobilenet_v1", ["mobilenet_v1"]),
        ("a:width=0.5,resolution=96,b", ["a:width=0.5,resolution=96", "b"]),
        ("dir/x.onnx, a:seed=1,b:width=1", ["dir/x.onnx", "a:seed=1", "b:width=1"]),
    ],
)
def test_networks_are_told_apart(text: str, found: list[str]) -> None:
    assert specs(text) == found


@pytest.mark.parametrize("text", ["", "a,,b", "width=0.5", "a,width=0.5"])
def test_networks_that_make_no_sense(text: str) -> None:
    with pytest.raises(InputError, match="--networks"):
        specs(text)


def test_defaults() -> None:
    args = x86.parse([])
    assert args.networks == ["mobilenet_v1", "mobilenet_v2"]
    assert args.engines == list(ENGINES)
    assert args.threads == sorted({1, host_cores()})
    assert (args.rounds, args.batch, args.isa, args.log) == (3, 1, "native", None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--engines", "onnxruntime,glow"], "no engine 'glow'"),
        (["--threads", "1,x"], "--threads"),
        (["--threads", "100000"], "cores"),
        (["--runs", "3"], "at least 4"),
        (["--log", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--json", "no/such/folder.json"], "cannot write no/such/folder.json"),
        (["--json", "/"], "cannot write /: it is a folder"),
    ],
)
def test_arguments_refused(words: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        x86.parse(words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rounds", "0"], "'0' is not a whole number above 0"),
        (["--isa", "sse"], "invalid choice: 'sse'"),
        (["--networks", "nonesuch", "--engines", "tvmsep"], "no network nonesuch"),
        (["--networks", "mobilenet_v1:width=9", "--engines", "tvmsep"], "width=9 is outside"),
    ],
)
def test_mistakes_are_one_line(words: list[str], says: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "x86.py"), *words, "--json", "out.json"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1 and done.stderr.splitlines()[-1].startswith("error: ")
    assert says in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


def test_every_engine_is_pinned_and_has_its_file() -> None:
    for engine in ENGINES.values():
        path = BENCHMARKS / Path(*engine.module.split(".")).with_suffix(".py")
        text = path.read_text()
        assert "def prepare(job: Job)" in text and "def load(job: Job)" in text, path
        assert all("==" in r for r in engine.requirements), engine.name
        assert engine.ours == (not engine.requirements), engine.name
        assert engine.avx2, engine.name
        assert engine.limited or not engine.avx2_env, engine.name


def test_pins_are_the_packages_own() -> None:
    project = tomllib.loads((BENCHMARKS.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ours = [*project["dependencies"], *extras["tune"], *extras["torch"]]
    exact = dict(r.partition(";")[0].strip().split("==") for r in ours if "==" in r)
    shared = {"apache-tvm", "apache-tvm-ffi", "onnxruntime", "torch"}
    assert shared <= set(exact)
    for engine in ENGINES.values():
        for requirement in engine.requirements:
            name, version = requirement.split("==")
            assert name not in shared or exact[name] == version, engine.name


# Rounds

TURNS = [Turn(e, n) for e in ("a", "b", "c") for n in (1, 2)]


def test_every_round_has_every_turn_once_in_another_order() -> None:
    rounds = list(order(TURNS, 20, seed=1))
    assert all(Counter(r) == Counter(TURNS) for r in rounds)
    assert len({tuple(r) for r in rounds}) > 15
    assert rounds == list(order(TURNS, 20, seed=1)) != list(order(TURNS, 20, seed=2))


def test_a_turn_that_fails_keeps_its_figures_and_is_not_tried_again() -> None:
    asked: list[Turn] = []
    bad = Turn("b", 2)

    def measure(turn: Turn) -> Sample | Failure:
        asked.append(turn)
        if turn == bad and asked.count(bad) == 2:
            return Failure("timeout", "no end after 9 s")
        return sample(asked.count(turn))

    told: list[tuple[Turn, int]] = []
    series = play(TURNS, 4, 0, measure, lambda turn, n, _: told.append((turn, n)))
    assert [s.turn for s in series] == TURNS
    for one in series:
        medians = [s and s.median_s for s in one.samples]
        if one.turn == bad:
            assert medians == [1, None, None, None] and one.failure is not None
        else:
            assert medians == [1, 2, 3, 4] and one.failure is None
    assert Counter(asked) == {turn: 2 if turn == bad else 4 for turn in TURNS}
    assert [n for turn, n in told if turn == TURNS[0]] == [1, 2, 3, 4]


def rows_of(*series: Series, peers: str = "p q w") -> dict[str, object]:
    rows = summarise(
        series, peers=frozenset(peers.split()), flops=4_000, peak_flops_per_core=1e6,
        error_limit=1e-4,
    )  # fmt: skip
    return {f"{r.turn.engine}{r.turn.threads}": r for r in rows}


def test_sums() -> None:
    rows = rows_of(
        Series(Turn("ours", 2), [sample(0.008), sample(0.004), sample(0.006)]),
        Series(Turn("p", 2), [sample(0.010), sample(0.005), None], Failure("crash", "SIGABRT")),
        Series(Turn("q", 2), [sample(0.006), sample(0.0055), sample(0.007)]),
        Series(Turn("w", 2), [sample(0.001, 0.5), sample(0.001), sample(0.001)]),
        Series(Turn("q", 1), [sample(0.008, float("nan"))]),
        Series(Turn("gone", 1), [None], Failure("crash", "SIGABRT")),
    )
    assert list(rows) == ["q1", "w2", "ours2", "p2", "q2"]
    ours = rows["ours2"]
    assert (ours.lowest_s, ours.highest_s, ours.rounds) == (0.004, 0.008, 3)
    assert ours.best_peer == "p"  # w is faster and wrong
    assert ours.ratio == pytest.approx(0.8)
    assert ours.paired == pytest.approx(0.8)  # of 0.8 and 0.8: p has no third round
    assert ours.peak_share == pytest.approx(0.5)
    assert rows["q2"].paired == pytest.approx(0.85)  # of 0.6 and 1.1
    assert rows["p2"].ratio == rows["p2"].paired == 1.0 and rows["p2"].rounds == 2
    assert rows["w2"].wrong and rows["w2"].error == 0.5
    assert rows["q1"].wrong and rows["q1"].ratio is None and rows["q1"].best_peer == ""


def test_only_peers_are_compared_with() -> None:
    series = [Series(Turn(name, 1), [sample(t)]) for name, t in (("p", 0.002), ("q", 0.001))]
    assert rows_of(*series)["p1"].best_peer == "q"
    assert rows_of(*series, peers="p")["q1"].best_peer == "p"
    assert rows_of(*series, peers="p")["q1"].ratio == pytest.approx(0.5)


# Tables


def test_notes_tell_what_a_figure_hides() -> None:
    def note(series: Series, isa: str = "native", engine: str = "openvino") -> str:
        (row,) = rows_of(series).values()
        return report.notes(
            row, series, ENGINES[engine], isa=isa, runs=5, facts={"tuned": "3 of 4 kernels"}
        )

    turn = Turn("tvmsep", 2)
    assert note(Series(turn, [sample(1, busy=2.0)])) == "3 of 4 kernels tuned"
    assert "WRONG OUTPUT" in note(Series(turn, [sample(1, error=0.1, busy=2.0)]))
    assert "kept 1.0 cores busy" in note(Series(turn, [sample(1, busy=1.0)]))
    assert "kept 2.6 cores busy" in note(Series(turn, [sample(1, busy=2.6)]))
    assert "4 calls a round" in note(Series(turn, [Sample((1.0,) * 4, 2.0, 0.0)]))
    failed = Series(turn, [sample(1, busy=2.0), None, None], Failure("crash", "SIGABRT"))
    assert "1 of 3 rounds, then crash" in note(failed)
    right = Series(Turn("p", 1), [sample(1)])
    assert note(right, "avx2") == "AVX2"
    assert note(right, "avx2", "onnxruntime") == "NOT limited to AVX2"


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = Network("net", tmp_path, tmp_path, (1, 3, 8, 8), "ab", 4_000)
    runner = Runner(network, tmp_path, {}, "native", 5, 1.0)
    engines = {n: Engine(n, n, "p", avx2="no") for n in ("ours", "p")}
    runner.versions |= {"ours": "1.0", "p": "2.0"}
    runner.facts |= {"ours/1": {}, "p/1": {}}
    series = [
        Series(Turn("ours", 1), [sample(0.008), sample(0.005)]),
        Series(Turn("p", 1), [sample(0.010), sample(0.011)]),
    ]
    rows = list(rows_of(*series).values())
    report.show(runner, series, rows, engines, 1e6)
    title, head, ours, peer = capsys.readouterr().out.splitlines()
    assert "p at 1 thread" in title and head.split()[:3] == ["threads", "engine", "version"]
    assert ours.split() == ["1", "ours", "p", "1.0", "5.00", "8.00", "60.0%", "0.500", "0.627",
                            "80.0%", "0e+00"]  # fmt: skip
    assert peer.split()[-5:] == ["10.0%", "1.000", "1.000", "40.0%", "0e+00"]
    path = tmp_path / "out.json"
    write_json(path, report.network_json(runner, series, rows, 0.5))
    found = json.loads(path.read_text())
    assert [r["ratio"] for r in found["results"]] == [0.5, 1.0]
    assert found["results"][0]["rounds"][1]["median_s"] == 0.005
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


# The network


def test_network_is_written_at_its_batch(tmp_path: Path) -> None:
    import onnx

    network = write_network(
        "mobilenet_v1:width=0.25,resolution=32", 2, load_target("x86-avx2"), tmp_path
    )
    assert network.shape == (2, 3, 32, 32)
    assert np.load(network.inputs).shape == (2, 2, 3, 32, 32)
    shape = onnx.load(network.model).graph.input[0].type.tensor_type.shape
    assert [d.dim_value for d in shape.dim] == [2, 3, 32, 32]
    one = write_network(
        "mobilenet_v1:width=0.25,resolution=32", 1, load_target("x86-avx2"), tmp_path
    )
    assert network.flops == 2 * one.flops > 0
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="fixed batch 1: give --batch 1"):
        write_network(str(one.model), 4, load_target("x86-avx2"), tmp_path / "x")
    with pytest.raises(InputError, match="contradict"):
        write_network("mobilenet_v1:batch=3", 2, load_target("x86-avx2"), tmp_path)


def test_outputs_are_compared() -> None:
    reference = np.array([[1.0, -4.0], [2.0, 3.0]])
    assert relative_error(reference + [[0.0, 0.04], [0.0, 0.0]], reference) == pytest.approx(0.01)
    assert relative_error(reference[:1], reference) == float("inf")
    assert check_change(reference, "net") == pytest.approx(7 / 4)
    with pytest.raises(InputError, match="net: two inputs change its output"):
        check_change(np.array([[1.0, 2.0], [1.0, 2.01]]), "net")


# Processes


def test_timing_asks_for_enough_calls() -> None:
    calls = Counter[str]()

    def call() -> None:
        calls["n"] += 1
        time.sleep(0.001)

    times, busy = timed(call, runs=400)
    assert len(times) >= 400 and calls["n"] > len(times)
    assert min(times) >= 0.001 and 0.0 <= busy < 1.0
    assert sum(times) >= 0.3
    assert MIN_RUNS >= 4  # quartiles


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    inputs = tmp_path / "inputs.npy"
    np.save(inputs, np.random.default_rng(0).standard_normal((2, 1, 3, 4, 4), dtype=np.float32))
    network = Network("net", tmp_path / "none.onnx", inputs, (1, 3, 4, 4), "ab", 1)
    names = ("right", "wrong", "ignores", "refuses", "crashes", "hangs")
    pythons = {name: Path(sys.executable) for name in names}
    return Runner(
        network, tmp_path / "run", pythons, "avx2", 5, 60.0, paths=(BENCHMARKS, TESTS)
    )  # fmt: skip


def fake(name: str) -> Engine:
    return Engine(name, "fake_engine", "numpy", avx2_env={"FAKE_ISA": "AVX2"})


def test_engine_in_a_process_of_its_own(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "99")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    reference = np.load(runner.network.inputs).reshape(2, -1)
    for engine in (fake("right"), fake("wrong"), fake("ignores")):
        assert runner.prepare(engine, 2) is None
    result = runner.measure(fake("right"), Turn("right", 2), reference)
    assert isinstance(result, Sample) and result.error == 0.0
    assert len(result.times_s) >= 5 and result.median_s >= 0.002
    assert runner.versions["right"] == np.__version__
    assert runner.facts["right/2"] == {"tuned": "3 of 4 kernels", "omp": "2", "isa": "AVX2"}
    wrong = runner.measure(fake("wrong"), Turn("wrong", 2), reference)
    assert isinstance(wrong, Sample) and wrong.error == pytest.approx(0.01, rel=1e-3)
    ignores = runner.measure(fake("ignores"), Turn("ignores", 2), reference)
    assert isinstance(ignores, Sample) and ignores.error > 0.5


def test_failures_are_data(runner: Runner) -> None:
    reference = np.zeros((2, 48))
    assert runner.prepare(fake("refuses"), 1) == Failure("unsupported", "node 3 is a dragon")
    assert runner.prepare(fake("crashes"), 1) is None
    result = runner.measure(fake("crashes"), Turn("crashes", 1), reference)
    assert result == Failure("crash", "SIGABRT: the last words")
    assert runner.prepare(fake("hangs"), 1) is None
    runner.timeout_s = 3.0
    result = runner.measure(fake("hangs"), Turn("hangs", 1), reference)
    assert result == Failure("timeout", "no end after 3 s")
    with pytest.raises(InputError, match=r"net: .* hangs \(timeout: .*--timeout"):
        runner.reference(fake("hangs"))
    with pytest.raises(InputError, match=r"net: .* crashes \(crash: .*a network that it can run"):
        runner.reference(fake("crashes"))


def test_a_timeout_ends_the_whole_group(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid}; wait"
    failed = run(["bash", "-c", script], timeout_s=2.0)
    assert failed is not None and failed.kind == "timeout"
    for _ in range(100):
        if not alive(int(pid.read_text())):
            return
        time.sleep(0.05)
    raise AssertionError("the grandchild outlived the time limit")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_environment_is_made_once_and_only_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine("fake", "fake_engine", "numpy", ("numpy==2.4.6",))
    asked: list[list[str]] = []
    answers: list[Failure | None] = [None, Failure("crash", "no such wheel"), None, None]

    def pretend(command: list[str], **_: float) -> Failure | None:
        asked.append(command)
        folder = environment.folder_of(engine, tmp_path)
        os.makedirs(folder, exist_ok=True)
        return answers[len(asked) - 1]

    monkeypatch.setattr(environment, "run", pretend)
    assert environment.python_of(engine, tmp_path) == Failure("install", "no such wheel")
    found = environment.python_of(engine, tmp_path)
    assert found == environment.python_of(engine, tmp_path)
    assert isinstance(found, Path) and found.is_relative_to(tmp_path)
    assert len(asked) == 4 and "--clear" in asked[2] and asked[3][-1] == "numpy==2.4.6"
    other = Engine("fake", "fake_engine", "numpy", ("numpy==2.4.5",))
    assert environment.folder_of(other, tmp_path) != environment.folder_of(engine, tmp_path)
    ours = Engine("ours", "m", "p")
    assert environment.python_of(ours, tmp_path) == Path(sys.executable)
