"""torch.compile with its default backend: frozen weights, channels last, generated code cached."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from harness.protocol import Job

from engines import torch_net


def _compiled(job: Job) -> object:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(job.folder) / f"cache{job.threads}")
    import torch._inductor.config as config

    torch.set_num_threads(job.threads)
    config.freezing = True
    if job.isa == "avx2":
        config.cpp.simdlen, config.cpp.march = 256, "haswell"
    return torch.compile(torch_net.load(job.model).to(memory_format=torch.channels_last))


def _call(job: Job) -> object:
    net = _compiled(job)

    def call(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            tensor = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
            return net(tensor).numpy()

    return call


def prepare(job: Job) -> dict[str, str]:
    """Compile once, so that later processes find the generated code in the cache."""
    _call(job)(np.load(job.inputs)[0])
    return {}


def load(job: Job) -> tuple[object, dict[str, str]]:
    """The compiled module; the input's change of layout is part of its time."""
    return _call(job), {
        "threads": str(torch.get_num_threads()),
        "isa": torch.backends.cpu.get_cpu_capability(),
    }
