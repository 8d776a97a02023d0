"""onnxruntime's CPU provider. MLAS picks its kernels by CPUID and has no switch to limit that."""

from __future__ import annotations

import numpy as np
import onnxruntime
from harness.protocol import Job


def prepare(job: Job) -> dict[str, str]:
    """Nothing to do: it reads the ONNX file."""
    return {}


def load(job: Job) -> tuple[object, dict[str, str]]:
    """A session with every graph optimisation, its output in a NumPy array of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def call(x: np.ndarray) -> np.ndarray:
        return session.run(None, {name: x})[0]

    return call, {"threads": str(options.intra_op_num_threads)}
