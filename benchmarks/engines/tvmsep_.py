"""tvmsep itself: `tvmsep` with tuning logs, `tvmsep-untuned` as `build --no-logs` builds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from harness.protocol import Job, Unsupported

import tvmsep
from tvmsep.targets import load_target


def _bundle(job: Job) -> Path:
    return Path(job.folder) / f"threads{job.threads}.tvmsep"


def prepare(job: Job) -> dict[str, str]:
    """Build a bundle."""
    logs = [] if job.engine == "tvmsep-untuned" else job.logs
    target = "x86-avx2" if job.isa == "avx2" else "local"
    made = tvmsep.build(
        job.model, out=_bundle(job), target=target, threads=[job.threads], logs=logs
    )
    if job.engine == "tvmsep" and not made.tuned:
        raise Unsupported(
            f"no log has a kernel of this network for {load_target(target).name} at {job.threads} "
            "threads: tune it and give --log, or compare tvmsep-untuned"
        )
    return {"tuned": f"{made.tuned} of {made.tasks} kernels", "target": load_target(target).name}


def load(job: Job) -> tuple[object, dict[str, str]]:
    """The bundle as `tvmsep.Bundle` runs it."""
    net = tvmsep.Bundle.load(_bundle(job), job.threads)

    def call(x: np.ndarray) -> np.ndarray:
        return net(x)

    return call, {"threads": str(net.threads), "isa": net.manifest.target.name}
