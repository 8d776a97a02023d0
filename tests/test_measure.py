"""Building and measuring: what works, and every way in which a candidate or a process can fail."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tvmsep.codegen import kernel
from tvmsep.compiler import stamps_dtype
from tvmsep.contracts import BoardError, Config, Target, Task, Workload
from tvmsep.measure import Board, Built, Failed, Farm, Measured, builder, harness, worker
from tvmsep.measure.local import LOCAL_KEY, LocalServer
from tvmsep.measure.lock import HostLock, Scratch
from tvmsep.measure.worker import server_env
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import load_target

if sys.platform != "linux":
    pytest.skip("these tests look at processes through /proc", allow_module_level=True)

RUN_TIMEOUT_S = 1.0
W = Workload(
    op="pointwise", ic=32, oc=40, ih=7, iw=7, in_block=16, out_block=16, epilogue=("bias", "relu6")
)


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("local")


@pytest.fixture(scope="module")
def task(target: Target) -> Task:
    return Task(workload=W, target=target.name, threads=target.cores, template="pointwise@1")


@pytest.fixture(scope="module")
def farm(target: Target) -> Iterator[Farm]:
    with Farm(target, builders=1, run_timeout_s=RUN_TIMEOUT_S) as made:
        yield made


@pytest.fixture(scope="module")
def good(target: Target, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Built:
    config = TEMPLATES["pointwise"].default(W, target, task.threads)
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
        func = tvm.script.from_source(head + textwrap.indent(textwrap.dedent(body), "    "))
        return builder.link_candidate(func, task, target, tmp_path)

    return make


def run(farm: Farm, task: Task, built: Built) -> Measured | Failed:
    (outcome,) = farm.run([(task, Config(), built)])
    return outcome


def in_thread(fn: Callable[[], object]) -> None:
    """Run what calls a kernel here: TVM pins the calling thread for good."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(fn).result(timeout=30)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rsplit(")", 1)[1].split()[0] == "Z"


def wait_for(done: Callable[[], bool], limit_s: float) -> float:
    """Seconds until `done()`, at most `limit_s`."""
    start = time.monotonic()
    while not done() and time.monotonic() - start < limit_s:
        time.sleep(0.01)
    assert done(), f"not within {limit_s} s"
    return time.monotonic() - start


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# What works


def test_builds_and_measures_in_order(farm: Farm, task: Task, target: Target) -> None:
    default = TEMPLATES["pointwise"].default(W, target, task.threads)
    configs = TEMPLATES["pointwise"].space(W, target, task.threads).configs()
    other = next(c for c in configs if c["loop"] != default["loop"])
    built = farm.build([(task, default), (task, other), (task, default)])
    libraries = [b for b in built if isinstance(b, Built)]
    assert len(libraries) == 3, built
    assert libraries[0].program == libraries[2].program != libraries[1].program
    jobs = [(task, Config(), b) for b in libraries]
    outcomes = list(farm.run(jobs, repeats=12))
    for outcome in outcomes:
        assert isinstance(outcome, Measured), outcome
        assert len(outcome.times_s) == 12
        assert 0 < min(outcome.times_s) < 0.01
        assert outcome.error < 1e-5
    assert farm.board.local and farm.board.cpu


@pytest.mark.skipif(
    os.sched_getaffinity(0) != set(range(os.cpu_count() or 1)),
    reason="TVM pins its workers by CPU number, which fails where some CPUs are withheld",
)
def test_threads_have_a_cpu_each(farm: Farm, task: Task, good: Built) -> None:
    """TVM lets the main thread float; ours is pinned off its workers' CPUs."""
    assert isinstance(run(farm, task, good), Measured)
    assert farm._server is not None
    (session,) = children(farm._server.pid)
    pins = [os.sched_getaffinity(int(t)) for t in os.listdir(f"/proc/{session}/task")]
    assert len(pins) == task.threads
    assert all(len(p) == 1 for p in pins)
    assert len(set.union(*pins)) == len(pins)


def test_program_is_equal_across_processes(
    farm: Farm, task: Task, target: Target, good: Built
) -> None:
    config = TEMPLATES["pointwise"].default(W, target, task.threads)
    (built,) = farm.build([(task, config)])
    assert isinstance(built, Built) and built.program == good.program


@pytest.mark.parametrize("split", ["rows", "channels"])
@pytest.mark.parametrize(("block", "n"), [(16, 1), (16, 3), (0, 2)])
def test_producer_writes_all_of_the_input(
    target: Target, split: str, block: int, n: int, tmp_path: Path
) -> None:
    import numpy as np
    import tvm

    shape = (n, 3, 49, 16) if block else (n, 3, 49)
    w = Workload(op="conv", ic=3, oc=3, in_block=block, out_block=block, in_split=split)  # type: ignore[arg-type]
    params = [(shape, "float32"), (shape, "float32")]
    copy = f"""
    @T.prim_func(s_tir=True)
    def main(x: T.Buffer({shape}, "float32"), out: T.Buffer({shape}, "float32")):
        T.func_attr({{"global_symbol": "{harness.KERNEL}"}})
        for i in T.grid({", ".join(map(str, shape))}):
            out[i] = x[i]
    """
    idx = ", ".join(f"i{d}" for d in range(len(shape)))
    func = tvm.script.from_source(
        textwrap.dedent(copy).replace("for i in", f"for {idx} in").replace("[i]", f"[{idx}]")
    )
    assert harness.params_of(func) == params
    task = Task(workload=w, target=target.name, threads=target.cores, template="x")
    built = builder.link_candidate(func, task, target, tmp_path)
    module = tvm.runtime.load_module(str(built.so))
    source = np.random.default_rng(0).random(shape, dtype=np.float32)
    x, out = (tvm.runtime.tensor(np.full(shape, np.nan, np.float32)) for _ in range(2))
    sweep = harness.sweep_shape(target, task.threads)
    scratch = tvm.runtime.tensor(np.zeros(sweep, np.float32))
    stamps = tvm.runtime.tensor(np.zeros((harness.MAX_REPEATS, 4), stamps_dtype(target)))
    args = (tvm.runtime.tensor(source), x, out, scratch, stamps, 2)
    in_thread(lambda: module[harness.TIMER](*args))
    assert (x.numpy() == source).all() and (out.numpy() == source).all()
    seconds = stamps.numpy()[:2, [0, 2]]
    assert (seconds > 0).all() and (stamps.numpy()[2:] == 0).all()


def test_harness_adds_next_to_nothing(
    farm: Farm, task: Task, candidate: Callable[[str], Built]
) -> None:
    """A kernel that does (almost) nothing: its time is the harness's own."""
    built = candidate("out[0, 0, 0, 0] = x[0, 0, 0, 0]")  # wrong, so it is timed without a check
    import numpy as np
    import tvm

    module = tvm.runtime.load_module(str(built.so))
    sweep = harness.sweep_shape(farm.target, task.threads)
    shapes = [W.in_shape, W.in_shape, (3, 32, 16), (3, 16), W.out_shape, sweep]
    args = [tvm.runtime.tensor(np.zeros(s, np.float32)) for s in shapes]
    stamps = tvm.runtime.tensor(np.zeros((harness.MAX_REPEATS, 4), stamps_dtype(farm.target)))
    in_thread(lambda: module[harness.TIMER](*args, stamps, 64))
    words = stamps.numpy()[:64].astype(np.int64)
    ns = (words[:, 2] - words[:, 0]) * 10**9 + words[:, 3] - words[:, 1]
    print(f"empty kernel: median {statistics.median(ns)} ns, min {ns.min()} ns")
    assert 0 < ns.min() < 2000


def test_stock_client(target: Target, good: Built) -> None:
    import numpy as np
    from tvm import rpc

    server = LocalServer(target.cores)
    server.start()
    try:
        with pytest.raises(RuntimeError, match="key=client:another-key"):
            rpc.connect("127.0.0.1", server.port, "another-key")
        remote = rpc.connect("127.0.0.1", server.port, LOCAL_KEY, session_timeout=30)
        assert remote.get_function("runtime.NumThreads")() == target.cores
        remote.upload(str(good.so), "k.so")
        assert remote.download("k.so") == good.so.read_bytes()
        module = remote.load_module("k.so")
        from tvm.runtime import tensor

        args = [
            tensor(np.ones(s, np.float32), remote.cpu())
            for s in (W.in_shape, (3, 32, 16), (3, 16), W.out_shape)
        ]
        timed = module.time_evaluator(harness.KERNEL, remote.cpu(), number=3)(*args)
        assert timed.mean > 0
        assert (args[3].numpy() == 6).all()
        del args, module, timed, remote
    finally:
        server.stop()


# Failures of a candidate


def test_build_error_is_a_value(farm: Farm, task: Task) -> None:
    (failed,) = farm.build([(task, Config(no_such_knob=1))])
    assert isinstance(failed, Failed) and failed.failure == "compile_error"
    assert failed.detail.startswith("KeyError")


@pytest.mark.parametrize(
    ("name", "body", "failure", "word"),
    [
        ("abort", 'T.evaluate(T.call_extern("int32", "abort"))', "crash", "SIGABRT"),
        ("segfault", 'T.evaluate(T.call_extern("int32", "raise", 11))', "crash", "SIGSEGV"),
        (
            "hang",
            'for i in range(2000000000):\n    T.evaluate(T.call_extern("int32", "usleep", 10))',
            "timeout",
            "within 1 s",
        ),
        ("zeros", "for i in T.serial(49):\n    out[0, 0, i, 0] = 0.0", "wrong_output", "never"),
        (
            "wrong",
            "for a, b, c, d in T.grid(1, 3, 49, 16):\n    out[a, b, c, d] = T.float32(1)",
            "wrong_output",
            "instead of",
        ),
        (
            "nan",
            'for a, b, c, d in T.grid(1, 3, 49, 16):\n    out[a, b, c, d] = T.float32("nan")',
            "wrong_output",
            "NaN",
        ),
    ],
)
def test_bad_candidate_is_typed_and_the_next_goes_on(
    farm: Farm,
    task: Task,
    good: Built,
    candidate: Callable[[str], Built],
    name: str,
    body: str,
    failure: str,
    word: str,
) -> None:
    built = candidate(body)
    start = time.monotonic()
    outcome = run(farm, task, built)
    took = time.monotonic() - start
    assert isinstance(outcome, Failed), name
    assert outcome.failure == failure, outcome
    assert word in outcome.detail
    print(f"{name}: {took:.2f} s, {outcome.detail}")
    assert took < RUN_TIMEOUT_S + 10  # what it waits for, on a machine that runs other tests
    start = time.monotonic()
    assert isinstance(run(farm, task, good), Measured)
    print(f"next candidate after {time.monotonic() - start:.2f} s")


def test_library_of_rubbish(farm: Farm, task: Task, good: Built, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.so"
    rubbish.write_bytes(b"not a library")
    outcome = run(farm, task, Built(so=rubbish, program="x"))
    assert isinstance(outcome, Failed) and outcome.failure == "runtime_error"
    assert isinstance(run(farm, task, good), Measured)


# Failures around it


def test_server_killed_in_mid_run(
    farm: Farm, task: Task, good: Built, candidate: Callable[[str], Built]
) -> None:
    hang = candidate(
        'for i in range(2000000000):\n    T.evaluate(T.call_extern("int32", "usleep", 10))'
    )
    assert isinstance(run(farm, task, good), Measured)
    assert farm._server is not None
    pid = farm._server.pid
    sessions = children(pid)
    killer = threading.Timer(0.4, os.kill, (pid, signal.SIGKILL))
    killer.start()
    outcome = run(farm, task, hang)
    killer.join(timeout=5)
    assert isinstance(outcome, Failed) and outcome.failure == "crash", outcome
    assert sessions and all(gone(p) for p in sessions)
    assert isinstance(run(farm, task, good), Measured)
    assert farm._server.pid != pid


def test_board_that_is_not_there(target: Target, task: Task, good: Built) -> None:
    nowhere = Board("rpi4", "127.0.0.1", 9, "rpi4", "", False)
    with Farm(target, builders=0, board=nowhere) as farm:
        with pytest.raises(BoardError, match=r"127\.0\.0\.1:9.*check that"):
            farm.connect()
        outcomes = list(farm.run([(task, Config(), good)] * 4))
    assert [o.failure for o in outcomes if isinstance(o, Failed)] == ["board_lost"] * 4
    with pytest.raises(RuntimeError, match="closed"):
        farm.build([])


def test_too_few_threads_on_the_board(target: Target, task: Task, good: Built) -> None:
    server = LocalServer(1)
    server.start()
    board = Board("small", "127.0.0.1", server.port, LOCAL_KEY, "", True)
    try:
        with Farm(target, builders=0, board=board) as farm:
            with pytest.raises(BoardError, match="TVM_NUM_THREADS"):
                run(farm, task, good)
    finally:
        server.stop()


def test_session_dies_with_its_client(
    target: Target, candidate: Callable[[str], Built], tmp_path: Path
) -> None:
    hang = candidate(
        'for i in range(2000000000):\n    T.evaluate(T.call_extern("int32", "getpid"))'
    )
    client = f"""
    import sys
    sys.modules["torch"] = None
    from tvm import rpc, runtime
    remote = rpc.connect("127.0.0.1", int(sys.argv[1]), "{LOCAL_KEY}")
    remote.upload({str(hang.so)!r}, "k.so")
    module = remote.load_module("k.so")
    shapes = {[W.in_shape, (3, 32, 16), (3, 16), W.out_shape]!r}
    args = [runtime.empty(s, "float32", remote.cpu()) for s in shapes]
    print("calling", flush=True)
    module["{harness.KERNEL}"](*args)
    """
    server = LocalServer(target.cores)
    server.start()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(client), str(server.port)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TVM_USE_RUNTIME_LIB": "1"},
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "calling\n"
            (session,) = children(server.pid)
            time.sleep(0.2)
            assert not gone(session)
            process.kill()
        assert wait_for(lambda: gone(session), 2.0) < 2.0
        assert not gone(server.pid)
    finally:
        server.stop()
    assert gone(server.pid) or server.pid == 0


OWNER = """
import sys, time
from tvmsep.measure import Farm
from tvmsep.targets import load_target
with Farm(load_target("local"), builders=1) as farm:
    farm.connect()
    slot = farm._boards._lanes[0].slot
    pids = [w.pid for w in farm._builders.pool.workers] + [slot._worker.pid, farm._server.pid]
    print(*pids, flush=True)
    try:
        farm._builders.pool.map(time.sleep, [(60,)], 100.0)
    except KeyboardInterrupt:
        sys.exit("interrupted")
"""


def test_owner_loads_no_tvm() -> None:
    """Importing the room is cheap; the owner of a farm never loads TVM or torch itself."""
    code = """
    import sys
    from tvmsep.measure import Farm
    from tvmsep.targets import load_target
    with Farm(load_target("local"), builders=1) as farm:
        farm.connect()
    print([m for m in ("tvm", "torch", "onnx", "xgboost") if m in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TVM_USE_RUNTIME_LIB": "1"},
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_orphans(how: signal.Signals) -> None:
    """However the owner ends, its workers, server and session end within two seconds."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None and owner.stderr is not None
        pids = [int(p) for p in owner.stdout.readline().split()]
        assert len(pids) == 3, owner.stderr.read()
        pids += children(pids[-1])
        assert len(pids) == 4
        time.sleep(0.3)
        start = time.monotonic()
        owner.send_signal(how)
        owner.wait(timeout=5)
        wait_for(lambda: all(gone(p) for p in pids), 2.0)
        print(f"{how.name}: all gone after {time.monotonic() - start:.2f} s")
        words = owner.stderr.read()
    assert words == ("interrupted\n" if how == signal.SIGINT else "")


# The parts


def _sleep_then(value: int, seconds: float) -> int:
    time.sleep(seconds)
    return value


def _nothing() -> None:
    pass


def test_pool_replaces_crashed_and_hung_workers() -> None:
    pool = worker.Pool(2, _nothing)
    try:
        calls = [(1, 0.0), (2, 30.0), (3, 0.0), (4, 0.0)]
        first = pool.map(_sleep_then, calls, limit_s=0.5)
        assert isinstance(first[1], worker.WorkerTimeout)
        assert [first[0], *first[2:]] == [1, 3, 4]
        crashed = pool.map(os.kill, [(os.getppid(), 0), (0, signal.SIGSEGV)], limit_s=5)
        assert crashed[0] is None
        assert isinstance(crashed[1], worker.WorkerDied) and "SIGSEGV" in str(crashed[1])
        (error,) = pool.map(os.stat, [("/no/such/file",)], limit_s=5)
        assert isinstance(error, worker.WorkerError) and "FileNotFoundError" in str(error)
        assert pool.map(_sleep_then, [(5, 0.0)], limit_s=5) == [5]
    finally:
        pool.close()


def test_host_lock_excludes_and_gives_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    one, two = HostLock(0.1), HostLock(0.1)
    with one.hold(exclusive=False), two.hold(exclusive=False):
        pass
    with one.hold(exclusive=True):
        with pytest.raises(BoardError, match="another tvmsep"):
            with two.hold(exclusive=False):
                raise AssertionError("held twice")
    with two.hold(exclusive=True):
        pass
    one.close()
    two.close()


def test_scratch_of_a_dead_owner_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, alive = tmp_path / "s-left", Scratch("s-")
    left.mkdir()
    for folder in (left, alive.path):
        os.utime(folder, (1, 1))
    new = Scratch("s-")
    assert not left.exists() and alive.path.exists() and new.path.exists()
    alive.close()
    new.close()
    assert list(tmp_path.iterdir()) == []


def test_servers_ask_for_huge_pages_beside_what_the_owner_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "_huge_page_bytes", lambda: 2 << 20)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    assert server_env()["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1:glibc.malloc.check=0"
    monkeypatch.delenv("GLIBC_TUNABLES")
    assert server_env()["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    for size in (0, 32 << 20):  # no huge pages, or such that a heap would grow by 32 MB
        monkeypatch.setattr(worker, "_huge_page_bytes", lambda size=size: size)
        assert "GLIBC_TUNABLES" not in server_env()
