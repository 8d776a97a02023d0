"""Stock TVM, untuned: the ONNX importer and the default pipeline, nothing of ours."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from harness.protocol import Job


def _library(job: Job) -> Path:
    return Path(job.folder) / f"threads{job.threads}.so"


def _target(job: Job) -> dict[str, object]:
    import tvm

    host = tvm.target.codegen.llvm_get_system_cpu()
    mcpu = "haswell" if job.isa == "avx2" else host
    return {"kind": "llvm", "mcpu": mcpu, "num-cores": job.threads}


def prepare(job: Job) -> dict[str, str]:
    """Import and compile."""
    import onnx
    import tvm
    from tvm.relax.frontend.onnx import from_onnx

    target = _target(job)
    module = from_onnx(onnx.load(job.model))
    with tvm.target.Target(target):
        tvm.compile(module, tvm.target.Target(target)).export_library(str(_library(job)))
    return {"target": str(target)}


def load(job: Job) -> tuple[object, dict[str, str]]:
    """The compiled library in TVM's virtual machine."""
    os.environ["TVM_NUM_THREADS"] = str(job.threads)  # else its pool has half of the cores
    import tvm
    from tvm import relax

    machine = relax.VirtualMachine(tvm.runtime.load_module(str(_library(job))), tvm.cpu())

    def call(x: np.ndarray) -> np.ndarray:
        result = machine["main"](tvm.runtime.tensor(x))
        return (result if hasattr(result, "numpy") else result[0]).numpy()

    return call, {"threads": str(job.threads)}
