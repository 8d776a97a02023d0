"""Building bundles, with or without a tuning log."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmsep.api.planning import Prepared, Shapes, check_writable, prepare_all
from tvmsep.check import Check, Mismatch, cannot_run_here, check_bundle, check_import, worst
from tvmsep.contracts import (
    Config,
    InputError,
    Target,
    Trial,
    TvmsepError,
    Workload,
)

if TYPE_CHECKING:
    from tvmsep.bundle import Compiled, Manifest
    from tvmsep.contracts.preprocess import Preprocess
    from tvmsep.frontends import Imported
    from tvmsep.graph import Plan
    from tvmsep.logs import Best
    from tvmsep.tuner import TuneResult


@dataclass
class Report:
    """What `tune` and `build` did."""

    manifest: Manifest
    path: Path
    check: Check | None
    """None where the target's code cannot run on this host."""
    tuned: int
    """Tasks whose config comes from a log."""
    tasks: int
    modelled: bool = False
    """Whether that log holds modelled times, and nothing was measured."""
    emulated: bool = False
    """Whether its times were taken on an emulated device."""
    results: tuple[TuneResult, ...] = ()
    """What tuning found, for each set of input shapes that it came to."""

    @property
    def result(self) -> TuneResult | None:
        """The last of them: why tuning ended."""
        return self.results[-1] if self.results else None


def build(
    model: Any,
    *,
    out: str | os.PathLike[str],
    target: str | Target = "local",
    threads: Sequence[int] | int | None = None,
    logs: Sequence[str | os.PathLike[str]] | None = None,
    shapes: Shapes | Sequence[Shapes] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    params: str | os.PathLike[str] | None = None,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
    layout: str | None = None,
    dtype: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Build a bundle without measuring.

    Args:
        model: as for `tune`.
        out: the bundle to write.
        target: as for `tune`.
        threads: thread counts; the target's cores by default.
        logs: tuning logs or bundles to take configs from; None for the logs that ship with
            tvmsep for this target; an empty sequence for the analytic defaults alone.
        shapes: fixes dynamic input shapes; with several sets the bundle holds the network for each
            and picks by what it is given.
        example_inputs: for a torch module.
        params: for a Relay program: the file of its weights.
        preprocess: how a picture becomes the input.
        labels: class names.
        layout: of activations: on a GPU `nchw4c` (the default), `nchw` or `nhwc`; on a CPU see
            `tvmsep.graph.layouts`.
        dtype: `float32`, or on a GPU or a CPU that computes in it `float16`: of weights, and of
            activations between kernels.
        say: told of steps that take more than a moment.

    Raises:
        TvmsepError: a user's mistake; nothing was written.
    """
    from tvmsep.logs import chosen_by

    path = Path(out)
    check_writable(path)
    if any(path.exists() and path.samefile(p) for p in map(Path, logs or ()) if p.exists()):
        raise InputError(f"{path} is both a log to read and the bundle to write: name another")
    prepared = prepare_all(
        model, target=target, threads=threads, shapes=shapes, example_inputs=example_inputs,
        params=params, layout=layout, dtype=dtype,
    )  # fmt: skip
    check_labels(labels, prepared[0].imported)
    trials = read_trials(prepared[0].target, logs)
    return make_bundle(
        prepared, path, chosen_by(trials), len(trials), say, preprocess, labels, None
    )


def read_trials(target: Target, logs: Sequence[str | os.PathLike[str]] | None) -> list[Trial]:
    """The trials of logs or bundles, of the shipped logs if `logs` is None.

    Raises:
        InputError: a log cannot be read, is of another target or of a board that answers from a log
            or a formula; or some are measured and others modelled.
    """
    from tvmsep.logs import read_log, shipped_logs

    sources = shipped_logs(target.name) if logs is None else [Path(p) for p in logs]
    trials: list[Trial] = []
    for source in sources:
        found = read_log(source)
        wrong = {t.target for t in found} - {target.name}
        if wrong:
            raise InputError(
                f"log {source} is for {', '.join(sorted(wrong))}, not for the target "
                f"{target.name}: give a log of that target"
            )
        if not all(t.measured or t.modelled for t in found):
            raise InputError(f"log {source} is of a board that measures nothing: give another")
        trials += found
    if len({t.modelled for t in trials}) > 1:
        raise InputError(
            "some of these logs hold measured times and some modelled ones (board model), which do "
            "not compare: give either"
        )
    if len({t.emulated for t in trials}) > 1:
        raise InputError(
            "some of these logs hold times of a real device and some of an emulated one, which do "
            "not compare: give either"
        )
    return trials


def check_labels(labels: Sequence[str] | None, imported: Imported) -> None:
    """See that there is a name for each class.

    Raises:
        InputError: there is not.
    """
    shape = imported.outputs[0].shape
    rest = shape[1:] or shape
    classes = math.prod(rest)
    if labels is not None and classes not in rest:
        raise InputError(
            f"labels are for a network whose first output is one number a class: this one's is "
            f"{imported.outputs[0]}"
        )
    if labels is not None and len(labels) != classes:
        raise InputError(
            f"{len(labels)} labels were given, the model has {classes} classes: "
            "give one name a class"
        )


def choose_configs(
    prepared: Prepared, plan: Plan, winners: Mapping[str, Best]
) -> tuple[dict[Workload, tuple[str, Config]], list[Trial], float | None]:
    """Config of each workload; the log lines they came from; the sum of task times if all known."""
    from tvmsep.schedules import TEMPLATES
    from tvmsep.tuner.state import winner_of

    configs: dict[Workload, tuple[str, Config]] = {}
    used: list[Trial] = []
    total: float | None = 0.0
    for task in plan.tasks(prepared.target):
        template = TEMPLATES[task.template]
        best = winner_of(task, winners)
        space = template.space(task.workload, prepared.target, task.threads)
        if best is not None and best.config in space:
            configs[task.workload] = (task.template, best.config)
            used.append(best.trial)
            known = total is not None and best.trial.measured
            total = (total or 0.0) + best.mean_s * task.count if known else None
        else:
            default = template.default(task.workload, prepared.target, task.threads)
            configs[task.workload] = (task.template, default)
            total = None
    return configs, used, total


def make_bundle(
    several: Sequence[Prepared],
    path: Path,
    winners: Mapping[str, Best],
    log_total: int,
    say: Callable[[str], None],
    preprocess: Preprocess | None,
    labels: Sequence[str] | None,
    peak_gflops: float | None,
) -> Report:
    """Compile every variant, write the bundle, check it, and only then put it in place."""
    import msgspec

    from tvmsep.bundle import write_bundle

    used: list[Trial] = []
    grounds: list[Trial] = []
    parts, tasks = [], 0
    for prepared in several:
        part, lines, compared, count = _compile(
            prepared, winners, say, "" if len(several) == 1 else f"{prepared.title}: "
        )
        parts.append(part)
        used += [t for t in lines if t not in used]
        grounds += [t for t in compared if t not in grounds]
        tasks += count
    imported, target = several[0].imported, several[0].target
    kept = [*used, *(t for t in grounds if t not in used)]
    first = parts[0]
    scratch = str(path.parent / f".tvmsep-{os.getpid()}-{time.monotonic_ns()}.tvmsep")
    try:
        manifest = write_bundle(
            scratch,
            name=imported.name,
            target=target,
            inputs=first.inputs,
            outputs=first.outputs,
            libraries=first.libraries,
            weights=first.weights,
            relax=first.relax,
            peak_ram_bytes=first.peak_ram_bytes,
            estimate_s=first.estimate_s or None,
            log_lines=[msgspec.json.encode(t).decode() for t in kept],
            log_total=log_total,
            source=imported.source,
            licence=imported.source.get("licence", "unknown"),
            preprocess=preprocess or imported.preprocess,
            labels=labels or imported.labels,
            flops=first.flops,
            peak_gflops_per_core=peak_gflops,
            further=parts[1:],
            layout=several[0].layout,
            dtype=several[0].dtype,
        )
        reason = cannot_run_here(target, several[0].plans)
        check = None
        try:
            if reason is None:
                say("checking the bundle against the model")
                check = check_all(Path(scratch), dict(enumerate(several)))
            else:
                say("checking the import against the model")
                errors = [check_import(p.imported, p.graph) for p in several]
                known = [e for e in errors if e is not None]
                if known:
                    say(f"the import differs from the model's framework by {max(known):.1e}")
                say(f"not run here, so the compiled code is not checked: {reason}")
        except Mismatch as problem:
            raise Mismatch(
                f"{problem}; nothing was written. Please report this model."
            ) from problem
        os.replace(scratch, path)
    except OSError as error:
        raise TvmsepError(
            f"cannot write {path}: {error.strerror or error}; choose another output with -o"
        ) from error
    except TvmsepError as error:  # it names a file that the user has not heard of
        raise type(error)(str(error).replace(scratch, str(path))) from error
    finally:
        Path(scratch).unlink(missing_ok=True)
    return Report(
        manifest, path, check, len(used), tasks, modelled=any(t.modelled for t in used),
        emulated=any(t.emulated for t in used),
    )  # fmt: skip


def _compile(
    prepared: Prepared, winners: Mapping[str, Best], say: Callable[[str], None], shapes: str
) -> tuple[Compiled, list[Trial], list[Trial], int]:
    """One set of shapes: the network, the trials it uses, those that decided, its tasks."""
    from tvmsep.bundle import Compiled, TensorInfo
    from tvmsep.compiler import compile_library, emit, lower, peak_bytes
    from tvmsep.tuner.choice import choose_plan

    libraries: dict[int, bytes] = {}
    texts: dict[int, str] = {}
    ram: dict[int, int] = {}
    estimates: dict[int, float] = {}
    used: list[Trial] = []
    grounds: list[Trial] = []
    tasks = 0
    weights: dict[str, Any] = {}
    for count, plan in prepared.plans.items():
        say(f"compiling {shapes}for {count} thread{'s' if count > 1 else ''}")
        plan, compared = choose_plan(plan, prepared.target, winners)
        configs, lines, total = choose_configs(prepared, plan, winners)
        module = emit(plan, prepared.target, configs)
        lowered = lower(module, prepared.target)
        libraries[count] = compile_library(lowered, prepared.target)
        texts[count] = module.script(show_meta=False)
        own = plan.all_params
        weights = weights or own
        if [(n, a.shape) for n, a in own.items()] != [(n, a.shape) for n, a in weights.items()]:
            raise ValueError(f"the plan for {count} threads has other parameters")
        ram[count] = peak_bytes(lowered) + sum(a.nbytes for a in weights.values())
        if total is not None:
            estimates[count] = total
        used += lines
        grounds += [b.trial for b in compared]
        tasks += len(configs)
    tensors = [
        [TensorInfo(name=t.name, shape=t.shape, dtype=t.dtype) for t in side]
        for side in (prepared.imported.inputs, prepared.imported.outputs)
    ]
    part = Compiled(
        inputs=tensors[0], outputs=tensors[1], libraries=libraries, weights=weights, relax=texts,
        peak_ram_bytes=ram, estimate_s=estimates, flops=next(iter(prepared.plans.values())).flops,
    )  # fmt: skip
    return part, used, grounds, tasks


def check_all(path: Path, several: Mapping[int, Prepared]) -> Check:
    """The worst of what the bundle shows for each of these sets of shapes."""
    return worst([check_bundle(path, p.imported, p.graph, which=n) for n, p in several.items()])
