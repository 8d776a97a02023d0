"""Device code for CUDA targets: compiled here, embedded in the host's library, never as source.

`tvm.compile` for a CUDA target makes the host's code, with a module of CUDA C that it imports. TVM
would ship that source and compile it where it runs; a board has no compiler. So the imports are
serialised by TVM, the source in them is replaced by machine code (`imports.py`), and LLVM makes
the object file with what TVM's loader looks for.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tvmsep.codegen.cubin import KernelResources, kernel_resources
from tvmsep.codegen.imports import with_images
from tvmsep.codegen.link import LinkError
from tvmsep.codegen.nvrtc import compile_image
from tvmsep.contracts import Gpu, Target

COMPILER = "TVMSEP_CUDA_COMPILER"
"""Environment variable: `nvrtc`, the default, or `emulator`."""
_NO_DRIVER = "TVM_COMPILE_FORCE_FALLBACK"
"""TVM's: while it is set, TVM compiles no device code, as where its CUDA runtime is not loaded."""


@dataclass(frozen=True)
class DeviceCode:
    """Compiled kernels.

    Attributes:
        image: a cubin, PTX where the device wants it, or the emulator's stand-in for a cubin.
        resources: of each kernel; empty for the emulator's.
        form: what TVM calls the image.
    """

    image: bytes
    resources: tuple[KernelResources, ...]
    form: str = "cubin"


@contextmanager
def building(target: Target) -> Iterator[None]:
    """What `tvm.tirx.build` and `relax.build` run under, whatever the target.

    For a CUDA target CUDA C comes out on every host: where there is a driver, TVM would call its
    own compiler at once, with fast-math. Copies to shared memory that a schedule marks as
    asynchronous become such, from compute capability 8.0.
    """
    import tvm

    if target.gpu is None:
        yield
        return
    before = os.environ.get(_NO_DRIVER)
    os.environ[_NO_DRIVER] = "1"
    try:
        config = {"tirx.use_async_copy": target.gpu.compute_capability >= 80}
        with tvm.transform.PassContext(config=config):
            yield
    finally:
        if before is None:
            del os.environ[_NO_DRIVER]
        else:
            os.environ[_NO_DRIVER] = before


def emulated() -> bool:
    """Whether device code is compiled for the emulator.

    Raises:
        LinkError: the variable has another value than the two it may have.
    """
    wanted = os.environ.get(COMPILER) or "nvrtc"
    if wanted not in ("nvrtc", "emulator"):
        raise LinkError(f"{COMPILER} is {wanted!r}: give nvrtc or emulator")
    return wanted == "emulator"


@lru_cache(maxsize=16)
def compile_cuda(source: str, gpu: Gpu) -> DeviceCode:
    """Compile CUDA C, as TVM writes it, for a device.

    Raises:
        DeviceCodeRefused: the compiler refuses it; with its words.
        LinkError: the compiler is not installed.
    """
    image = compile_image(source, gpu)
    resources = kernel_resources(image, gpu)
    spilled = [r.name for r in resources if r.spill_bytes]
    if spilled:
        # ptxas may spill a little to let one more block onto a multiprocessor: one is enough.
        freed = f"__launch_bounds__\\((\\d+)\\)(?= (?:{'|'.join(spilled)})\\()"
        alone = re.sub(freed, r"__launch_bounds__(\1, 1)", source)
        again = compile_image(alone, gpu)
        better = kernel_resources(again, gpu)
        if sum(r.spill_bytes for r in better) < sum(r.spill_bytes for r in resources):
            image, resources, source = again, better, alone
    if gpu.ptx:
        return DeviceCode(compile_image(source, gpu, ptx=True), resources, "ptx")
    return DeviceCode(image, resources)


def device_code(source: str, gpu: Gpu) -> DeviceCode:
    """As `compile_cuda`, by the compiler that TVMSEP_CUDA_COMPILER names."""
    if not emulated():
        return compile_cuda(source, gpu)
    from tvmsep.emulator import compile_source

    return DeviceCode(compile_source(source), ())


def device_object(module: Any, target: Target, prefix: str = "") -> bytes | None:
    """The object file with what a built module imports, its CUDA C compiled.

    It is linked with the object file of the module itself, in place of the one that TVM makes for
    its imports.

    Args:
        module: what `tvm.tirx.build` or `relax.build` made under `building`; its root is the
            host's code.
        target: what it was made for.
        prefix: of the names in a static library; empty for a shared one.

    Returns:
        None where nothing that it imports is CUDA C.

    Raises:
        DeviceCodeRefused: the compiler refuses a kernel.
        LinkError: the compiler is not installed.
    """
    import tvm_ffi

    gpu = target.gpu
    assert gpu is not None
    pack = tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")
    packed: bytes = pack(module).numpy().tobytes()

    def image_of(source: str) -> tuple[str, bytes]:
        code = device_code(source, gpu)
        return code.form, code.image

    blob, count = with_images(packed, image_of)
    if not count:
        return None
    return _as_object(blob, target, prefix)


def _as_object(blob: bytes, target: Target, prefix: str) -> bytes:
    import tvm_ffi

    host = target.tvm_dict()["host"]
    make = tvm_ffi.get_global_func("codegen.codegen_blob")
    module = make(blob, bool(prefix), json.dumps(host), prefix)
    with tempfile.TemporaryDirectory(prefix="tvmsep-") as folder:
        out = Path(folder) / "devc.o"
        module.write_to_file(str(out), "o")
        return out.read_bytes()
