"""TVM's runtime, and a compiled network in it.

**Only the runtime.** Calling a compiled network takes `tvm_ffi` and `libtvm_runtime`; the Python
package `tvm` would load the 260 MB compiler. It isn't imported, only its folder is looked up, so a
program that wants the compiler imports it as usual, before or after. `tvm_ffi` imports torch where
it is installed (seconds, 200 MB); it works without, so that one import is answered with "not
installed" in a process that hasn't loaded torch by itself.

**On the caller's thread.** TVM keeps a thread pool for each thread that calls it, and pins that
thread to a CPU. A bundle's library brings a pool of its own (`compiler/pool.c`), so the network
runs where it is called, beside threads that belong to nobody else; handing a call to another
thread and back would take 70 to 170 microseconds. TVM's VM must not be called from two threads at
once: calls are done in turn.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from tvmsep.bundle.device import KIND as _CUDA
from tvmsep.bundle.device import CudaDevice
from tvmsep.bundle.elf import elf_fault
from tvmsep.contracts import BundleError
from tvmsep.contracts.words import counted

T = TypeVar("T")

_CPU, _POOLED = 1, 2
_THREADS = "tvmsep_threads"
_import_lock = threading.RLock()


def _renew_lock() -> None:
    global _import_lock
    _import_lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # another thread may have held it, and is not in the child
    os.register_at_fork(after_in_child=_renew_lock)


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


@dataclass(frozen=True)
class Program:
    """A compiled network that is not loaded yet.

    Attributes:
        library: the shared library, a Relax VM executable that was linked with the pool.
        inputs: one array per input, for callers' data that cannot be read where it lies.
        weights: 64-byte aligned arrays in call order.
        cuda: whether its kernels run on a CUDA device.
    """

    library: bytes
    inputs: Sequence[Any]
    weights: Sequence[Any]
    cuda: bool = False


class Network:
    """A compiled network with its weights and its threads; one thread at a time may call it.

    Args:
        program: what to load.
        threads: how many work on a call, the caller's included.

    Raises:
        BundleError: the library doesn't load, or doesn't take these parameters; there is no device.
    """

    def __init__(self, program: Program, threads: int) -> None:
        self._ffi = load_runtime()
        self._device = CudaDevice(self._ffi) if program.cuda else None
        self._module = _load_library_bytes(self._ffi, program.library)
        try:
            set_threads = self._module.get_function(_THREADS, query_imports=True)
        except AttributeError as error:
            raise BundleError(
                "its library has no threads of its own: an earlier tvmsep built it; build it again"
            ) from error
        try:
            self._vm = self._module["vm_load_executable"]()
            devices = (_CUDA, 0, _POOLED) if self._device else ()
            self._vm["vm_initialization"](*devices, _CPU, 0, _POOLED)
            arity = self._vm["get_function_arity"]("main")
            if arity != len(program.inputs) + len(program.weights):
                raise BundleError(
                    f"its library takes {arity} parameters, the manifest lists "
                    f"{len(program.inputs)} inputs and {len(program.weights)} weights"
                )
            put = self._device.put if self._device else self._ffi.from_dlpack
            weights = [put(a) for a in program.weights]
            self._vm["save_function"]("main", "tvmsep_bound", 1, *weights)
            self._buffers = [(a, put(a)) for a in program.inputs]
            self._kept = {a.ctypes.data for a in (*program.inputs, *program.weights)}
            self._main = self._vm["tvmsep_bound"]
        except (AttributeError, RuntimeError, ValueError, TypeError) as error:
            raise BundleError(f"its library is no Relax executable: {error}") from error
        try:
            set_threads(threads)
        except RuntimeError as error:
            raise BundleError(f"{counted('thread', threads)} cannot be had: {error}") from error
        # The library must not be unloaded under its threads, however this object ends.
        self._end = weakref.finalize(self, _end_threads, set_threads, os.getpid())

    def __call__(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """Run on NumPy arrays of the right shapes; the outputs are new arrays.

        They are on TVM's memory, but for those that a device computed.
        """
        import numpy as np

        if self._device:
            return self._on_device(arrays)
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

    def _on_device(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """As a call. After a kernel's failure CUDA refuses everything, also to free memory."""
        assert self._device is not None
        with self._forsaken():
            result = self._main(*self.bind(arrays))
            parts = (result,) if isinstance(result, self._ffi.Tensor) else tuple(result)
            return tuple(map(self._device.get, parts))

    @contextlib.contextmanager
    def _forsaken(self) -> Iterator[None]:
        """After a failure nothing on the device is ever freed.

        CUDA refuses it then, and TVM's destructors end the process. Another process can use it.
        """
        try:
            yield
        except Exception:
            tensors = [tensor for _, tensor in self._buffers]
            for held in (self._main, self._vm, self._module, *tensors):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
            raise

    def bind(self, arrays: Sequence[Any]) -> list[Any]:
        """TVM's tensors for arrays: on their own memory where kernels can read it, else copied.

        Those of a device are the same at each call.
        """
        import numpy as np

        tensors = []
        for array, (buffer, tensor) in zip(arrays, self._buffers, strict=True):
            flags = array.flags
            # A read-only array has no DLPack form that TVM understands.
            usable = flags.c_contiguous and flags.aligned and flags.writeable
            if not usable:
                np.copyto(buffer, array)
            if self._device:
                self._device.write(array if usable else buffer, tensor)
            elif usable:
                tensor = self._ffi.from_dlpack(array)
            tensors.append(tensor)
        return tensors

    def run(self, tensors: Sequence[Any]) -> Any:
        """Run to the end on what `bind` made and leave the outputs in TVM's memory."""
        if self._device is None:
            return self._main(*tensors)
        with self._forsaken():
            result = self._main(*tensors)
            self._device.wait()
            return result

    def unload(self) -> None:
        """End the threads and drop the library."""
        self._end()
        self._main = self._vm = self._module = None
        self._buffers = []


def _end_threads(set_threads: Any, pid: int) -> None:
    if os.getpid() == pid:  # in a child that was forked off there are none
        set_threads(0)


class Networks:
    """Networks that are used in turn, by any thread, and end together.

    Args:
        programs: what to load.
        threads: of each.

    Raises:
        BundleError: as for `Network`.
    """

    def __init__(self, programs: Sequence[Program], threads: int) -> None:
        self._turn = threading.RLock()
        self._queue = threading.RLock()
        self._pid = os.getpid()
        self._running = self._closed = self._closed_inside = False
        self._runner: ThreadPoolExecutor | None = None
        self._runner_id = self._owner = 0
        self._loaded: list[Network] = []
        try:
            for program in programs:
                self._loaded.append(Network(program, threads))
        except BaseException:
            self.close()
            raise

    def do(self, job: Callable[[Sequence[Network]], T]) -> T:
        """Do something on the calling thread, while no other does.

        Raises:
            BundleError: closed, loaded before a fork, or called in the middle of a job.
        """
        self._check()
        if self._closed:
            raise _closed()
        return self._do(job)

    def submit(self, job: Callable[[Sequence[Network]], T]) -> Future[T]:
        """Do something in the background, in the order of the calls; cancelled before, it is not.

        Raises:
            BundleError: closed, or loaded before a fork.
        """
        self._check()
        with self._queue:
            if self._closed:
                raise _closed()
            if self._runner is None:
                self._runner = ThreadPoolExecutor(1, "tvmsep", self._note_runner)
            return self._runner.submit(self._do, job)

    def _do(self, job: Callable[[Sequence[Network]], T]) -> T:
        with self._turn:
            if self._running:  # by a signal's handler, or a destructor
                raise BundleError("this bundle was called in the middle of its own run")
            if not self._loaded:
                raise _closed()
            self._running, self._owner = True, threading.get_ident()
            try:
                return job(self._loaded)
            finally:
                self._running, self._owner = False, 0
                if self._closed_inside:
                    self._unload()

    def close(self) -> None:
        """Let what was submitted finish, end all threads and give back TVM's memory.

        Outputs that somebody still holds stay.
        """
        if os.getpid() != self._pid:
            return
        with self._queue:
            if self._closed:
                return
            self._closed = True
        me = threading.get_ident()
        inside = self._owner == me
        if self._runner is not None:
            # An abandoned bundle may be collected in the middle of its own runner's work.
            self._runner.shutdown(wait=not inside and me != self._runner_id)
        if inside:
            self._closed_inside = True
            return
        with self._turn:
            self._unload()

    def _unload(self) -> None:
        for network in self._loaded:
            network.unload()
        if self._loaded:
            self._loaded = []
            # After a kernel's failure a device refuses this too.
            with contextlib.suppress(RuntimeError):
                load_runtime().get_global_func("vm.builtin.memory_manager.clear")()

    def _note_runner(self) -> None:
        self._runner_id = threading.get_ident()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise BundleError(
                "this bundle was loaded before the process forked, and its threads stayed behind; "
                "load it in the child"
            )


def _closed() -> BundleError:
    return BundleError("this bundle is closed; load it again")


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
