"""The pool of threads in a compiled network (`compiler/pool.c`), its tasks counted from outside."""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmsep.codegen import compile_c, link_shared
from tvmsep.compiler import compile as compiling
from tvmsep.compiler.shares import CUTS, THREADS, cut_loops
from tvmsep.targets import load_target

WAIT_S = 20.0
STUB = """
static const char* said;
__attribute__((visibility("default"))) const char* what_was_said(void) { return said; }
void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message) {
  (void)kind;
  said = message;
}
"""
SHARE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int64 * 2), ctypes.c_void_p
)
LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, SHARE, ctypes.c_void_p, ctypes.c_int)


class Pool:
    """The pool, started on so many threads."""

    def __init__(self, library: Path) -> None:
        self._code = ctypes.CDLL(str(library))
        self._code.what_was_said.restype = ctypes.c_char_p

    def threads(self, count: int) -> int:
        """TVM's calling convention: a type, padding and a value for each argument."""
        argument = (ctypes.c_int64 * 2)(1, count)
        result = (ctypes.c_int64 * 2)(0, 0)
        start = self._code.__getattr__("__tvm_ffi_tvmsep_threads")
        return int(start(None, argument, 1, result))

    def launch(self, job: Callable[[int, int], Any], tasks: int = 0) -> int:
        """Run `job(task, tasks)` for each task; what a job raises is its failure."""

        def share(task: int, group: Any, data: Any) -> int:
            try:
                job(task, ctypes.cast(group, ctypes.POINTER(ctypes.c_int32))[2])
            except Exception:
                return -1
            return 0

        pointer = ctypes.c_void_p.in_dll(self._code, "__TVMBackendParallelLaunch")
        return int(LAUNCH(pointer.value or 0)(SHARE(share), None, tasks))

    @property
    def said(self) -> str:
        return (self._code.what_was_said() or b"").decode()


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    target = load_target("local")
    (tmp_path / "stub.c").write_text(STUB)
    objects = []
    for source in (compiling._POOL, tmp_path / "stub.c"):
        objects.append(tmp_path / f"{source.stem}.o")
        objects[-1].write_bytes(compile_c(source, target.triple))
    link_shared(objects, tmp_path / "pool.so", target)
    found = Pool(tmp_path / "pool.so")
    yield found
    assert found.threads(0) == 0


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_every_task_is_done_once(pool: Pool, threads: int) -> None:
    assert pool.threads(threads) == 0
    for tasks in (0, 2, 7, 64):
        count = tasks or CUTS * threads
        for _ in range(50):
            done: list[tuple[int, int]] = []
            assert pool.launch(lambda task, of, done=done: done.append((task, of)), tasks) == 0
            assert sorted(done) == [(i, count) for i in range(count)]


def test_one_thread_does_all_as_one_task(pool: Pool) -> None:
    assert pool.threads(1) == 0
    done: list[tuple[int, int, int]] = []
    pool.launch(lambda task, of: done.append((task, of, threading.get_ident())))
    assert done == [(0, 1, threading.get_ident())]


@pytest.mark.parametrize("held", ["caller", "other"])
def test_a_thread_that_is_held_up_keeps_one_task(pool: Pool, held: str) -> None:
    """The others do the rest of its share: without that this launch would not end."""
    assert pool.threads(2) == 0
    caller, count = threading.get_ident(), 2 * CUTS
    done, begun, rest = Counter[bool](), threading.Event(), threading.Event()

    def job(task: int, of: int) -> None:
        mine = threading.get_ident() == caller
        if mine == (held == "caller"):
            begun.set()
            assert rest.wait(WAIT_S)  # for all tasks but this one
        assert begun.wait(WAIT_S)
        done[mine] += 1
        if done.total() == count - 1:
            rest.set()

    assert pool.launch(job) == 0
    assert done[held == "caller"] == 1
    assert done[held != "caller"] == count - 1


def test_equal_threads_keep_their_part(pool: Pool) -> None:
    """What a thread wrote is in its core's cache: where nobody is late it gets that part again."""
    assert pool.threads(2) == 0
    caller, meet = threading.get_ident(), threading.Barrier(2, timeout=WAIT_S)
    parts: dict[bool, list[int]] = {True: [], False: []}

    def job(task: int, of: int) -> None:
        parts[threading.get_ident() == caller].append(task)
        meet.wait()

    assert pool.launch(job) == 0
    assert parts == {True: [0, 1, 2, 3], False: [4, 5, 6, 7]}


def test_a_nested_launch_stays_on_its_thread(pool: Pool) -> None:
    assert pool.threads(2) == 0
    inner: list[tuple[int, int]] = []

    def job(task: int, of: int) -> None:
        me = threading.get_ident()

        def again(task: int, of: int) -> None:
            assert threading.get_ident() == me
            inner.append((task, of))

        if pool.launch(again):
            raise AssertionError

    assert pool.launch(job) == 0
    assert inner == [(0, 1)] * 2 * CUTS


def test_one_tasks_failure_is_the_launchs(pool: Pool) -> None:
    assert pool.threads(2) == 0

    def job(task: int, of: int) -> None:
        if task == 5:
            raise ValueError

    assert pool.launch(job) == -1
    assert "failed" in pool.said
    assert pool.launch(lambda task, of: None) == 0


@pytest.mark.parametrize("extent", [2, 5, 8, 10, 17, 64, 100])
@pytest.mark.parametrize("threads", [2, 3])
def test_cut_loops_are_even_and_whole(extent: int, threads: int) -> None:
    """Each task has the same iterations up to one, and together they are all."""
    import tvm

    script = f"""
@T.prim_func(s_tir=True)
def count(out: T.Buffer(({extent},), "int32")):
    for i in T.parallel({extent}):
        with T.sblock("out"):
            v = T.axis.spatial({extent}, i)
            out[v] = v + 1
"""
    func = tvm.script.from_source(script)
    main = tvm.script.from_source("@R.function\ndef main(x: R.Tensor((1,))):\n    return x\n")
    module = tvm.IRModule({"count": func, "main": main}).with_attr(THREADS, threads)
    cut = cut_loops(module)["count"]
    text = cut.script()
    assert f"T.parallel({CUTS * threads})" in text
    run = tvm.compile(tvm.IRModule({"main": cut.with_attr("global_symbol", "main")}), "llvm")
    out = tvm.runtime.tensor(np.zeros(extent, "int32"))
    run["main"](out)
    assert out.numpy().tolist() == list(range(1, extent + 1))
    inner = cut.body.block.body.body
    sizes = [eval(str(inner.extent), {"task": task}) for task in range(CUTS * threads)]
    assert sum(sizes) == extent
    assert max(sizes) - min(sizes) <= 1
    shares = [sum(sizes[i * CUTS : (i + 1) * CUTS]) for i in range(threads)]
    assert max(shares) - min(shares) <= 1


def test_loops_of_one_thread_are_left(tmp_path: Path) -> None:
    import tvm

    script = '@T.prim_func(s_tir=True)\ndef f(x: T.Buffer((4,), "int32")):\n'
    script += "    for i in T.parallel(4):\n        x[i] = i\n"
    main = tvm.script.from_source("@R.function\ndef main(x: R.Tensor((1,))):\n    return x\n")
    module = tvm.IRModule({"f": tvm.script.from_source(script), "main": main})
    assert "T.parallel(4)" in cut_loops(module.with_attr(THREADS, 1))["f"].script()
    assert "T.parallel(4)" in cut_loops(module)["f"].script()
