"""tvmsep on a GPU: `tvmsep` with tuning logs, `tvmsep-untuned` from its analytic defaults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from harness.protocol import Job, Unsupported

import tvmsep


def _bundle(job: Job) -> Path:
    return Path(job.folder) / "net.tvmsep"


def prepare(job: Job) -> dict[str, str]:
    """Build a bundle; it is checked against the model on the GPU."""
    logs = [] if job.engine == "tvmsep-untuned" else job.logs
    made = tvmsep.build(job.model, out=_bundle(job), target=job.target, logs=logs, dtype=job.dtype)
    if job.engine == "tvmsep" and not made.tuned:
        raise Unsupported("no log has a kernel of this network: tune it, or give --log")
    return {"tuned": f"{made.tuned} of {made.tasks} kernels", "target": job.target}


class _Call:
    def __init__(self, job: Job) -> None:
        self._net = tvmsep.Bundle.load(_bundle(job))
        self._inputs: list[np.ndarray] = []

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self._inputs = [x]
        return self._net(x)

    def on_device(self, runs: int) -> list[float]:
        """Seconds of each run: `Bundle.time` copies the input once, before them."""
        return self._net.time(runs, warmup=0, inputs=self._inputs)


def load(job: Job) -> tuple[object, dict[str, str]]:
    """The bundle as `tvmsep.Bundle` runs it."""
    return _Call(job), {"dtype": job.dtype, "target": job.target}
