"""TVM's runtime, and a compiled network in it.

**Only the runtime.** Calling a compiled network takes `tvm_ffi` and `libtvm_runtime`; the Python
package `tvm` would load the 260 MB compiler. It isn't imported, only its folder is looked up, so a
program that wants the compiler imports it as usual, before or after. `tvm_ffi` imports torch where
it is installed (seconds, 200 MB); it works without, so that one import is answered with "not
installed" in a process that hasn't loaded torch by itself.

**On the caller's thread.** TVM keeps a thread pool for each thread that calls it, and pins that
thread to a CPU. A bundle's library brings a pool of its own (`compiler/pool.c`), so the network runs
where it is called, beside threads that belong to nobody else; handing a call to another thread and
back would take 70 to 170 microseconds. TVM's VM must not be called from two threads at once: calls
are done in turn.
"""

from __future__ import annotations

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
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from tvmsep.bundle.elf import elf_fault
from tvmsep.contracts import BundleError

T = TypeVar("T")

_CPU, _POOLED = 1, 2
_THREADS = "tvmsep_threads"
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


class Network:
    """A compiled network with its weights and its threads. Any thread may call it.

    Args:
        library: the shared library, a Relax VM executable that was linked with the pool.
        inputs: how many inputs it takes, before its weights.
        weights: 64-byte aligned arrays in call order.
        threads: how many work on a call, the caller's included.

    Raises:
        BundleError: the library doesn't load, or doesn't take these parameters.
    """

    def __init__(
        self, library: bytes, inputs: int, weights: Sequence[Any], threads: int
    ) -> None:
        tvm_ffi = load_runtime()
        self._ffi = tvm_ffi
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._module = _load_library_bytes(tvm_ffi, library)
        self._vm = self._run = None
        try:
            self._set_threads = self._module.get_function(_THREADS, query_imports=True)
        except AttributeError as error:
            raise BundleError(
                "its library has no threads of its own: an earlier tvmsep built it; build it again"
            ) from error
        try:
            vm = self._module["vm_load_executable"]()
            vm["vm_initialization"](_CPU, 0, _POOLED)
            arity = vm["get_function_arity"]("main")
            if arity != inputs + len(weights):
                raise BundleError(
                    f"its library takes {arity} parameters, the manifest lists {inputs} "
                    f"inputs and {len(weights)} weights"
                )
            self._weights = tuple(map(tvm_ffi.from_dlpack, weights))
            self._set_threads(threads)
            self._vm, self._run = vm, vm["main"]
        except (AttributeError, RuntimeError, ValueError, TypeError) as error:
            raise BundleError(f"its library is no Relax executable: {error}") from error

    def do(self, job: Callable[[Network], T]) -> T:
        """Do something with the network while no other thread does.

        Raises:
            BundleError: released, or loaded before a fork.
        """
        if os.getpid() != self._pid:
            raise BundleError(
                "this bundle was loaded before the process forked, and its threads stayed behind; "
                "load it in the child"
            )
        with self._lock:
            if self._run is None:
                raise BundleError("this bundle is closed; load it again")
            return job(self)

    def __call__(self, *arrays: Any) -> tuple[Any, ...]:
        """Run on C-contiguous NumPy arrays, which are not copied; the outputs are new ones."""
        import numpy as np

        result = self.run(self.take(arrays))
        parts = (result,) if isinstance(result, self._ffi.Tensor) else tuple(result)
        return tuple(np.array(np.from_dlpack(part)) for part in parts)

    def take(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The arrays as TVM sees them, in the same memory."""
        return tuple(map(self._ffi.from_dlpack, arrays))

    def run(self, tensors: Sequence[Any]) -> Any:
        """Run on what `take` gave and leave the outputs in TVM's memory."""
        assert self._run is not None
        return self._run(*tensors, *self._weights)

    def release(self) -> None:
        """End the threads, give back TVM's memory and unload the library; once the call is done."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._run is None:
                return
            self._set_threads(0)
            self._run = self._vm = self._set_threads = self._module = None
            self._weights = ()
            self._ffi.get_global_func("vm.builtin.memory_manager.clear")()


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
