"""Stand-ins for NVIDIA's libraries: with them TVM's own CUDA runtime runs on this CPU."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from tvmsep.emulator.build import cached, link, native, parts_object
from tvmsep.emulator.environment import check_environment
from tvmsep.emulator.source import EmulatorError

DRIVER, RUNTIME = "libcuda.so.1", "libcudart.so.13"
TVM_RUNTIME = "libtvm_runtime_cuda.so"


def stand_in() -> Path:
    """The folder with libcuda.so.1 and libcudart.so.13, compiled once for this user.

    In LD_LIBRARY_PATH of a new process it makes TVM see a CUDA device there. What that device is
    and what goes wrong on it is in `native/driver.c`.

    Raises:
        EmulatorError: they cannot be compiled or kept, or one of the emulator's variables holds
            nonsense.
        LinkError: there is no compiler.
    """
    check_environment()
    return cached("stand-in", _make)


def activate() -> None:
    """Make TVM see a CUDA device in this process, whether or not it has imported TVM.

    Raises:
        EmulatorError: they cannot be compiled or kept, or NVIDIA's own libraries are loaded.
        LinkError: there is no compiler.
    """
    folder = stand_in()
    for name in (DRIVER, RUNTIME):
        ctypes.CDLL(str(folder / name), mode=os.RTLD_NOW | os.RTLD_GLOBAL)
    if "tvm" not in sys.modules:
        return  # its import finds them
    import tvm
    from tvm.base import _LOADED_LIBS

    if "tvm_runtime_cuda" not in _LOADED_LIBS:
        beside = Path(_LOADED_LIBS["tvm_runtime"]._name).resolve().with_name(TVM_RUNTIME)
        _LOADED_LIBS["tvm_runtime_cuda"] = ctypes.CDLL(str(beside), mode=os.RTLD_LOCAL)
    if not tvm.cuda(0).exist or not tvm.cuda(0).device_name.startswith("emulated"):
        raise EmulatorError("this process uses NVIDIA's libraries: emulate in another")


def reset() -> None:
    """Forget a kernel's fault, which every call after it answers, as a new process would."""
    ctypes.CDLL(DRIVER).emu_reset()


def _make(out: Path) -> None:
    out.mkdir()
    driver, versions = out / DRIVER, f"--version-script={native('libcudart.map')}"
    link([parts_object("driver")], driver, f"-soname={DRIVER}")
    link(
        [parts_object("cudart"), driver], out / RUNTIME,
        f"-soname={RUNTIME}", versions, "-rpath=$ORIGIN",
    )  # fmt: skip
