"""Candidates that misbehave, in the place of sound ones: built where those are built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tvmsep.codegen import kernel
from tvmsep.contracts import Config, Target, Task
from tvmsep.measure import Built, builder, harness

BODIES = {
    "candidate segfault": 'T.evaluate(T.call_extern("int32", "raise", 11))',
    "candidate loops for ever": (
        'for i in range(T.int64(1 << 62)):\n        T.evaluate(T.call_extern("int32", "getppid"))'
    ),
    "candidate writes NaN": 'out[{at}] = T.float32("nan")',
}
"""By fault: the body of a kernel; the harness has filled the rest of its output with NaN."""


def build(kind: str, task: Task, target: Target, config: Config, outdir: Path, name: str) -> Built:
    """A library that does what `kind` says. Each counts as a program of its own: `name`."""
    import tvm

    func = kernel(task.workload, target, task.template.partition("@")[0], config)
    params = harness.params_of(func)
    names = [f"a{i}" for i in range(len(params) - 1)] + ["out"]
    words = ", ".join(
        f'{n}: T.Buffer({shape}, "{dtype}")'
        for n, (shape, dtype) in zip(names, params, strict=True)
    )
    body = BODIES[kind].format(at=", ".join("0" for _ in params[-1][0]))
    text = f"@T.prim_func(s_tir=True)\ndef main({words}):\n    {body}\n"
    built = builder.link_candidate(tvm.script.from_source(text), task, target, outdir)
    return replace(built, program=name)
