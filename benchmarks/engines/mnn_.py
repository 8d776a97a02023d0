"""MNN on the CPU in float32 (precision high), through its session API."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import MNN
import numpy as np
from harness.protocol import Job, Unsupported


def _file(job: Job) -> Path:
    return Path(job.folder) / "model.mnn"


def prepare(job: Job) -> dict[str, str]:
    """Convert with the wheel's own converter."""
    if not _file(job).is_file():
        command = [str(Path(sys.executable).with_name("mnnconvert")), "-f", "ONNX"]
        command += ["--modelFile", job.model, "--MNNModel", str(_file(job)), "--bizCode", "bench"]
        done = subprocess.run(command, capture_output=True, text=True)
        if not _file(job).is_file():  # its exit status is 0 either way
            raise Unsupported(f"mnnconvert: {(done.stdout + done.stderr).strip()[-300:]}")
    return {}


def load(job: Job) -> tuple[object, dict[str, str]]:
    """A session; its own tensors are in MNN's layout, so input and output are copied."""
    net = MNN.Interpreter(str(_file(job)))
    settings = {"backend": "CPU", "numThread": job.threads, "precision": "high"}
    session = net.createSession(settings)
    source, result = net.getSessionInput(session), net.getSessionOutput(session)
    shape = result.getShape()
    kind, layout = MNN.Halide_Type_Float, MNN.Tensor_DimensionType_Caffe
    host = MNN.Tensor(shape, kind, np.zeros(shape, np.float32), layout)

    def call(x: np.ndarray) -> np.ndarray:
        source.copyFrom(MNN.Tensor(x.shape, kind, x, layout))
        net.runSession(session)
        result.copyToHostTensor(host)
        return host.getNumpyData()

    return call, {"threads": str(job.threads), "precision": "high"}
