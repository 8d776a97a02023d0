"""CUDA kernels in this process: TVM's runtime on the emulator's device, every access checked."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tvmsep import emulator
from tvmsep.codegen import cuda, example_inputs, kernel, link_shared, reference, relative_error
from tvmsep.codegen.reference import input_dtypes
from tvmsep.contracts import Config, Target, Workload
from tvmsep.schedules import CUDA
from tvmsep.targets import load_target

Case = tuple[Workload, str, Config]
"""A workload, the name of its template, a config."""


def target(name: str = "jetson-orin") -> Target:
    """The device of a target with this machine as its host."""
    return msgspec.structs.replace(
        load_target(name), name=f"emulated-{name}", mcpu="generic" if arm() else "x86-64", mattr=(),
        triple=f"{platform.machine()}-unknown-linux-gnu", requires=(),
    )  # fmt: skip


def arm() -> bool:
    return platform.machine() == "aarch64"


@pytest.fixture(scope="module")
def device() -> Any:
    """The emulator's device, for TVM in this process."""
    emulator.activate()
    import tvm

    patch = pytest.MonkeyPatch()
    patch.setenv(cuda.COMPILER, "emulator")
    patch.setenv(emulator.CHECK, "1")
    yield tvm.cuda(0)
    patch.undo()


def build(cases: Sequence[Case], t: Target) -> Any:
    """One library with a function `k0`, `k1`... for each case, loaded."""
    import tvm

    functions = {
        f"k{i}": kernel(w, t, template, config, f"k{i}")
        for i, (w, template, config) in enumerate(cases)
    }
    with cuda.building(t):
        module = tvm.tirx.build(tvm.IRModule(functions), tvm.target.Target(t.tvm_dict()))
    with tempfile.TemporaryDirectory() as folder:
        host, device, out = (Path(folder) / n for n in ("host.o", "device.o", "out.so"))
        module.write_to_file(str(host), "o")
        made = cuda.device_object(module, t)
        assert made is not None
        device.write_bytes(made)
        link_shared([host, device], out, t)
        return tvm.runtime.load_module(str(out))


def outputs(lib: Any, cases: Sequence[Case], device: Any) -> list[np.ndarray[Any, Any]]:
    """What each case computes from its example inputs; never-written parts are NaN."""
    import tvm

    results = []
    for i, (w, _, _) in enumerate(cases):
        inputs = [tvm.runtime.tensor(a, device) for a in example_inputs(w, 0)]
        nan = np.full(w.out_shape, np.nan, w.out_dtype)
        out = tvm.runtime.tensor(nan, device)
        try:
            lib[f"k{i}"](*inputs, out)
            results.append(out.numpy())
        except Exception as error:
            emulator.reset()
            raise AssertionError(f"{cases[i]}: {error}") from error
    return results


def errors(lib: Any, cases: Sequence[Case], device: Any) -> list[float]:
    """The relative error of each case against NumPy in float64."""
    got = outputs(lib, cases, device)
    return [
        relative_error(a, reference(w, example_inputs(w, 0)), w.oc)
        for a, (w, _, _) in zip(got, cases, strict=True)
    ]


__all__ = ["CUDA", "Case", "build", "device", "errors", "input_dtypes", "outputs", "target"]
