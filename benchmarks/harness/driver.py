"""The process that an engine is prepared or timed in; runs in the engine's own environment.

    python -P -m harness.driver prepare|measure JOB.json ANSWER.json

The answer is a file, because engines print what they like.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.protocol import Job, read_job, write_json

WARM_CALLS = 10
MAX_WARM_S = 2.0
MAX_TIMED_S = 10.0
"""A slow engine stops here with fewer calls than asked for, though never fewer than `MIN_RUNS`."""
MIN_RUNS = 5


class Unsupported(Exception):
    """The engine, or the way a model gets into it, cannot take this job; says why."""


def timed(call: Callable[[], Any], runs: int) -> tuple[list[float], float]:
    """Seconds of each call after a warm-up, and how many cores were busy meanwhile."""
    end = time.perf_counter() + MAX_WARM_S
    for n in range(WARM_CALLS):
        if n >= 2 and time.perf_counter() > end:
            break
        call()
    times: list[float] = []
    busy, begin = time.process_time(), time.perf_counter()
    while len(times) < runs:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        times.append(now - start)
        if len(times) >= MIN_RUNS and now - begin > MAX_TIMED_S:
            break
    wall = time.perf_counter() - begin
    return times, (time.process_time() - busy) / wall


def measure(engine: Any, job: Job) -> dict[str, Any]:
    """Load, time, and keep the outputs for both inputs beside the engine's files."""
    import numpy as np

    first, second = np.load(job.inputs)
    call, facts = engine.load(job)
    times, busy = timed(lambda: call(first), job.runs)
    # In this order: an engine that hands out its own buffer must not give one output twice.
    outputs = [np.array(call(x), np.float32).ravel() for x in (second, first)]
    np.save(Path(job.folder) / f"outputs{job.threads}.npy", np.stack(outputs[::-1]))
    return {"times_s": times, "cores_busy": busy, "facts": facts}


def main() -> None:
    """Do one job."""
    verb, source, target = sys.argv[1:]
    job = read_job(Path(source))
    answer: dict[str, Any] = {"version": importlib.metadata.version(job.package)}
    engine = importlib.import_module(job.module)
    try:
        if verb == "prepare":
            answer["facts"] = engine.prepare(job)
        else:
            answer |= measure(engine, job)
    except Unsupported as error:
        answer["unsupported"] = str(error)
    write_json(Path(target), answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # some engines crash in their destructors, after the work is done


if __name__ == "__main__":
    main()
