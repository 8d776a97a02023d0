"""What the benchmark and an engine's process tell each other: two JSON files.

Standard library only: this is imported in every engine's environment.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


class Unsupported(Exception):
    """An engine, or the way a model gets into it, cannot take a job; says why."""


@dataclass(frozen=True)
class Job:
    """One engine on one network at one thread count.

    Attributes:
        engine: name in `engines.ENGINES`.
        module: the engine's module.
        package: whose version is reported.
        model: the ONNX file that all engines get.
        inputs: .npy with two inputs, [2, n, c, h, w]; the first is timed.
        folder: the engine's own, kept over all rounds of a network.
        threads: of the engine.
        isa: `native` or `avx2`.
        runs: timed calls.
        logs: tuning logs for tvmsep; None for those that it ships.
        dtype: `float32` or `float16`: what a GPU's engine computes with.
        target: of tvmsep, where it is not this host's.
    """

    engine: str
    module: str
    package: str
    model: str
    inputs: str
    folder: str
    threads: int
    isa: str
    runs: int
    logs: list[str] | None = None
    dtype: str = "float32"
    target: str = "local"


def write_json(path: Path, value: Any) -> None:
    """Write a whole file or none."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_job(path: Path, job: Job) -> None:
    """Write `job` for the engine's process."""
    write_json(path, asdict(job))


def read_job(path: Path) -> Job:
    """The job in `path`."""
    return Job(**json.loads(path.read_text(encoding="utf-8")))
