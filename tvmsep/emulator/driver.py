"""Stand-ins for NVIDIA's libraries: with them TVM's own CUDA runtime runs on this CPU."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from tvmsep.emulator.build import cached, link, native, parts_object
from tvmsep.emulator.source import EmulatorError

DRIVER, RUNTIME = "libcuda.so.1", "libcudart.so.13"


def stand_in() -> Path:
    """The folder with libcuda.so.1 and libcudart.so.13, compiled once for this user.

    In LD_LIBRARY_PATH of a new process it makes TVM see a CUDA device there. What that device is
    and what goes wrong on it is in `native/driver.c`.

    Raises:
        EmulatorError: they cannot be compiled or kept.
        LinkError: there is no compiler.
    """
    return cached("stand-in", _make)


def activate() -> None:
    """Make TVM see a CUDA device in this process, which must not have imported TVM yet.

    Raises:
        EmulatorError: TVM is imported already.
    """
    if "tvm" in sys.modules:
        raise EmulatorError("activate() comes too late: TVM looked for a CUDA device when imported")
    folder = stand_in()
    for name in (DRIVER, RUNTIME):
        ctypes.CDLL(str(folder / name), mode=os.RTLD_NOW | os.RTLD_GLOBAL)


def _make(out: Path) -> None:
    out.mkdir()
    driver, versions = out / DRIVER, f"--version-script={native('libcudart.map')}"
    link([parts_object("driver")], driver, f"-soname={DRIVER}")
    link(
        [parts_object("cudart"), driver], out / RUNTIME,
        f"-soname={RUNTIME}", versions, "-rpath=$ORIGIN",
    )  # fmt: skip
