"""Compiling kernels that measure the board itself."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tvmsep.contracts import Target

if TYPE_CHECKING:
    from tvm import IRModule, tirx


def build_library(mod: IRModule | tirx.PrimFunc, t: Target, out: Path) -> Path:
    """Compile into the shared library `out`, which appears complete or not at all.

    Raises:
        LinkError: a linker or a compiler of device code is missing, or refuses.
    """
    import tvm

    from tvmsep.codegen import device_object, link_shared

    lib = tvm.tirx.build(mod, tvm.target.Target(t.tvm_dict()))
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        host, device, linked = (Path(name) / n for n in ("host.o", "device.o", out.name))
        lib.write_to_file(str(host), "o")
        image = device_object(lib, t) if t.gpu is not None else None
        if image is not None:
            device.write_bytes(image)
        link_shared([host, *([device] if image is not None else [])], linked, t)
        linked.replace(out)
    return out
