"""Logs of made-up trials, for the page that shows them."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from tvmsep.contracts import Target, Trial, Workload
from tvmsep.schedules import TEMPLATES, template_for
from tvmsep.targets import load_target

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"


def workload(channels: int, size: int = 14, op: str = "pointwise") -> Workload:
    more: dict[str, Any] = {}
    if op == "depthwise":
        more = {"kh": 3, "kw": 3, "pads": (1, 1, 1, 1), "groups": channels}
    return Workload(
        op=op, ic=channels, oc=channels, ih=size, iw=size,  # type: ignore[arg-type]
        in_block=16, out_block=16, epilogue=("bias", "relu6"), **more,
    )  # fmt: skip


def trial(w: Workload, at_s: float, **fields: Any) -> Trial:
    """A trial of the target x86-zen4, `at_s` seconds after the first."""
    target = load_target("x86-zen4")
    template = template_for(w, target)
    assert template is not None
    values: dict[str, Any] = {
        "workload": w, "template": template.name, "template_version": template.version,
        "config": dict(template.default(w, target, fields.get("threads", 1))), "times_s": (1e-4,),
        "target": target.name, "threads": 1, "board": "local", "cpu": "a CPU", "tvm": "0.27",
        "tvmsep": "0.1", "date": (START + timedelta(seconds=at_s)).isoformat(), "seed": 0,
    }  # fmt: skip
    return Trial(**{**values, **fields})


def tuned(tasks: int, trials: int, seed: int = 0) -> list[Trial]:
    """A run over several tasks at one and two threads: times fall, some trials fail."""
    rng = random.Random(seed)
    target: Target = load_target("x86-zen4")
    jobs = []
    for i in range(tasks):
        w = workload(16 * (1 + i // 4), op=("pointwise", "depthwise")[i % 2])
        template = template_for(w, target)
        assert template is not None
        threads = 1 + i // 2 % 2
        jobs.append((w, threads, template, template.space(w, target, threads).configs()))
    found = []
    for n in range(trials):
        w, threads, template, space = jobs[n % tasks]
        config = template.default(w, target, threads) if n < tasks else rng.choice(space)
        failed = n >= tasks and rng.random() < 0.05
        times = tuple(1e-4 * (0.5 + rng.random()) for _ in range(8))
        found.append(
            trial(
                w, n * 0.1, threads=threads, config=dict(config),
                times_s=() if failed else times, failure="wrong_output" if failed else None,
                detail=HOSTILE if failed else "",
            )
        )  # fmt: skip
    assert {t.template for t in found} <= set(TEMPLATES)
    return found


def write_log(path: Path, trials: list[Trial], mode: str = "wb") -> Path:
    with path.open(mode) as file:
        file.write(b"".join(msgspec.json.encode(t) + b"\n" for t in trials))
    return path
