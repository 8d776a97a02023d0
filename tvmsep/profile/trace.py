"""A profile in the Trace Event Format, which Chrome's tracing page and Perfetto open."""

from __future__ import annotations

from typing import Any

from tvmsep.contracts.words import counted
from tvmsep.profile.measure import Profile


def trace_events(profile: Profile) -> dict[str, Any]:
    """One run of the network, the one whose total is the median: an event for each layer.

    Times in the trace are microseconds, as the format has it.
    """
    rows = {row.layer: row for row in profile.layers}
    events: list[dict[str, Any]] = [
        _name("process_name", f"{profile.model} on {profile.target}"),
        _name("thread_name", f"network, {counted('thread', profile.threads)}"),
    ]
    at_us = 0.0
    for step in profile.steps:
        row, took_us = rows[step.layer], step.median_run_s * 1e6
        events.append(
            {
                "name": step.layer, "cat": row.template or "operator", "ph": "X",
                "ts": at_us, "dur": took_us, "pid": 1, "tid": 1,
                "args": {
                    "output": step.name, "config": row.config, "mean_us": step.seconds * 1e6,
                    "bound": row.bound, "bound_us": row.bound_s * 1e6,
                    "gflops_per_s": row.flops / step.median_run_s / 1e9,
                    "share_of_peak": row.flops / step.median_run_s / profile.peak_flops,
                    "bytes": row.bytes,
                },
            }
        )  # fmt: skip
        at_us += took_us
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def _name(kind: str, text: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": 1, "tid": 1, "args": {"name": text}}
