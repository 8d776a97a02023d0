"""TVM's runtime, and the one thread a bundle runs on.

**Only the runtime.** Calling a compiled network takes `tvm_ffi` and `libtvm_runtime`; the Python
package `tvm` would load the 260 MB compiler. It isn't imported, only its folder is looked up, so a
program that wants the compiler imports it as usual, before or after. `tvm_ffi` imports torch where
it is installed (seconds, 200 MB); it works without, so that one import is answered with "not
installed" in a process that hasn't loaded torch by itself.

**One thread.** TVM keeps a thread pool and its size per calling thread, sets CPU affinities of
whoever calls first, and its VM must not be called from two threads at once. So each bundle has a
thread of its own, on which everything of TVM happens; callers hand their arrays over and wait.
The pool uses the CPUs that the process is allowed. Where those outnumber its threads it isn't
pinned to the first ones, as TVM does by default: several processes would crowd on these.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import os
import queue
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tvmsep.bundle.elf import elf_fault
from tvmsep.contracts import BundleError

_START_TIMEOUT_S = 60.0
_POLL_S = 1.0
_ONE_CORE_EACH, _SHARE_CORES = -2, -3
_CPU, _POOLED = 1, 2
_ALIGN = 64
"""Bytes, as in `weights.py`."""
_import_lock = threading.Lock()


@functools.cache
def runtime_version() -> str:
    """Version of the installed apache-tvm, such as `0.27.0.post1`.

    Raises:
        BundleError: it isn't installed.
    """
    try:
        return importlib.metadata.version("apache-tvm")
    except importlib.metadata.PackageNotFoundError as error:
        raise BundleError("apache-tvm is not installed; pip install tvmsep") from error


class _NoTorch(importlib.abc.MetaPathFinder):
    """Answers "not installed" when one given thread looks for torch."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuse torch to that thread; leave everything else to the other finders."""
        if name in ("torch", "torch_c_dlpack_ext") and threading.get_ident() == self.thread:
            raise ModuleNotFoundError("torch isn't needed to run a bundle", name=name)


def load_runtime() -> ModuleType:
    """`tvm_ffi` with TVM's runtime library loaded.

    Raises:
        BundleError: apache-tvm isn't installed, or its library doesn't load.
    """
    with _import_lock:
        finder = _NoTorch()
        if "torch" not in sys.modules:
            sys.meta_path.insert(0, finder)
        try:
            tvm_ffi = importlib.import_module("tvm_ffi")
        except ImportError as error:
            raise BundleError(f"apache-tvm-ffi cannot be loaded: {error}") from error
        finally:
            if finder in sys.meta_path:
                sys.meta_path.remove(finder)
        _load_library()
    return tvm_ffi


@functools.cache
def _load_library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        raise BundleError("apache-tvm is not installed; pip install tvmsep")
    suffix = "dylib" if sys.platform == "darwin" else "so"
    path = Path(spec.origin).parent / "lib" / f"libtvm_runtime.{suffix}"
    try:
        return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise BundleError(f"TVM's runtime cannot be loaded: {error}") from error


def allowed_cpus() -> list[int]:
    """CPUs that the calling thread may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def set_threads(tvm_ffi: ModuleType, threads: int, cpus: Sequence[int]) -> None:
    """Give the calling thread, which must be new to TVM, a pool of exactly `threads`."""
    configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    names = [str(cpu) for cpu in cpus]
    # The first call makes the pool, as large as its list is long.
    spread = [names[i % len(names)] for i in range(threads)]
    configure(_ONE_CORE_EACH, threads, spread)
    if 1 < threads < len(cpus):
        configure(_SHARE_CORES, threads, names)
    if hasattr(os, "sched_setaffinity"):
        # TVM lets the calling thread, which works too, float: it can come to rest on the CPU of a
        # worker, and both take twice as long. With a CPU for each, it gets the one that is left.
        os.sched_setaffinity(0, cpus[:1] if 1 < threads == len(cpus) else cpus)
    if (got := tvm_ffi.get_global_func("runtime.NumThreads")()) != threads:
        raise BundleError(f"TVM runs {got} threads where {threads} were asked for")


@dataclass(frozen=True)
class Program:
    """A compiled network that is not loaded yet.

    Attributes:
        library: the shared library, a Relax VM executable.
        inputs: one 64-byte aligned array per input, for callers' data that lies elsewhere.
        weights: 64-byte aligned arrays in call order.
    """

    library: bytes
    inputs: Sequence[Any]
    weights: Sequence[Any]


def load_networks(
    programs: Sequence[Program], threads: int, cpus: Sequence[int]
) -> tuple[Network, ...]:
    """Load networks on the calling thread, where they live and die; it must be new to TVM.

    Args:
        programs: what to load.
        threads: size of the thread pool that they share.
        cpus: where the pool may run.

    Raises:
        BundleError: a library doesn't load, or doesn't take these parameters.
    """
    tvm_ffi = load_runtime()
    set_threads(tvm_ffi, threads, cpus)
    return tuple(Network(tvm_ffi, program) for program in programs)


def release(networks: Sequence[Network]) -> None:
    """Unload networks and give back TVM's memory, but for outputs that somebody still holds."""
    for network in networks:
        network.unload()
    load_runtime().get_global_func("vm.builtin.memory_manager.clear")()


class Network:
    """A compiled network bound to its weights; made by `load_networks`."""

    def __init__(self, tvm_ffi: ModuleType, program: Program) -> None:
        self._ffi = tvm_ffi
        self._module = _load_library_bytes(tvm_ffi, program.library)
        try:
            self._vm = self._module["vm_load_executable"]()
            self._vm["vm_initialization"](_CPU, 0, _POOLED)
            arity = self._vm["get_function_arity"]("main")
            if arity != len(program.inputs) + len(program.weights):
                raise BundleError(
                    f"its library takes {arity} parameters, the manifest lists "
                    f"{len(program.inputs)} inputs and {len(program.weights)} weights"
                )
            weights = [tvm_ffi.from_dlpack(a) for a in program.weights]
            self._vm["save_function"]("main", "tvmsep_bound", 1, *weights)
            self._buffers = [(a, tvm_ffi.from_dlpack(a)) for a in program.inputs]
            self._kept = {a.ctypes.data for a in (*program.inputs, *program.weights)}
            self._main = self._vm["tvmsep_bound"]
        except (AttributeError, RuntimeError, ValueError, TypeError) as error:
            raise BundleError(f"its library is no Relax executable: {error}") from error

    def __call__(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """Run on NumPy arrays of the right shapes; the outputs are new arrays on TVM's memory."""
        import numpy as np

        result = self._main(*self.bind(arrays))
        parts = (result,) if isinstance(result, self._ffi.Tensor) else tuple(result)
        outputs, taken = [], self._kept | {a.ctypes.data for a in arrays}
        for part in parts:
            output = np.from_dlpack(part)
            if output.ctypes.data in taken:  # a view, such as a reshaped input
                output = output.copy()
            taken.add(output.ctypes.data)
            outputs.append(output)
        return tuple(outputs)

    def bind(self, arrays: Sequence[Any]) -> list[Any]:
        """TVM's tensors for arrays: on their own memory where kernels can read it, else copied."""
        import numpy as np

        tensors = []
        for array, (buffer, tensor) in zip(arrays, self._buffers, strict=True):
            flags = array.flags
            # A read-only array has no DLPack form that TVM understands.
            if array.ctypes.data % _ALIGN == 0 and flags.c_contiguous and flags.writeable:
                tensors.append(self._ffi.from_dlpack(array))
            else:
                np.copyto(buffer, array)
                tensors.append(tensor)
        return tensors

    def run(self, tensors: Sequence[Any]) -> Any:
        """Run on what `bind` made and leave the outputs in TVM's memory."""
        return self._main(*tensors)

    def unload(self) -> None:
        """Drop the library and what it holds."""
        self._main = self._vm = self._module = None
        self._buffers = []


def _load_library_bytes(tvm_ffi: ModuleType, library: bytes) -> Any:
    """Load a library from a private folder that is gone again when this returns."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    if sys.platform != "darwin" and (fault := elf_fault(library)) is not None:
        raise BundleError(f"its library cannot be loaded: {fault}; build it again")
    try:
        with tempfile.TemporaryDirectory(prefix="tvmsep-") as folder:
            path = Path(folder) / f"net.{suffix}"
            path.write_bytes(library)
            return tvm_ffi.load_module(path, keep_module_alive=False)
    except OSError as error:
        raise BundleError(
            f"its library cannot be unpacked: {error}; set TMPDIR to a folder with room"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise BundleError(
            f"its library cannot be loaded: {error}; if {tempfile.gettempdir()} is mounted "
            "noexec, set TMPDIR to another folder"
        ) from error


class _Job:
    """Something to do on a worker's thread, and how to wait for it; the first makes networks."""

    def __init__(self, do: Callable[[Any], Any]) -> None:
        self.do = do
        self.done = threading.Lock()
        self.done.acquire()
        self.result: Any = None
        self.error: BaseException | None = None


Networks = tuple[Network, ...]


class Worker:
    """A thread that owns networks and does jobs on them in turn.

    Args:
        make: makes the networks; called on the thread.
        name: the thread's name.

    Raises:
        BundleError: what `make` raised, or that it took over a minute.
    """

    def __init__(self, make: Callable[[], Networks], name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._pid = os.getpid()
        ready = _Job(lambda _: make())
        self._jobs.put(ready)
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()
        if not ready.done.acquire(timeout=_START_TIMEOUT_S):
            self.close()
            raise BundleError(f"its library did not load within {_START_TIMEOUT_S:.0f} s")
        if ready.error is not None:
            raise ready.error

    def do(self, job: Callable[[Networks], Any]) -> Any:
        """Queue a job and wait for its result; any thread may call.

        Raises:
            BundleError: closed, or loaded before a fork.
        """
        entry = _Job(job)
        self._queue(entry)
        while not entry.done.acquire(timeout=_POLL_S):
            if not self._thread.is_alive() and not entry.done.acquire(timeout=_POLL_S):
                raise BundleError("the bundle's thread ended; load it again")
        if entry.error is not None:
            raise entry.error
        return entry.result

    def submit(self, job: Callable[[Networks], Any]) -> Future[Any]:
        """Queue a job; any thread may call. A future that is cancelled before its turn is skipped.

        Raises:
            BundleError: closed, or loaded before a fork.
        """
        future: Future[Any] = Future()

        def run(networks: Networks) -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(job(networks))
            except BaseException as error:  # handed to whoever waits for the future
                future.set_exception(error)

        self._queue(_Job(run))
        return future

    def _queue(self, entry: _Job) -> None:
        if os.getpid() != self._pid:
            raise BundleError(
                "this bundle was loaded before the process forked, and its thread stayed behind; "
                "load it in the child"
            )
        with self._lock:
            if self._closed:
                raise BundleError("this bundle is closed; load it again")
            self._jobs.put(entry)

    def close(self, timeout_s: float = 10.0) -> None:
        """Let queued jobs finish, then end the thread; waits at most `timeout_s`."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    """Body of a worker's thread: knows the queue alone, so an abandoned bundle can be freed."""
    networks: Networks | None = None
    while (job := jobs.get()) is not None:
        try:
            if networks is None:
                networks = job.do(None)
            else:
                job.result = job.do(networks)
        except BaseException as error:  # handed to the caller, who raises it
            job.error = error
            if networks is None:
                return
        finally:
            job.done.release()
            del job
    if networks is not None:
        release(networks)
