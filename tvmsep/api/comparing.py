"""Which is faster, and how two kernels differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmsep.api.building import build
from tvmsep.api.planning import Prepared, prepare
from tvmsep.contracts import (
    InputError,
)

if TYPE_CHECKING:
    from tvmsep.compare import Comparison, Diff


def compare(
    entrants: Sequence[str],
    *,
    model: str | None = None,
    target: str = "local",
    threads: Sequence[int] | None = None,
    task: str | None = None,
    layer: str | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    **how: Any,
) -> Comparison:
    """Measure which of several is faster, or that it cannot be told.

    Args:
        entrants: bundles, logs, `default`, `stock-tvm`, `metaschedule:TRIALS`, `onnxruntime`,
            `openvino`, `torch` or `FILE.py:CLASS`, each with `NAME=` before it if wished; for one
            kernel configs, templates, logs, bundles and `default`.
        model: where one needs it; by default the one that a bundle was made from.
        target: what is compiled is compiled for it.
        threads: thread counts; the cores by default.
        task: one kernel, by its label or a part of it.
        layer: one kernel, by the layer's name.
        shapes: of the inputs by name, where the model leaves them open or a bundle has several; by
            default the first of the first such bundle.
        **how: `rounds`, `seed`, `claims`, `tracker`, `key` and `say`, see
            `tvmsep.compare.run.compare`.

    Raises:
        TvmsepError: a user's mistake, or something that does not run.
    """
    from tvmsep.compare import run

    if task is None and layer is None:
        return run.compare(
            entrants, build=build, model=model, target=target, threads=threads, shapes=shapes,
            **how,
        )  # fmt: skip
    prepared = _of_kernel(entrants, model, target, threads, shapes)
    plans = {n: prepared.candidates(n) for n in prepared.plans}
    return run.compare_kernels(entrants, plans, prepared.target, task=task, layer=layer, **how)


def diff(
    a: str,
    b: str,
    *,
    model: str | None = None,
    target: str = "local",
    threads: int | None = None,
    task: str | None = None,
    layer: str | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Diff:
    """Lowered loops and hot-loop assembly of two configs of one kernel.

    Args:
        a: a config such as `tile_p=14 loop=px`, a template, a log, a bundle, or `default`.
        b: another.
        model: as for `compare`.
        target: what to compile for.
        threads: to plan for; the target's cores by default.
        task: as for `compare`.
        layer: as for `compare`.
        shapes: as for `compare`.

    Raises:
        TvmsepError: a user's mistake.
    """
    from tvmsep.compare import diff as listings
    from tvmsep.compare.kernels import choose, find_task

    counts = None if threads is None else [threads]
    prepared = _of_kernel([a, b], model, target, counts, shapes)
    found = find_task(prepared.networks(), prepared.target, task, layer)
    one, two = choose([a, b], found, prepared.target)
    return listings(one, two, prepared.target)


def _of_kernel(
    words: Sequence[str],
    model: str | None,
    target: str,
    threads: Sequence[int] | None,
    shapes: Mapping[str, Sequence[int]] | None,
) -> Prepared:
    """The network whose kernel is meant, divided over the threads as logs and bundles have it."""
    from tvmsep.compare.entrants import told_model
    from tvmsep.logs import chosen_by, read_log
    from tvmsep.tuner.choice import choose_splits

    told, shapes = told_model(words, shapes)
    spec = model or told
    if spec is None:
        raise InputError("one kernel of which model? give --model, an .onnx or .pt2 file or a name")
    prepared = prepare(spec, target=target, threads=threads, shapes=shapes)
    files = [Path(word) for word in words if word.endswith((".jsonl", ".tvmsep"))]
    winners = chosen_by([t for path in files for t in read_log(path)])
    for n, plan in prepared.plans.items():
        prepared.plans[n] = choose_splits(plan, prepared.target, winners)
    return prepared
