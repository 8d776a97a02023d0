"""An engine for the benchmark's tests: its process sleeps, and fails in the ways engines fail."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from harness.protocol import Job, Unsupported


def prepare(job: Job) -> dict[str, str]:
    if job.engine == "refuses":
        raise Unsupported("node 3 is a dragon")
    Path(job.folder, "prepared").write_text(str(job.threads))
    return {"tuned": "3 of 4 kernels"}


def load(job: Job) -> tuple[object, dict[str, str]]:
    assert Path(job.folder, "prepared").read_text() == str(job.threads)
    scale = {"wrong": 1.01, "stuck": 0.0}.get(job.engine, 1.0)
    frozen: list[np.ndarray] = []

    def call(x: np.ndarray) -> np.ndarray:
        if job.engine == "hangs":
            time.sleep(600)
        if job.engine == "crashes":
            print("the last words", flush=True)
            os.abort()
        time.sleep(0.002)
        if job.engine == "ignores":
            frozen.append(x)
            return frozen[0]
        return x * np.float32(scale)

    return call, {"omp": os.environ["OMP_NUM_THREADS"], "isa": os.environ.get("FAKE_ISA", "")}
