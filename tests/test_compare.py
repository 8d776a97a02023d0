"""`tvmsep compare` and `diff`: what they accept, check, print, refuse. No test looks at a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from test_cli import refused, tvmsep

from tvmsep import api
from tvmsep.cli.compare_cmds import words
from tvmsep.codegen import example_inputs, reference, relative_error, unscheduled
from tvmsep.codegen.assembly import hot_loop
from tvmsep.compare import comparison as c
from tvmsep.compare import cores, entrants, kernels, rounds
from tvmsep.compare.changes import changes
from tvmsep.compare.engines import OURS, Engine, Job, require
from tvmsep.compare.rounds import Entrant, play
from tvmsep.compare.seat import Seat
from tvmsep.contracts import Config, InputError, Task, Workload
from tvmsep.contracts.words import counted
from tvmsep.schedules import TEMPLATES, template_for
from tvmsep.targets import load_target

MODEL = "mobilenet_v1:width=0.25,resolution=32"
TASK = "dense 1x1 256>1000"
LOG = Path(__file__).parents[1] / "logs" / "x86-zen4" / "mobilenet_v1.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle in it."""
    home = tmp_path_factory.mktemp("compare")
    api.build(MODEL, out=home / "a.tvmsep", threads=[1], logs=())
    return home


def pair(**more: object) -> c.PairRow:
    return msgspec.structs.replace(
        c.PairRow(a="a", b="b", threads=1, ratio=0.9, low=0.85, high=0.95, p=0.001,
                  verdict="faster", more_rounds=0),
        **more,
    )  # fmt: skip


# What is asked for


def test_names(folder: Path) -> None:
    a = str(folder / "a.tvmsep")
    found = entrants.parse([a, a, f"mine={a}", "default", "metaschedule:64", "stock-tvm"])
    assert [s.name for s in found] == [
        "a", "a#2", "mine", "default", "metaschedule", "stock-tvm",
    ]  # fmt: skip
    assert found[4].trials == 64 and found[2].kind == "bundle"


@pytest.mark.parametrize("word", ["nonsense", "none.tvmsep", "x=none.jsonl", "none.py:X", ""])
def test_unknown_entrants(word: str) -> None:
    with pytest.raises(InputError):
        entrants.parse([word])


def test_a_missing_engine_is_named_with_its_extra() -> None:
    with pytest.raises(InputError, match=r"pip install 'tvmsep\[openvino\]'"):
        require(Engine("openvino", "", "model", "no_such_package", "openvino"))


def test_claims() -> None:
    names = ["net", "onnxruntime"]
    assert c.parse_claim("ours <= 1.05 * onnxruntime", names, "net") == (
        "net", "<=", 1.05, "onnxruntime",
    )  # fmt: skip
    assert c.parse_claim("net<onnxruntime", names, "net")[2] == 1.0
    for wrong in ("net", "net <= x", "net <= -1 * onnxruntime", "net <= net", "ours < net"):
        with pytest.raises(InputError, match="--assert"):
            c.parse_claim(wrong, names, "net")


@pytest.mark.parametrize(
    ("claim", "holds"),
    [
        ("a <= 1.0 * b", True), ("a <= 0.95 * b", True), ("a <= 0.9 * b", False),
        ("a >= 0.8 * b", True), ("a >= 0.9 * b", False), ("b >= 1.05 * a", True),
        ("b <= 1.0 * a", False),
    ],
)  # fmt: skip
def test_a_claim_holds_only_where_the_whole_interval_does(claim: str, holds: bool) -> None:
    (found,) = c.settle([claim], ["a", "b"], None, [pair()])
    assert found.holds is holds
    assert ("shown" in found.why) is holds


def test_a_claim_without_an_interval_is_not_shown() -> None:
    (found,) = c.settle(["a <= 9 * b"], ["a", "b"], None, [pair(low=None, high=None)])
    assert not found.holds and "cannot be told" in found.why


# Processes


def test_an_entrant_is_stopped_between_its_turns(folder: Path) -> None:
    inputs = [np.zeros((1, 3, 32, 32), np.float32)]
    seat = Seat("a", OURS.adapter, Job(str(folder / "a.tvmsep"), 1), inputs)
    try:
        seat.begin()
        assert seat.ready().version
        for _ in range(2):
            deadline = time.monotonic() + 10
            while _state(seat.pid) != "T" and time.monotonic() < deadline:
                time.sleep(0.01)
            assert _state(seat.pid) == "T"
            assert len(seat.block(3, 1)) == 3
    finally:
        seat.close()


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and a parent-death signal")
def test_a_stopped_entrant_dies_with_its_owner(folder: Path) -> None:
    code = f"""
import numpy as np, sys, time
from tvmsep.compare.engines import OURS, Job
from tvmsep.compare.seat import Seat
seat = Seat("a", OURS.adapter, Job({str(folder / "a.tvmsep")!r}, 1),
            [np.zeros((1, 3, 32, 32), np.float32)])
seat.begin(); seat.ready(); print(seat.pid, flush=True); time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait(timeout=10)
    deadline = time.monotonic() + 10
    while _state(pid) not in ("", "Z", "X") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _state(pid) in ("", "Z", "X")


def test_rounds_time_everyone_equally_often(folder: Path) -> None:
    job = Job(str(folder / "a.tvmsep"), 1)
    both = [Entrant(n, OURS.adapter, job, True) for n in "ab"]
    inputs = [np.zeros((1, 3, 32, 32), np.float32)]
    seen: list[int] = []
    played, versions = play(both, inputs, rounds=2, blocks=3, told=lambda n, _: seen.append(n))
    assert seen == [1, 2] and len(versions) == 2
    for one in played:
        assert all(len(calls) >= 3 and min(calls) > 0 for calls in one.calls_s)
        assert all(len(one.calls_s[i]) == len(played[0].calls_s[i]) for i in range(2))


SLOW = """
import time
class Slow:
    version = "0"
    def __init__(self, job):
        pass
    def __call__(self, arrays):
        time.sleep(0.05)
        return arrays
"""


def test_a_slow_entrant_takes_fewer_turns(folder: Path) -> None:
    (folder / "slow.py").write_text(SLOW)
    job = Job(str(folder / "a.tvmsep"), 1)
    both = [Entrant("a", OURS.adapter, job, True), Entrant("b", f"{folder}/slow.py:Slow", job)]
    (one,), _ = play(both, [np.zeros((1, 3, 32, 32), np.float32)], rounds=1, blocks=14)
    # One call a turn, and many; a busy machine may cut the round short.
    assert 1 <= len(one.calls_s[1]) <= 7 and len(one.calls_s[0]) >= 4
    assert all(quick for quick in one.turns_s[0]) and one.log_ratio(1, 0) > 1


def test_fewer_turns_where_all_are_slow() -> None:
    assert rounds._turns(24, [1, 1], [5e-3, 6e-3]) == (24, [1, 1])
    assert rounds._turns(24, [1, 1], [5e-3, 11e-3]) == (24, [1, 2])
    assert rounds._turns(24, [1, 1], [2e-2, 2e-2]) == (12, [1, 1])
    assert rounds._turns(24, [1, 1, 1], [0.2, 0.25, 2.0]) == (8, [1, 1, 2])
    assert rounds._turns(24, [8, 1], [5e-4, 0.5]) == (24, [1, 4])
    assert rounds._turns(3, [8, 1], [5e-4, 2.0]) == (3, [1, 1])


# Cores


def test_a_round_stays_on_some_cores_and_the_next_on_others() -> None:
    cpus = [0, 2, 4, 6]
    assert [cores.choose(cpus, 1, n) for n in range(4)] == [{0}, {2}, {4}, {6}]
    assert [cores.choose(cpus, 3, n) for n in range(2)] == [{0, 2, 4}, {6, 0, 2}]
    assert cores.choose(cpus, 4, 1) is None and cores.choose([3], 1, 0) is None


def test_cores_are_counted_once_and_slow_kinds_left_out(tmp_path: Path) -> None:
    for cpu, (siblings, khz) in enumerate(
        [("0-1", 5000000)] * 2 + [("2", 3000000), ("3", 4800000)]
    ):
        for name, text in (("topology/thread_siblings_list", siblings),
                           ("cpufreq/cpuinfo_max_freq", khz)):  # fmt: skip
            file = tmp_path / f"cpu{cpu}" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
    assert cores.one_a_core([0, 1, 2, 3], tmp_path) == [0, 3]
    assert cores.one_a_core([1, 2], tmp_path / "nothing") == [1, 2]


@pytest.mark.skipif(cores.cores_for(1, 0) is None, reason="one core, or no Linux")
def test_processes_of_a_round_stay_together(folder: Path) -> None:
    (folder / "where.py").write_text(WHERE)
    job = Job(str(folder / "a.tvmsep"), 1)
    both = [Entrant(n, f"{folder}/where.py:Where", job) for n in "ab"]
    os.environ["WHERE"] = str(folder / "cpus")
    try:
        play(both, [np.zeros(1, np.float32)], rounds=2, blocks=8)
    finally:
        del os.environ["WHERE"]
    ran = [line.split() for line in (folder / "cpus").read_text().splitlines()]
    first, second = ({cpu for number, cpu in ran if number == n} for n in ("1", "2"))
    assert len(first) == len(second) == 1 and first != second


WHERE = """
import os
class Where:
    version = "0"
    def __init__(self, job):
        self.calls = 0
        with open(os.environ["WHERE"] + ".made", "a") as f:
            f.write("x")
        self.round = (os.path.getsize(os.environ["WHERE"] + ".made") + 1) // 2
    def __call__(self, arrays):
        allowed = os.sched_getaffinity(0)
        if len(allowed) == 1:
            with open(os.environ["WHERE"], "a") as f:
                f.write(f"{self.round} {min(allowed)}\\n")
        return arrays
"""

WRONG = """
class Wrong:
    version = "0"
    def __init__(self, job):
        import onnxruntime
        self.net = onnxruntime.InferenceSession(job.path)
        self.name = self.net.get_inputs()[0].name
    def __call__(self, arrays):
        return [a + FACTOR for a in self.net.run(None, {self.name: arrays[0]})]
"""


def test_own_adapters_and_outputs_that_differ(folder: Path) -> None:
    for name, factor in (("right", "0"), ("wrong", "0.01")):
        (folder / f"{name}.py").write_text(WRONG.replace("FACTOR", factor))
    done = tvmsep(
        "compare", "a.tvmsep", "other=right.py:Wrong", "--threads", "1", "--rounds", "2",
        "--json", "--assert", "ours <= 1000 * other", cwd=folder,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert done.returncode == 3, done.stderr  # two rounds show nothing
    assert [e["name"] for e in found["entrants"]] == ["a", "other"]
    (one,) = found["pairs"]
    assert one["verdict"] == "cant_tell" and one["more_rounds"] >= 6 and one["low"] is None
    assert 0 < found["largest_difference"] < 1e-4
    assert not found["claims"][0]["holds"]
    (folder / "right.py").unlink()
    refused(
        "compare", "a.tvmsep", "wrong.py:Wrong", "--threads", "1", cwd=folder,
        says=["Wrong and a do not compute the same"],
    )  # fmt: skip
    (folder / "wrong.py").unlink()


# TVM's own schedules


@pytest.mark.parametrize("op", ["depthwise", "dwpw", "pointwise"])
def test_what_another_scheduler_gets_computes_the_same(op: str) -> None:
    import tvm

    w = Workload(
        op=op,  # type: ignore[arg-type]
        ic=16, ih=5, iw=7, oc=24 if op != "depthwise" else 16, in_block=8, out_block=8,
        epilogue=("bias", "relu6"), mid_epilogue=("bias",) if op == "dwpw" else (),
        **({"kh": 3, "kw": 3, "pads": (1, 1, 1, 1), "sh": 2, "sw": 2, "groups": 16}
           if op != "pointwise" else {}),
    )  # fmt: skip
    target = load_target("local")
    template = template_for(w, target)
    assert template is not None
    func = unscheduled(w, target, template.name, template.default(w, target, 1))
    lib = tvm.compile(tvm.IRModule({"main": func}), target=tvm.target.Target(target.tvm_dict()))
    inputs = example_inputs(w, 0)
    out = tvm.runtime.tensor(np.full(w.out_shape, np.nan, np.float32))
    lib["main"](*map(tvm.runtime.tensor, inputs), out)
    assert relative_error(out.numpy(), reference(w, inputs), w.oc) < 2e-5


def test_metaschedule(folder: Path, tmp_path: Path) -> None:
    """Its search is run, and what it finds computes what ours computes."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 8, 4, 4))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 8, 4, 4))
    w = np.random.default_rng(0).standard_normal((8, 1, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=8, pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "one", [x], [y], [numpy_helper.from_array(w, "w")])
    opsets = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "one.onnx")
    shown = tvmsep(
        "compare", "default", "metaschedule:3", "--model", "one.onnx", "--threads", "1",
        "--rounds", "1", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["largest_difference"] < 1e-5
    refused(
        "compare", "default", "metaschedule:1", "--model", "one.onnx", cwd=tmp_path,
        says=["metaschedule:1: the network has 3 kernels"],
    )  # fmt: skip


# Mistakes


def test_refused(folder: Path) -> None:
    refused("compare", "a.tvmsep", cwd=folder, says=["give two or more"])
    refused(
        "compare", "a.tvmsep", "default", "--model", "mobilenet_v1:width=0.5,resolution=32",
        cwd=folder, says=["SHA-256", "not the same model"],
    )  # fmt: skip
    refused(
        "compare", "a.tvmsep", "torch", cwd=folder,
        says=["torch"],
    )  # fmt: skip
    refused(
        "compare", "default", "stock-tvm", cwd=folder, says=["default needs the model", "--model"]
    )
    refused("compare", "a.tvmsep", "default", "--key", "x", cwd=folder, says=["--rpc"])
    refused("compare", "a.tvmsep", "default", "--html", "no/page.html", cwd=folder, says=["--html"])
    refused(
        "compare", "a.tvmsep", "default", "--threads", "1,999", cwd=folder,
        says=["--threads 999: give 1 to"],
    )  # fmt: skip
    refused("diff", "default", "default", cwd=folder, says=["--task or --layer"])


def test_numbers_have_their_nouns(folder: Path) -> None:
    assert counted("thread", 1) == "1 thread" and counted("thread", 1, 2) == "1, 2 threads"
    one, nine = (words(pair(verdict="cant_tell", more_rounds=n)) for n in (1, 9))
    assert one == "can't tell; 1 more round might" and nine == "can't tell; 9 more rounds might"
    shown = tvmsep("bench", "a.tvmsep", "--threads", "1", "--runs", "4", cwd=folder).stdout
    assert "unknown" not in shown and "`tvmsep profile a.tvmsep` measures it" in shown


# One kernel


@pytest.fixture(scope="module")
def prepared() -> api.Prepared:
    return api.prepare(MODEL, target="x86-avx2", threads=1)


def test_kernels_are_found_by_label_and_by_layer(prepared: api.Prepared) -> None:
    plans = prepared.networks()
    task = kernels.find_task(plans, prepared.target, TASK, None)
    assert task.workload.op == "dense"
    step = next(s for s in plans[0].steps if s.workload is not None)
    assert kernels.find_task(plans, prepared.target, None, step.output).workload == step.workload
    for wrong in (("no such kernel", None), ("depthwise", None), (None, "no_layer")):
        with pytest.raises(InputError, match=r"--(task|layer)"):
            kernels.find_task(plans, prepared.target, *wrong)


def test_configs_are_read_and_checked(prepared: api.Prepared) -> None:
    plans, target = prepared.networks(), prepared.target
    task = kernels.find_task(plans, target, TASK, None)
    default, other = kernels.choose(["default", "default"], task, target)
    assert (default.name, other.name) == ("default", "default#2")
    (again,) = kernels.choose([default.config.key], task, target)
    assert again.config == default.config
    for wrong in ("tile_q=1", "1", next(iter(default.config)) + "=12345", "depthwise"):
        with pytest.raises(InputError):
            kernels.choose([wrong], task, target)


def test_a_configs_line_is_that_config_where_knobs_are_left_out() -> None:
    w = Workload(op="pointwise", ic=160, ih=7, iw=7, oc=960, in_block=8, out_block=8)
    target = load_target("x86-avx2")
    task = Task(workload=w, target=target.name, threads=1, template="pointwise")
    space = TEMPLATES["pointwise"].space(w, target, 1)
    default = TEMPLATES["pointwise"].default(w, target, 1)
    assert default["prefetch"] == 2
    configs = space.configs()
    for config in (default, Config(default, prefetch=0), configs[0], configs[-1]):
        assert kernels.read_config(config.key, task, target) == config
    assert kernels.read_config("unroll=4", task, target) == Config(default, unroll=4)
    assert kernels.read_config("prefetch=0", task, target) == Config(default, prefetch=0)
    # One knob alone that leaves no panel to ask for.
    assert "prefetch" not in kernels.read_config("loop=px", task, target)
    with pytest.raises(InputError, match="not valid"):
        kernels.read_config("loop=px prefetch=2", task, target)


def test_diff_shows_loops_and_the_hot_loop(folder: Path) -> None:
    done = tvmsep(
        "diff", "default", "default", "--model", MODEL, "--task", TASK, "--threads", "1",
        "--target", "x86-avx2", "--json", cwd=folder,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["a"]["loops"] == found["b"]["loops"]
    assert any("T.vectorized" in line for line in found["a"]["loops"])
    assert not any("T.reads" in line or "T.sblock" in line for line in found["a"]["loops"])
    assert any("vfmadd" in line for line in found["a"]["hot"])
    text = tvmsep(
        "diff", "default", "default", "--model", MODEL, "--task", TASK, "--threads", "1",
        "--target", "x86-avx2", cwd=folder,
    ).stdout  # fmt: skip
    assert "multiply-adds" in text and " | " in text


def test_a_gpus_kernel_is_shown_as_cuda_c(folder: Path) -> None:
    words = ("diff", "default", "tile_oc=4", "--model", MODEL, "--task", "pointwise 4x4 32>64",
             "--target", "jetson-orin")  # fmt: skip
    found = json.loads(tvmsep(*words, "--json", cwd=folder).stdout)
    for side in (found["a"], found["b"]):
        used = side["resources"]
        assert side["hot"][0].startswith('extern "C" __global__') and "__syncthreads();" in str(
            side["hot"]
        )
        assert used["registers"] > 16 and used["spill_bytes"] == 0 < used["shared_bytes"]
        assert f"{used['registers']} registers, 0 B spilled" in side["summary"]
    assert found["a"]["hot"] != found["b"]["hot"]
    refused(
        "diff",
        "default",
        "pointwise",
        *words[3:],
        cwd=folder,
        says=["template pointwise is for CPUs, and jetson-orin is none: cuda_pointwise computes"],
    )


def test_the_hot_loop_is_the_innermost_with_the_most_multiply_adds() -> None:
    text = """
    vxorps %ymm0, %ymm0, %ymm0
.LBB0_1:
    movq %rax, %rbx
.LBB0_2:
    vfmadd231ps (%rax), %ymm1, %ymm0
    vfmadd231ps 32(%rax), %ymm2, %ymm3
    jne .LBB0_2
.LBB0_3:
    vfmadd231ps (%rax), %ymm1, %ymm0
    jne .LBB0_3
    jne .LBB0_1
    jmp .LBB0_9
.LBB0_9:
    retq
""".splitlines()
    hot = hot_loop(text).lines
    assert hot[0].startswith(".LBB0_2") and hot[-1].strip() == "jne .LBB0_2" and len(hot) == 4
    arm = [".LBB1_1:", "\tfmla v0.4s, v1.4s, v2.s[0]", "\tsubs x8, x8, #1", "\tb.ne .LBB1_1"]
    assert len(hot_loop(arm).lines) == 4
    unrolled = ["\tmov x0, x1", *["\tfmla v0.4s, v1.4s, v2.s[0]"] * 3, "\tret"]
    assert len(hot_loop(unrolled).lines) == 3


def test_kernels_are_compared_on_the_local_board(folder: Path) -> None:
    done = tvmsep(
        "compare", "default", "again=default", "--model", MODEL, "--task", TASK, "--threads",
        "1", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 2 and "again=default" in done.stderr  # a config, and a wrong one
    done = tvmsep(
        "compare", "default", "default", "--model", MODEL, "--task", TASK, "--threads", "1",
        "--rounds", "2", "--json", cwd=folder,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["subject"].startswith("dense") and found["board"] == "local"
    assert [len(e["rounds_s"]) for e in found["entrants"]] == [2, 2]
    assert found["pairs"][0]["verdict"] == "cant_tell"


# Two logs


def test_a_log_against_itself_changed_nothing() -> None:
    found = changes(LOG, LOG)
    assert found and all(t.knobs == "same" and t.ratio == 1.0 for t in found)
    assert sum(t.trials[0] for t in found) == len(LOG.read_text().splitlines())


def test_what_changed_between_two_logs(tmp_path: Path) -> None:
    lines = LOG.read_text().splitlines(keepends=True)
    (tmp_path / "old.jsonl").write_text("".join(lines[: len(lines) // 2]))
    shutil.copy(LOG, tmp_path / "new.jsonl")
    found = changes(tmp_path / "old.jsonl", tmp_path / "new.jsonl")
    both = [t for t in found if t.ratio is not None]
    assert both and all(t.trials[0] <= t.trials[1] for t in found)
    assert any(":" in t.knobs and ">" in t.knobs for t in both)
    done = tvmsep("compare", "old.jsonl", "new.jsonl", cwd=tmp_path)
    assert done.returncode == 0 and "not measured now" in done.stdout
    refused(
        "compare", "old.jsonl", "new.jsonl", "--assert", "old < new", cwd=tmp_path,
        says=["without measuring"],
    )  # fmt: skip


# The page


def made_up() -> c.Comparison:
    def row(name: str, s: float, n: int) -> c.Row:
        return c.Row(
            name=name, what=name, version="1.0", threads=n, time_s=s, low_s=0.9 * s,
            high_s=1.2 * s, median_s=1.1 * s, rounds_s=tuple(s * (1 + i / 100) for i in range(8)),
        )  # fmt: skip

    names = ["net</script><b>", "a-long-name-of-an-entrant.tvmsep"]
    return c.Comparison(
        subject="mobilenet_v2 1.0/224", sha256="0" * 64, board="local", machine=c.machine(),
        alpha=0.01, quantile=0.05, rounds=8, seed=0, largest_difference=1e-6,
        entrants=tuple(row(x, 1e-3 * (i + n), n) for n in (1, 2) for i, x in enumerate(names)),
        pairs=(pair(a=names[0], b=names[1]),
               pair(a=names[0], b=names[1], threads=2, verdict="cant_tell", more_rounds=9)),
        warnings=("2 threads: everything became 9% slower meanwhile (drift)",),
        claims=(c.Claim(text="a <= b", threads=1, holds=False, why="refuted"),),
    )  # fmt: skip


def test_page_in_a_browser(tmp_path: Path) -> None:
    from tvmsep.report import comparison_page

    page = tmp_path / "page.html"
    page.write_text(comparison_page(made_up(), "tvmsep compare a b --html page.html"))
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for scheme, width in (("light", 1100), ("dark", 390)):
            tab = chromium.new_page(
                viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
            )
            said: list[str] = []
            tab.on("console", lambda m, said=said: said.append(m.text))
            tab.on("pageerror", lambda e, said=said: said.append(str(e)))
            tab.goto(page.as_uri())
            tab.wait_for_selector("#rounds .main-svg")
            assert said == []
            assert tab.locator("#ratios .point").count() == 2
            assert tab.locator("#rounds .trace").count() == 4
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert "net</script><b> is faster" in tab.inner_text("ul.verdicts")
            data = json.loads(tab.inner_text("#comparison") or "null") or json.loads(
                tab.evaluate("document.getElementById('comparison').textContent")
            )
            assert data["pairs"][0]["verdict"] == "faster"
            tab.close()
        chromium.close()
