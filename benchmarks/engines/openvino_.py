"""OpenVINO's CPU plugin in float32, hinted to latency, one stream, input and output not copied."""

from __future__ import annotations

from collections import Counter

import numpy as np
import openvino as ov
from harness.protocol import Job


def prepare(job: Job) -> dict[str, str]:
    """Nothing to do: it reads the ONNX file."""
    return {}


def load(job: Job) -> tuple[object, dict[str, str]]:
    """A request on a compiled model.

    The facts count the kernels by name: whether a limit on the instruction set took hold can be
    read there.
    """
    settings = {
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = ov.Core().compile_model(job.model, "CPU", settings)
    request = model.create_infer_request()

    def call(x: np.ndarray) -> np.ndarray:
        request.set_input_tensor(ov.Tensor(x, shared_memory=True))
        request.infer()
        return request.get_output_tensor().data

    names = (
        str(op.get_rt_info()["primitiveType"].astype(str))
        for op in model.get_runtime_model().get_ops()
    )
    kernels = Counter(name for name in names if not name.startswith("unknown"))  # constants
    return call, {
        "threads": str(model.get_property("INFERENCE_NUM_THREADS")),
        "precision": str(model.get_property("INFERENCE_PRECISION_HINT")),
        "isa": ", ".join(f"{n} {name}" for name, n in kernels.most_common()),
    }
