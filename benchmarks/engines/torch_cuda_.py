"""torch on a GPU: eager with cuDNN (`torch`), or compiled and in a CUDA graph (`torch-compile`).

Weights and activations in the layout that cuDNN prefers, channels last; cuDNN tries its algorithms
for each convolution beforehand. float32 is float32: TF32 is off.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from harness.protocol import Job, Unsupported

from engines import torch_net


class _Call:
    def __init__(self, job: Job) -> None:
        if not torch.cuda.is_available():
            raise Unsupported(f"torch {torch.__version__} finds no CUDA device")
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self._dtype = getattr(torch, job.dtype)
        net: Any = torch_net.load(job.model).to(
            "cuda", self._dtype, memory_format=torch.channels_last
        )
        compiled = job.engine == "torch-compile"
        # "max-autotune" records a CUDA graph, too.
        self._net = torch.compile(net, mode="max-autotune") if compiled else net
        self._x: Any = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self._x = torch.from_numpy(x).to("cuda", self._dtype, memory_format=torch.channels_last)
        with torch.no_grad():
            return self._net(self._x).float().cpu().numpy()

    def on_device(self, runs: int) -> list[float]:
        """Seconds of each run."""
        times = []
        with torch.no_grad():
            for _ in range(runs):
                torch.cuda.synchronize()
                begin = time.perf_counter()
                self._net(self._x)
                torch.cuda.synchronize()
                times.append(time.perf_counter() - begin)
        return times


def prepare(job: Job) -> dict[str, str]:
    """Run once, so that generated code lies in torch's cache."""
    _Call(job)(np.load(job.inputs)[0])
    return {}


def load(job: Job) -> tuple[object, dict[str, str]]:
    """The module on the device."""
    call = _Call(job)
    return call, {
        "dtype": job.dtype,
        "device": torch.cuda.get_device_name(),
        "cudnn": str(torch.backends.cudnn.version()),
    }
