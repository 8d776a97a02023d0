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

from harness.protocol import Job, Unsupported, read_job, write_json

WARM_CALLS, MIN_WARM_S, MAX_WARM_S = 10, 0.3, 2.0
MIN_TIMED_S, MAX_TIMED_S = 0.3, 10.0
"""A fast engine makes more calls than asked for until it has been timed this long; a slow one stops
at the upper limit with fewer, though never with fewer than `MIN_RUNS`."""
MIN_RUNS = 5


def timed(call: Callable[[], Any], runs: int) -> tuple[list[float], float]:
    """Seconds of each call after a warm-up, and how many cores were busy meanwhile."""
    begin = time.perf_counter()
    _repeat(call, begin, WARM_CALLS, 2, MIN_WARM_S, MAX_WARM_S)
    busy, begin = time.process_time(), time.perf_counter()
    times = _repeat(call, begin, runs, MIN_RUNS, MIN_TIMED_S, MAX_TIMED_S)
    wall = time.perf_counter() - begin
    return times, (time.process_time() - busy) / wall


def _repeat(
    call: Callable[[], Any], begin: float, calls: int, least: int, min_s: float, max_s: float
) -> list[float]:
    """Seconds of each call: at least `calls` and `min_s`; past `least`, `max_s` ends it."""
    times: list[float] = []
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        times.append(now - start)
        spent = now - begin
        if (len(times) >= calls and spent >= min_s) or (len(times) >= least and spent >= max_s):
            return times


def on_device(run: Callable[[int], list[float]], runs: int) -> tuple[list[float], float]:
    """Seconds of each run on a GPU after a warm-up, and how many cores waited meanwhile."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < MIN_WARM_S:
        run(WARM_CALLS)
    busy, begin, times = time.process_time(), time.perf_counter(), run(runs)
    while (spent := time.perf_counter() - begin) < MIN_TIMED_S:
        times += run(runs)
    return times, (time.process_time() - busy) / spent


def measure(engine: Any, job: Job) -> dict[str, Any]:
    """Load, time, and keep the outputs for both inputs beside the engine's files.

    A GPU's engine is timed by its call's `on_device(runs)`, see `engines.gpu`.
    """
    import numpy as np

    first, second = np.load(job.inputs)
    call, facts = engine.load(job)
    if hasattr(call, "on_device"):
        call(first)
        times, busy = on_device(call.on_device, job.runs)
    else:
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
