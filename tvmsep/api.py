"""The verbs as Python functions: what the command line calls, and what a program can call.

>>> import tvmsep
>>> report = tvmsep.tune("mobilenet_v2", out="v2.tvmsep", budget_s=180)  # doctest: +SKIP
>>> net = tvmsep.Bundle.load("v2.tvmsep", threads=2)  # doctest: +SKIP
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmsep.check import Check, Mismatch, cannot_run_here, check_bundle
from tvmsep.contracts import (
    Config,
    InputError,
    Target,
    Task,
    Trial,
    TvmsepError,
    Workload,
)

if TYPE_CHECKING:
    from tvmsep.bundle import Manifest
    from tvmsep.compare import Comparison, Diff
    from tvmsep.contracts.preprocess import Preprocess
    from tvmsep.frontends import Imported
    from tvmsep.graph import Graph, Plan
    from tvmsep.logs import Best
    from tvmsep.measure import Measuring
    from tvmsep.tuner import Strategy, TuneResult, TuneState

_SCRATCH_BYTES = 32 << 20
"""LLVM ends the process where it cannot write an object file, so room is looked for first."""


@dataclass
class Prepared:
    """A model imported and planned for a target at one or more thread counts."""

    imported: Imported
    graph: Graph
    """As imported: the reference in float64."""
    target: Target
    plans: dict[int, Plan]
    """By thread count, with separate depthwise and pointwise kernels."""

    def candidates(self) -> list[Plan]:
        """Of each thread count the plan, and the one with all fused that can be, if any can."""
        from tvmsep.graph import fuse, fusible

        plans = []
        for plan in self.plans.values():
            pairs = fusible(plan, self.target)
            plans += [plan, fuse(plan, self.target, pairs)] if pairs else [plan]
        return plans

    def tasks(self) -> list[Task]:
        """All tasks of all thread counts, those of fused kernels too."""
        found: dict[tuple[Workload, int], Task] = {}
        for plan in self.candidates():
            for task in plan.tasks(self.target):
                found.setdefault((task.workload, task.threads), task)
        return list(found.values())


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
    result: TuneResult | None = None


def prepare(
    model: Any,
    *,
    target: str | Target = "local",
    threads: Sequence[int] | int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    params: str | os.PathLike[str] | None = None,
) -> Prepared:
    """Import a model and plan it.

    Raises:
        ModelError: the model cannot be read or holds something unsupported.
        TargetError: the target is unknown or malformed.
        InputError: a thread count is out of range.
    """
    from tvmsep.frontends import load_model
    from tvmsep.graph import from_relax, make_plan, normalise
    from tvmsep.targets import load_target

    hardware = load_target(target) if isinstance(target, str) else target
    counts = _thread_counts(threads, hardware)
    for n in counts:
        if not 1 <= n <= hardware.cores:
            raise InputError(
                f"threads is {n}; target {hardware.name} has {hardware.cores} cores here: "
                f"give 1 to {hardware.cores}"
            )
    imported = load_model(model, shapes=shapes, example_inputs=example_inputs, params=params)
    plans = {n: make_plan(normalise(from_relax(imported.module)), hardware, n) for n in counts}
    return Prepared(imported, from_relax(imported.module), hardware, plans)


def _thread_counts(threads: Sequence[int] | int | None, target: Target) -> list[int]:
    if threads is None:
        return [target.cores]
    counts = [threads] if isinstance(threads, int) else list(threads)
    if not counts or not all(type(n) is int for n in counts):
        raise InputError(f"threads is {threads!r}: give a thread count, or several as [1, 2]")
    return sorted(set(counts))


def check_writable(path: Path) -> None:
    """Find out before any work whether `path` can be written.

    Raises:
        TvmsepError: it cannot; says why.
    """
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise TvmsepError(
            f"cannot write {path}: {error.strerror or error}; choose another output with -o"
        ) from error
    if path.is_dir():
        raise TvmsepError(f"cannot write {path}: it is a folder; give a file name with -o")
    if path.is_file() and path.suffix != ".tvmsep" and path.read_bytes()[:2] not in (b"PK", b""):
        raise TvmsepError(
            f"cannot write {path}: it is there already and is no bundle; give another name with -o"
        )
    scratch = tempfile.gettempdir()
    free = shutil.disk_usage(scratch).free
    if free < _SCRATCH_BYTES:
        raise TvmsepError(
            f"{scratch} has {free / 1e6:.0f} MB left and compiling needs "
            f"{_SCRATCH_BYTES / 1e6:.0f} MB: make room, or set TMPDIR to another folder"
        )


def tune(
    model: Any,
    *,
    out: str | os.PathLike[str],
    target: str | Target = "local",
    threads: Sequence[int] | int | None = None,
    budget_s: float | None = None,
    trials: int | None = None,
    log: str | os.PathLike[str] | None = None,
    seed: int = 0,
    strategy: Strategy = "xgboost",
    warm_start: Sequence[str | os.PathLike[str]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    params: str | os.PathLike[str] | None = None,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
    tracker: tuple[str, int] | None = None,
    key: str = "",
    builders: int | str | None = None,
    progress: Callable[[TuneState], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Tune a model and write a bundle.

    Args:
        model: a path, a built-in's name, an ONNX proto, a torch module or exported program.
        out: the bundle to write.
        target: name, TOML path, `local`, or a `Target`.
        threads: thread counts to tune for; the target's cores by default.
        budget_s: seconds to tune, re-measuring included; None for until nothing more is gained.
        trials: search trials of this run at most.
        log: tuning log to go on with and append to; beside `out` by default.
        seed: fixes every random choice.
        strategy: how configs are chosen: by the cost model, at random, or the defaults alone.
        warm_start: logs from which the cost model learns beforehand, of this target or related
            ones; None for those that ship with tvmsep for it, an empty sequence for none.
        shapes: fixes dynamic input shapes.
        example_inputs: for a torch module.
        params: for a Relay program: the file of its weights.
        preprocess: how a picture becomes the input; known for built-ins.
        labels: class names.
        tracker: RPC tracker that lends boards of the target; None measures on this host.
        key: the boards' key at the tracker.
        builders: compiling processes; one a core by default. Or a Dask scheduler's address,
            `tcp://host:8786`.
        progress: called after every trial.
        say: told of steps that take more than a moment.

    Raises:
        TvmsepError: a user's mistake; nothing was written but log lines of finished trials.
    """
    from tvmsep.logs import LogFile
    from tvmsep.measure import Farm
    from tvmsep.tuner import tune_tasks

    if budget_s is not None and not budget_s > 0:
        raise InputError(f"budget_s is {budget_s}: give a number of seconds above 0")
    path = Path(out)
    check_writable(path)
    log_path = Path(log) if log else path.with_suffix(".jsonl")
    if log_path.resolve() == path.resolve():
        raise InputError(f"{path} cannot be the bundle and its log: give another with --log")
    prepared = prepare(
        model, target=target, threads=threads, shapes=shapes, example_inputs=example_inputs,
        params=params,
    )  # fmt: skip
    _check_labels(labels, prepared.imported)
    if tracker is None:
        must_fit(prepared.target)
    prior = _prior(warm_start, prepared.target)
    with LogFile(log_path, target=prepared.target.name, say=say) as records:
        say(f"{len(prepared.tasks())} tasks for {prepared.target.name}; log {records.path}")
        with Farm(prepared.target, builders=builders, tracker=tracker, key=key, seed=seed) as farm:
            peak = farm.peak_flops_per_core()
            result = tune_tasks(
                prepared.tasks(), prepared.target, farm, records,
                peak_flops_per_core=peak, plans=prepared.candidates(),
                budget_s=budget_s, trials=trials, seed=seed, strategy=strategy, prior=prior,
                progress=progress,
            )  # fmt: skip
        for note in result.state.notes:
            say(note)
        if result.reason == "interrupted":
            say("interrupted: writing a bundle of the best so far; Ctrl-C again ends without one")
        elif result.reason == "board_lost":
            say("no board is left: writing a bundle of the best so far")
        report = _write(
            prepared, path, result.best, len(records.trials), say, preprocess, labels, peak / 1e9
        )
    report.result = result
    return report


def search(
    model: Any,
    board: Measuring,
    *,
    log: str | os.PathLike[str],
    target: str | Target = "local",
    threads: Sequence[int] | int | None = None,
    budget_s: float | None = None,
    trials: int | None = None,
    seed: int = 0,
    strategy: Strategy = "xgboost",
    warm_start: Sequence[str | os.PathLike[str]] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    params: str | os.PathLike[str] | None = None,
    progress: Callable[[TuneState], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> TuneResult:
    """Search as `tune` does, on a board that measures nothing: no bundle is written.

    Args:
        model: as for `tune`.
        board: `tvmsep.measure.ReplayBoard` or `NullBoard`.
        log: where its answers go; it holds nothing else.
        target: as for `tune`; it need not fit this host.
        threads: thread counts; the target's cores by default.
        budget_s: seconds.
        trials: at most so many.
        seed: fixes every random choice.
        strategy: as for `tune`.
        warm_start: logs from which the cost model learns beforehand.
        shapes: fixes dynamic input shapes.
        params: for a Relay program: the file of its weights.
        progress: called after every trial.
        say: told what happens.

    Raises:
        TvmsepError: a user's mistake, or the board knows none of the model's tasks.
    """
    from tvmsep.logs import LogFile
    from tvmsep.measure.offline import PEAK_FLOPS
    from tvmsep.tuner import tune_tasks

    prepared = prepare(model, target=target, threads=threads, shapes=shapes, params=params)
    prior = _prior(warm_start, prepared.target)
    name, tasks = board.connect().name, prepared.tasks()
    answered = [t for t in tasks if board.known(t) is None or board.known(t)]
    if not answered:
        raise InputError(
            f"board {name} knows none of the {len(tasks)} tasks of this model for "
            f"{prepared.target.name} and the thread counts asked for: give a log of this model"
        )
    say(f"board {name} measures nothing: times are not this machine's, no bundle is written")
    if len(answered) < len(tasks):
        say(f"{len(answered)} of {len(tasks)} tasks are known to board {name}")
    with LogFile(Path(log), target=prepared.target.name, measured=False) as records:
        return tune_tasks(
            answered, prepared.target, board, records, peak_flops_per_core=PEAK_FLOPS,
            budget_s=budget_s, trials=trials, seed=seed, strategy=strategy, prior=prior,
            progress=progress,
        )  # fmt: skip


def _prior(warm_start: Sequence[str | os.PathLike[str]] | None, target: Target) -> list[Trial]:
    """Measured trials of earlier logs."""
    from tvmsep.logs import read_log, shipped_logs

    sources = shipped_logs(target.name) if warm_start is None else [Path(p) for p in warm_start]
    trials: list[Trial] = []
    for source in sources:
        found = [t for t in read_log(source) if t.measured]
        if not found:
            raise InputError(f"log {source} holds no measured trial: give another to start from")
        trials += found
    return trials


def build(
    model: Any,
    *,
    out: str | os.PathLike[str],
    target: str | Target = "local",
    threads: Sequence[int] | int | None = None,
    logs: Sequence[str | os.PathLike[str]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    params: str | os.PathLike[str] | None = None,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
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
        shapes: fixes dynamic input shapes.
        example_inputs: for a torch module.
        params: for a Relay program: the file of its weights.
        preprocess: how a picture becomes the input.
        labels: class names.
        say: told of steps that take more than a moment.

    Raises:
        TvmsepError: a user's mistake; nothing was written.
    """
    from tvmsep.logs import best_trials

    path = Path(out)
    check_writable(path)
    if any(path.exists() and path.samefile(p) for p in map(Path, logs or ()) if p.exists()):
        raise InputError(f"{path} is both a log to read and the bundle to write: name another")
    prepared = prepare(
        model, target=target, threads=threads, shapes=shapes, example_inputs=example_inputs,
        params=params,
    )  # fmt: skip
    _check_labels(labels, prepared.imported)
    trials = read_trials(prepared.target, logs)
    return _write(prepared, path, best_trials(trials), len(trials), say, preprocess, labels, None)


def read_trials(target: Target, logs: Sequence[str | os.PathLike[str]] | None) -> list[Trial]:
    """The trials of logs or bundles, of the shipped logs if `logs` is None.

    Raises:
        InputError: a log cannot be read, or is of another target.
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
        if not all(t.measured for t in found):
            raise InputError(f"log {source} is of a board that measures nothing: give another")
        trials += found
    return trials


def _check_labels(labels: Sequence[str] | None, imported: Imported) -> None:
    classes = imported.outputs[0].shape[-1]
    if labels is not None and len(labels) != classes:
        raise InputError(
            f"{len(labels)} labels were given, the model has {classes} classes: "
            "give one name a class"
        )


def must_fit(target: Target) -> None:
    """See that a target's code can be measured on this host.

    Raises:
        TargetError: it cannot.
    """
    from tvmsep.contracts import TargetError
    from tvmsep.targets import misfit

    why = misfit(target)
    if why is not None:
        raise TargetError(
            f"target {target.name} cannot be measured on this host: {why}; "
            "give a board with --rpc HOST:PORT --key KEY, or --target local"
        )


def choose_configs(
    prepared: Prepared, plan: Plan, winners: Mapping[str, Best]
) -> tuple[dict[Workload, tuple[str, Config]], list[Trial], float | None]:
    """Config of each workload; the log lines they came from; the sum of task times if all known."""
    from tvmsep.schedules import TEMPLATES
    from tvmsep.tuner.state import task_key

    configs: dict[Workload, tuple[str, Config]] = {}
    used: list[Trial] = []
    total: float | None = 0.0
    for task in plan.tasks(prepared.target):
        template = TEMPLATES[task.template]
        best = winners.get(task_key(task))
        space = template.space(task.workload, prepared.target, task.threads)
        if best is not None and best.config in space:
            configs[task.workload] = (task.template, best.config)
            used.append(best.trial)
            total = None if total is None else total + best.mean_s * task.count
        else:
            default = template.default(task.workload, prepared.target, task.threads)
            configs[task.workload] = (task.template, default)
            total = None
    return configs, used, total


def _write(
    prepared: Prepared,
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

    from tvmsep.bundle import TensorInfo, write_bundle
    from tvmsep.compiler import compile_library, emit, lower, peak_bytes
    from tvmsep.tuner.fusion import choose_plan

    libraries: dict[int, bytes] = {}
    texts: dict[int, str] = {}
    ram: dict[int, int] = {}
    estimates: dict[int, float] = {}
    used: list[Trial] = []
    grounds: list[Trial] = []
    tasks = 0
    weights: dict[str, Any] = {}
    for count, plan in prepared.plans.items():
        say(f"compiling for {count} thread{'s' if count > 1 else ''}")
        plan, compared = choose_plan(plan, prepared.target, winners)
        configs, lines, total = choose_configs(prepared, plan, winners)
        module = emit(plan, prepared.target, configs)
        lowered = lower(module, prepared.target)
        libraries[count] = compile_library(lowered, prepared.target)
        texts[count] = module.script(show_meta=False)
        ram[count] = peak_bytes(lowered) + sum(a.nbytes for a in plan.params.values())
        if total is not None:
            estimates[count] = total
        used += [t for t in lines if t not in used]
        grounds += [b.trial for b in compared if b.trial not in grounds]
        tasks += len(configs)
        weights = weights or dict(plan.params)
    imported = prepared.imported
    kept = [*used, *(t for t in grounds if t not in used)]
    scratch = str(path.parent / f".tvmsep-{os.getpid()}-{time.monotonic_ns()}.tvmsep")
    try:
        manifest = write_bundle(
            scratch,
            name=imported.name,
            target=prepared.target,
            inputs=[TensorInfo(name=t.name, shape=t.shape, dtype=t.dtype) for t in imported.inputs],
            outputs=[
                TensorInfo(name=t.name, shape=t.shape, dtype=t.dtype) for t in imported.outputs
            ],
            libraries=libraries,
            weights=weights,
            relax=texts,
            peak_ram_bytes=ram,
            estimate_s=estimates or None,
            log_lines=[msgspec.json.encode(t).decode() for t in kept],
            log_total=log_total,
            source=imported.source,
            licence=imported.source.get("licence", "unknown"),
            preprocess=preprocess or imported.preprocess,
            labels=labels or imported.labels,
            flops=next(iter(prepared.plans.values())).flops,
            peak_gflops_per_core=peak_gflops,
        )
        say("checking the bundle against the model")
        reason = cannot_run_here(prepared.target, prepared.plans)
        if reason is not None:
            say(f"not run here, so not checked: {reason}")
        check = None
        if reason is None:
            try:
                check = check_bundle(Path(scratch), prepared.imported, prepared.graph)
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
    return Report(manifest, path, check, len(used), tasks)


def verify(bundle: str | os.PathLike[str], model: Any, **how: Any) -> Check:
    """Compare a bundle's outputs with those of the model it was made from.

    Args:
        bundle: a `.tvmsep` file.
        model: as for `tune`.
        **how: `shapes`, `example_inputs` and `params` as for `tune`.

    Raises:
        TvmsepError: they differ, or do not fit each other.
    """
    prepared = prepare_for(bundle, model, **how)
    try:
        return check_bundle(Path(bundle), prepared.imported, prepared.graph)
    except Mismatch as problem:
        raise Mismatch(
            f"{bundle} was made from another model, or other weights: {problem}"
        ) from None


def prepare_for(bundle: str | os.PathLike[str], model: Any, **how: Any) -> Prepared:
    """Prepare a model as a bundle has it: for its target, at its first variant's thread count.

    Raises:
        BundleError: the bundle is damaged or cannot run on this host.
        InputError: they take or give different tensors.
    """
    from tvmsep.bundle import Package

    with Package(bundle) as package:
        package.check_host()
        manifest = package.manifest
    prepared = prepare(model, target=manifest.target, threads=[manifest.variants[0].threads], **how)
    ours = [(t.name, t.shape, t.dtype) for t in manifest.inputs]
    theirs = [(t.name, t.shape, t.dtype) for t in prepared.imported.inputs]
    if ours != theirs:
        raise InputError(f"{bundle} takes {ours}, the model takes {theirs}: not the same network")
    ours = [(t.name, t.shape, t.dtype) for t in manifest.outputs]
    theirs = [(t.name, t.shape, t.dtype) for t in prepared.imported.outputs]
    if ours != theirs:
        raise InputError(f"{bundle} gives {ours}, the model gives {theirs}: not the same network")
    return prepared


def compare(
    entrants: Sequence[str],
    *,
    model: str | None = None,
    target: str = "local",
    threads: Sequence[int] | None = None,
    task: str | None = None,
    layer: str | None = None,
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
        **how: `rounds`, `seed`, `claims`, `tracker`, `key` and `say`, see
            `tvmsep.compare.run.compare`.

    Raises:
        TvmsepError: a user's mistake, or something that does not run.
    """
    from tvmsep.compare import run

    if task is None and layer is None:
        return run.compare(
            entrants, build=build, model=model, target=target, threads=threads, **how
        )
    prepared = _of_kernel(entrants, model, target, threads)
    plans = {n: [p for p in prepared.candidates() if p.threads == n] for n in prepared.plans}
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

    Raises:
        TvmsepError: a user's mistake.
    """
    from tvmsep.compare import diff as listings
    from tvmsep.compare.kernels import choose, find_task

    prepared = _of_kernel([a, b], model, target, None if threads is None else [threads])
    found = find_task(prepared.candidates(), prepared.target, task, layer)
    one, two = choose([a, b], found, prepared.target)
    return listings(one, two, prepared.target)


def _of_kernel(
    words: Sequence[str], model: str | None, target: str, threads: Sequence[int] | None
) -> Prepared:
    """The network whose kernel is meant."""
    from tvmsep.compare.entrants import told_model

    spec = model or told_model(words)
    if spec is None:
        raise InputError("one kernel of which model? give --model, an .onnx or .pt2 file or a name")
    return prepare(spec, target=target, threads=threads)
