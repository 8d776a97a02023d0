"""A CUDA device under TVM's runtime: whether there is one, and tensors in its memory.

TVM's runtime for CUDA is a library of its own in the `apache-tvm` wheel. It needs the driver
(`libcuda.so.1`, which comes with it) and CUDA 13's runtime library (`libcudart.so.13`, in a wheel).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tvmsep.contracts import BundleError, Gpu
from tvmsep.contracts.target import INTEGRATED

KIND = 2
"""DLPack's number for CUDA."""
_DRIVER, _RUNTIME = "libcuda.so.1", "libcudart.so.13"
_NEED = "CUDA 13 needs NVIDIA's driver 580 or newer"
_OLD_DRIVER, _MAJOR, _MINOR = 35, 75, 76


@functools.cache
def _runtime() -> ctypes.CDLL:
    """CUDA's runtime library, and the driver's before it, loaded so that TVM's finds them."""
    if not sys.platform.startswith("linux"):
        raise BundleError(f"CUDA targets run on Linux only, this host runs {sys.platform}")
    try:
        ctypes.CDLL(_DRIVER, ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise BundleError(f"there is no {_DRIVER}: {_NEED}; install it") from error
    for name in (_RUNTIME, _in_wheel()):
        try:
            return ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
    raise BundleError(
        f"there is no {_RUNTIME}: `pip install 'tvmsep[cuda-run]'` brings CUDA 13's runtime library"
    )


def _in_wheel() -> str:
    """Path of the runtime library in the wheel nvidia-cuda-runtime; its bare name without."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "cu13", "lib", _RUNTIME)
        if path.exists():
            return str(path)
    return _RUNTIME


@functools.cache
def _cudart() -> ctypes.CDLL:
    """CUDA's runtime library, with a device under it."""
    cudart = _runtime()
    count = ctypes.c_int()
    status = cudart.cudaGetDeviceCount(ctypes.byref(count))
    if status == _OLD_DRIVER:
        raise BundleError(f"the NVIDIA driver here is too old: {_NEED}; update it")
    if status or not count.value:
        raise BundleError(
            f"there is no CUDA device that can be used (CUDA's error {status}): `nvidia-smi` "
            "says what the driver sees"
        )
    return cudart


@functools.cache
def load_cuda() -> None:
    """Load TVM's runtime for CUDA; TVM's own runtime is loaded already.

    Raises:
        BundleError: what it needs is not there: the driver, a device, or CUDA's runtime library.
    """
    _cudart()
    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        raise BundleError("apache-tvm is not installed; pip install tvmsep")
    path = Path(spec.origin).parent / "lib" / "libtvm_runtime_cuda.so"
    try:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise BundleError(f"TVM's runtime for CUDA cannot be loaded: {error}") from error


def capability() -> int:
    """The first device's compute capability, 87 of `sm_87`.

    Raises:
        BundleError: there is no device that can be used; says what is missing.
    """
    parts = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        if status := _cudart().cudaDeviceGetAttribute(ctypes.byref(value), attribute, 0):
            raise BundleError(f"the CUDA device does not answer (CUDA's error {status})")
        parts.append(value.value)
    return parts[0] * 10 + parts[1]


def emulated() -> bool:
    """Whether the stand-in of `tvmsep.emulator` answers for the driver."""
    try:
        return hasattr(ctypes.CDLL(_DRIVER), "emu_reset")
    except OSError:
        return False


def device_misfit(gpu: Gpu) -> str | None:
    """Why code for `gpu` cannot run on this host's first device, or None if it can.

    Machine code runs on devices of its own major compute capability and no lower minor one, that
    of a Tegra on its own capability alone; PTX runs on those of no lower capability.
    """
    try:
        here = capability()
    except BundleError as error:
        return str(error)
    wanted = gpu.compute_capability
    apart = here // 10 != wanted // 10 or {here, wanted} & INTEGRATED and here != wanted
    if here < wanted or apart and not gpu.ptx:
        return f"it is for {gpu.arch}, the device here is sm_{here}"
    return None


class CudaDevice:
    """This host's first device.

    Args:
        ffi: `tvm_ffi`, with TVM's runtime loaded.

    Raises:
        BundleError: it cannot be used.
    """

    def __init__(self, ffi: ModuleType) -> None:
        load_cuda()
        self._ffi = ffi
        self._device = ffi.device("cuda", 0)
        self._alloc = ffi.get_global_func("runtime.TVMTensorAllocWithScope")
        self._copy = ffi.get_global_func("runtime.TVMTensorCopyFromTo")
        self._sync = ffi.get_global_func("runtime.Device_StreamSync")

    def put(self, array: Any) -> Any:
        """A tensor of the device with the values of a NumPy array."""
        tensor = self._alloc(self._ffi.Shape(array.shape), str(array.dtype), self._device, None)
        self.write(array, tensor)
        return tensor

    def write(self, array: Any, tensor: Any) -> None:
        """Copy a writeable, C-contiguous NumPy array to a tensor of the device."""
        self._copy(self._ffi.from_dlpack(array), tensor)

    def get(self, tensor: Any) -> Any:
        """A new NumPy array with the values of a tensor of the device."""
        import numpy as np

        array: Any = np.empty(tuple(tensor.shape), str(tensor.dtype))
        self._copy(tensor, self._ffi.from_dlpack(array))
        self.wait()
        return array

    def wait(self) -> None:
        """Until all that was asked of the device is done."""
        self._sync(self._device, 0)
