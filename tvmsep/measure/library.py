"""Compiling what is measured: object files of host and device, and libraries of kernels."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Target

if TYPE_CHECKING:
    from tvm import IRModule, tirx


def objects_of(lib: Any, t: Target, folder: Path) -> list[Path]:
    """Object files of a built module in `folder`: the host's code, and the device's if it has any.

    Raises:
        DeviceCodeRefused: the compiler of device code refuses a kernel.
        LinkError: it is not installed.
    """
    from tvmsep.codegen.cuda import device_object

    found = [folder / "host.o"]
    lib.write_to_file(str(found[0]), "o")
    image = device_object(lib, t) if t.gpu is not None else None
    if image is not None:
        found.append(folder / "device.o")
        found[1].write_bytes(image)
    return found


def build_library(mod: IRModule | tirx.PrimFunc, t: Target, out: Path) -> Path:
    """Compile into the shared library `out`, which appears complete or not at all.

    Raises:
        LinkError: as `objects_of`, or the linker refuses.
    """
    from tvmsep.codegen import link_shared, machine_code

    lib = machine_code(mod, t)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        linked = Path(name) / out.name
        link_shared(objects_of(lib, t, Path(name)), linked, t)
        linked.replace(out)
    return out
