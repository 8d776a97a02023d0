"""An engine for the GPU benchmark's tests: it answers what the reference answered, or not."""

from __future__ import annotations

import time

import onnxruntime as ort
from harness.protocol import Job, Unsupported


class Call:
    def __init__(self, job: Job) -> None:
        self.session = ort.InferenceSession(job.model, providers=["CPUExecutionProvider"])
        self.scale = 1.001 if job.engine == "torch-compile" else 1.0
        self.seconds = {"tvmsep": 1e-3, "torch": 2e-3}.get(job.engine, 5e-4)

    def __call__(self, x):  # type: ignore[no-untyped-def]
        name = self.session.get_inputs()[0].name
        return self.session.run(None, {name: x})[0] * self.scale

    def on_device(self, runs: int) -> list[float]:
        time.sleep(self.seconds * runs)
        return [self.seconds] * runs


def prepare(job: Job) -> dict[str, str]:
    if job.engine == "tensorrt":
        raise Unsupported("no such device")
    assert job.target == "t4" and job.dtype in ("float32", "float16")
    return {"dtype": job.dtype}


def load(job: Job) -> tuple[object, dict[str, str]]:
    return Call(job), {}
