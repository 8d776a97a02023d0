"""XNNPACK through ExecuTorch: the network exported by torch, lowered to XNNPACK's delegate.

XNNPACK picks its kernels by CPUID; the library that ExecuTorch ships has no switch to limit that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from executorch.extension.pybindings import _C
from harness.protocol import Job

from engines import torch_net


def _file(job: Job) -> Path:
    return Path(job.folder) / "model.pte"


def prepare(job: Job) -> dict[str, str]:
    """Export and lower. The facts tell how much of the network XNNPACK took."""
    if _file(job).is_file():
        return {}
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    example = (torch.from_numpy(np.load(job.inputs)[0]),)
    program = torch.export.export(torch_net.load(job.model), example)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    nodes = lowered.exported_program().graph.nodes
    calls = [str(n.target) for n in nodes if n.op == "call_function" and "getitem" not in str(n)]
    _file(job).write_bytes(lowered.to_executorch().buffer)
    delegates = sum("delegate" in c for c in calls)
    rest = [c for c in calls if "delegate" not in c]
    return {"delegates": str(delegates), "outside": ", ".join(rest) or "nothing"}


def load(job: Job) -> tuple[object, dict[str, str]]:
    """The method `forward`, run by ExecuTorch's own thread pool."""
    from executorch.runtime import Runtime

    _C._unsafe_reset_threadpool(job.threads)
    method = Runtime.get().load_program(_file(job)).load_method("forward")

    def call(x: np.ndarray) -> np.ndarray:
        return method.execute([torch.from_numpy(x)])[0].numpy()

    return call, {"threads": str(_C._threadpool_get_thread_count())}
