"""Bundles run right from many threads, end cleanly, and leave their process as it was."""

import gc
import json
import os
import resource
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_kit import (
    RNG,
    X,
    Y,
    compile_to,
    expected,
    noise,
    python,
    write,
)

from tvmsep.bundle import (
    Bundle,
    Package,
    TensorInfo,
)
from tvmsep.contracts import BundleError, InputError, Target

# Running


def test_call_is_right_and_owns_its_output(net: Bundle) -> None:
    first = net(noise(0))
    kept = first.copy()
    np.testing.assert_allclose(first, expected(noise(0)), rtol=1e-4, atol=1e-4)
    second = net(noise(1))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_allclose(second, expected(noise(1)), rtol=1e-4, atol=1e-4)
    assert not np.allclose(first, second)
    assert first.shape == Y.shape and first.flags.writeable


def test_strided_input(net: Bundle) -> None:
    x = noise(3)[:, ::-1, :, ::-1]
    np.testing.assert_array_equal(net(x), net(np.ascontiguousarray(x)))


def test_several_inputs_and_outputs(pair_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with Bundle.load(pair_path) as net:
        double, total = net(x, np.array([4, 3, 2, 1], dtype=np.int32))
    np.testing.assert_array_equal(double, 2 * x)
    np.testing.assert_array_equal(total, [4, 4, 4, 4])


def test_many_threads_at_once(net: Bundle) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        want = expected(noise(seed))
        for _ in range(30):
            if not np.allclose(net(noise(seed)), want, rtol=1e-4, atol=1e-4):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not any(t.is_alive() for t in threads) and not wrong


LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@LINUX
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_count_is_exact(affine_path: Path, threads: int) -> None:
    Bundle.load(affine_path, threads=1).close()  # NumPy and others have started theirs
    before = os_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = Bundle.load(affine_path, threads=threads)
    with net:
        assert os_threads() == before + threads - 1 and net.threads == threads
        np.testing.assert_allclose(net(noise(0)), expected(noise(0)), rtol=1e-4, atol=1e-4)


def test_inputs_begin_anywhere(net: Bundle) -> None:
    room = np.empty(X.shape[1] * 256 + 64, np.float32)
    start = -room.ctypes.data // 4 % 16
    for offset in (0, 1, 4, 15):  # elements from a multiple of 64 bytes
        x = room[start + offset :][: room.size - 64].reshape(X.shape)
        x[...] = noise(offset)
        assert x.ctypes.data % 64 == 4 * offset
        np.testing.assert_allclose(net(x), expected(x), rtol=1e-4, atol=1e-4)
    x = noise(5)
    held = sys.getrefcount(x)
    net(x)
    assert sys.getrefcount(x) == held


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_affinity_of_the_caller_stays(affine_path: Path) -> None:
    before = os.sched_getaffinity(0)

    def in_new_thread() -> set[int]:
        seen: list[set[int]] = []
        thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join(10)
        return seen[0]

    for count in (1, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = Bundle.load(affine_path, threads=count)
        with net:
            net(noise(0))
            assert os.sched_getaffinity(0) == before
            assert in_new_thread() == before
    only = {max(before)}
    os.sched_setaffinity(0, only)
    try:
        with Bundle.load(affine_path) as net:
            assert net.threads == 1
            net(noise(0))
            assert os.sched_getaffinity(0) == only
    finally:
        os.sched_setaffinity(0, before)


def test_variant_choice(affine_path: Path) -> None:
    with Package(affine_path) as package:
        picks = {
            (n, cpus): package.pick(n, cpus).threads
            for n in (None, 1, 2, 3, 9)
            for cpus in (1, 2, 8)
        }
        assert picks[None, 1] == 1 and picks[None, 2] == picks[None, 8] == 2
        assert [picks[n, 1] for n in (1, 2, 3, 9)] == [1, 2, 2, 2]
        with pytest.raises(InputError, match="at least 1"):
            package.pick(0, 2)


def test_untuned_count_is_said_once(affine_path: Path) -> None:
    with pytest.warns(UserWarning, match="tuned for 1, 2 threads and runs on 3") as said:
        Bundle.load(affine_path, threads=3).close()
    assert len(said) == 1
    with pytest.raises(InputError, match="this process may use"):
        Bundle.load(affine_path, threads=100_000)


def test_wrong_inputs_are_named(net: Bundle, pair_path: Path) -> None:
    with pytest.raises(InputError, match=r"takes 1 inputs \(x: float32\[1, 3, 16, 16\]\); got 2"):
        net(noise(0), noise(0))
    with pytest.raises(InputError, match=r"'x' is float32 \(3, 16, 16\).*\(1, 3, 16, 16\)"):
        net(noise(0)[0])
    with pytest.raises(InputError, match=r"'x' is float64.*astype\('float32'\)"):
        net(noise(0).astype(np.float64))
    with pytest.raises(InputError, match="'x' is a list"):
        net([1, 2])  # type: ignore[arg-type]
    with Bundle.load(pair_path) as pair, pytest.raises(InputError, match="input 'n' is float32"):
        pair(np.zeros((2, 3), np.float32), np.zeros(4, np.float32))


# Ending


def wait_for(condition: Callable[[], bool], timeout_s: float = 10) -> bool:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def os_threads() -> int:
    return len(os.listdir("/proc/self/task")) if sys.platform.startswith("linux") else 0


@LINUX
def test_close_ends_the_threads(affine_path: Path) -> None:
    Bundle.load(affine_path, threads=1).close()
    before = os_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = Bundle.load(affine_path, threads=4)
    assert os_threads() == before + 3
    net.close()
    net.close()
    assert os_threads() == before
    with pytest.raises(BundleError, match="closed"):
        net(noise(0))


@LINUX
def test_abandoned_bundle_is_freed(affine_path: Path) -> None:
    before = os_threads()
    net = Bundle.load(affine_path, threads=2)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None and wait_for(lambda: os_threads() == before)


@LINUX
def test_bundles_run_side_by_side(affine_path: Path) -> None:
    """Each has threads of its own, that sleep between calls and are woken by the next one."""
    with Bundle.load(affine_path, threads=2) as one, Bundle.load(affine_path, threads=2) as other:
        wrong: list[int] = []

        def work(net: Bundle, seed: int) -> None:
            want = expected(noise(seed))
            for turn in range(40):
                if turn % 10 == 0:
                    time.sleep(0.005)
                if not np.allclose(net(noise(seed)), want, rtol=1e-4, atol=1e-4):
                    wrong.append(seed)

        threads = [threading.Thread(target=work, args=(n, i)) for i, n in enumerate((one, other))]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        assert not any(t.is_alive() for t in threads) and not wrong
        time.sleep(0.2)
        used = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - used < 0.25, "idle threads burn the CPU"


@LINUX
def test_memory_comes_back(built: Path, target: Target, tmp_path: Path) -> None:
    filler = RNG.standard_normal((2 << 20) // 4).astype(np.float32)  # as `odd`, 2 MiB
    library = compile_to(tmp_path, "large", lambda b: large(b, filler.size), target)
    path = write(
        tmp_path / "large.tvmsep",
        built,
        target,
        libraries={1: library},
        weights={"odd": filler},
        relax={1: ""},
        peak_ram_bytes={1: 0},
        inputs=[TensorInfo(name="x", shape=(1,), dtype="float32")],
        outputs=[TensorInfo(name="y", shape=(1,), dtype="float32")],
    )

    def cycle() -> int:
        with Bundle.load(path, threads=1) as net:
            net(np.zeros(1, np.float32))
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    base = [cycle() for _ in range(5)][-1]
    grown = [cycle() for _ in range(25)][-1] - base
    assert grown < 20 << 20, f"25 loads of 2 MiB of weights left {grown} bytes"


def large(builder: Any, size: int) -> None:
    from tvm import relax

    x = relax.Var("x", relax.TensorType((1,), "float32"))
    odd = relax.Var("odd", relax.TensorType((size,), "float32"))
    with builder.function("main", [x, odd], attrs={"num_input": 1}):
        with builder.dataflow():
            out = builder.emit_output(relax.op.add(x, relax.op.max(odd)))
        builder.emit_func_output(out)


def test_exit_without_close_does_not_hang(affine_path: Path) -> None:
    code = """
import sys, numpy as np
from tvmsep.bundle import Bundle
net = Bundle.load(sys.argv[1])
print(net(np.zeros((1, 3, 16, 16), np.float32)).shape)
"""
    assert python(code, affine_path, timeout_s=20) == "(1, 10)\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork(affine_path: Path) -> None:
    code = """
import os, sys, warnings, numpy as np
warnings.simplefilter("ignore")
from tvmsep.bundle import Bundle
from tvmsep.contracts import BundleError
x = np.ones((1, 3, 16, 16), np.float32)
net = Bundle.load(sys.argv[1], threads=2)
want = net(x)
pid = os.fork()
if pid == 0:
    try:
        net(x)
    except BundleError as error:
        assert "forked" in str(error)
        net.close()
        with Bundle.load(sys.argv[1], threads=2) as mine:
            sys.exit(0 if np.array_equal(mine(x), want) else 3)
    sys.exit(4)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), np.array_equal(net(x), want))
"""
    assert python(code, affine_path, timeout_s=30) == "0 True\n"


def test_a_call_within_a_call_is_refused(net: Bundle) -> None:
    """As a signal's handler may make one."""
    with pytest.raises(BundleError, match="middle of its own run"):
        net._networks.do(lambda _: net(noise(0)))
    np.testing.assert_allclose(net(noise(0)), expected(noise(0)), rtol=1e-4, atol=1e-4)


@LINUX
def test_closed_in_the_middle_of_a_run(affine_path: Path) -> None:
    Bundle.load(affine_path, threads=1).close()
    before = os_threads()
    net = Bundle.load(affine_path, threads=2)

    def job(networks: Any) -> Any:
        net.close()
        return networks[0]([noise(0)])

    (got,) = net._networks.do(job)
    np.testing.assert_allclose(got, expected(noise(0)), rtol=1e-4, atol=1e-4)
    assert os_threads() == before
    with pytest.raises(BundleError, match="closed"):
        net(noise(0))


@LINUX
def test_a_warning_that_is_an_error_leaves_no_thread(affine_path: Path) -> None:
    code = """
import os, sys, warnings
from tvmsep.bundle import Bundle
Bundle.load(sys.argv[1], threads=1).close()
before = len(os.listdir("/proc/self/task"))
warnings.simplefilter("error")
try:
    Bundle.load(sys.argv[1], threads=3)
except UserWarning:
    print(len(os.listdir("/proc/self/task")) - before)
"""
    assert python(code, affine_path) == "0\n"


def test_odd_strides_of_single_elements(net: Bundle) -> None:
    x = np.lib.stride_tricks.as_strided(noise(0), strides=(12, *noise(0).strides[1:]))
    assert x.flags.c_contiguous
    np.testing.assert_allclose(net(x), expected(x), rtol=1e-4, atol=1e-4)


# A light process

LIGHT = """
import time
start = time.process_time()
import json, sys
from tvmsep.bundle import Bundle
net = Bundle.load(sys.argv[1], threads=1)
took = time.process_time() - start  # of the CPU: other programs don't count
net(net.noise()[0])
status = open("/proc/self/status").read()
print(json.dumps({
    "took_s": took,
    "rss": int(status.partition("VmHWM:")[2].split()[0]) * 1024,
    "modules": sorted({m.split(".")[0] for m in sys.modules}),
    "compiler": "libtvm_compiler" in open("/proc/self/maps").read(),
}))
"""


@LINUX
def test_a_fresh_process_is_light(affine_path: Path, tmp_path: Path) -> None:
    # A torch that leaves a mark when it is imported stands for the real one.
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise RuntimeError('torch was imported')\n")
    runs = [json.loads(python(LIGHT, affine_path, PYTHONPATH=str(tmp_path))) for _ in range(3)]
    assert not runs[0]["compiler"]
    assert not {"tvm", "torch", "xgboost", "scipy", "onnx", "PIL", "rich"} & set(runs[0]["modules"])
    assert min(r["took_s"] for r in runs) < 0.6
    assert max(r["rss"] for r in runs) < 120e6


def test_compiler_can_be_imported_before_or_after(affine_path: Path) -> None:
    code = """
import sys
if sys.argv[2] == "before":
    import tvm
from tvmsep.bundle import Bundle
with Bundle.load(sys.argv[1], threads=1) as net:
    first = net(net.noise()[0])
    import tvm
    from tvm import relax
    tvm.runtime.tensor(first)
    assert (net(net.noise()[0]) == first).all()
    assert relax.const(1.0).ty is not None and tvm.target.Target("llvm").kind.name == "llvm"
print("ok")
"""
    for order in ("before", "after"):
        assert python(code, affine_path, order) == "ok\n"
