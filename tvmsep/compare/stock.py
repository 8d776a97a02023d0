"""TVM without our schedules: its default pipeline, and its own search on our blocked workloads."""

from __future__ import annotations

import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tvmsep.contracts import Config, InputError, Target, Workload
from tvmsep.measure.worker import Pool, Worker, WorkerDied, WorkerError, WorkerTimeout

Shapes = Mapping[str, Sequence[int]] | None
COMPILE_TIMEOUT_S = 600.0
SEARCH_TIMEOUT_S = 4 * 3600.0
_CANDIDATE_TIMEOUT_S = 30.0
_RUN_TIMEOUT_S = 150.0
"""TVM starts a process for each batch of runs, whose imports alone took 40 s on a slow core."""
_BUILDERS = 2


def _warm() -> None:
    pass


def _without_devices() -> None:
    """Of the 18 s that MetaSchedule takes to import, devices' intrinsics take 16: none is here."""
    for kind in ("cuda", "rocm", "metal"):
        name = f"tvm.s_tir.tensor_intrin.{kind}"
        sys.modules.setdefault(name, types.ModuleType(name))


def _warm_builder() -> None:
    _without_devices()
    import tvm.s_tir.meta_schedule  # noqa: F401


def _away(what: str, env: dict[str, str], limit_s: float, fn: Any, *args: Any) -> Any:
    """Run it in a process of its own: TVM's pools and its search leave theirs in no good state."""
    worker = Worker(_warm, {"TVM_USE_RUNTIME_LIB": "0", **env})
    try:
        return worker.call(fn, *args, limit_s=limit_s)
    except (WorkerDied, WorkerError, WorkerTimeout) as exc:
        raise InputError(f"{what} failed: {exc}; leave it out") from exc
    finally:
        worker.kill()


def compile_stock(model: str, out: Path, target: Target, threads: int) -> None:
    """An ONNX file through TVM's importer and default pipeline.

    Raises:
        InputError: TVM cannot.
    """
    _away("stock-tvm", {}, COMPILE_TIMEOUT_S, _stock, model, out, target, threads)


def _stock(model: str, out: Path, target: Target, threads: int) -> None:
    import onnx
    import tvm
    from tvm.relax.frontend.onnx import from_onnx

    spec = tvm.target.Target({**target.tvm_dict(), "num-cores": threads})
    link = _linker(target)
    module = from_onnx(onnx.load(model))
    with spec, tempfile.TemporaryDirectory(prefix="tvmsep-") as folder:
        tvm.compile(module, spec).export_library(str(out), fcompile=link, workspace_dir=folder)


def _linker(target: Target) -> Any:
    """What `export_library` calls: our linker, for TVM's needs a compiler."""
    from tvmsep.codegen import link_shared

    def link(output: str, objects: list[str], **_: Any) -> None:
        link_shared([Path(o) for o in objects], Path(output), target)

    link.output_format = "so"  # type: ignore[attr-defined]
    return link


def _candidate(module: str, spec: dict[str, Any], target: Target, out: Path) -> None:
    """Build one of the search's candidates, in a worker's process."""
    import tvm
    from tvm.s_tir.meta_schedule import builder as b

    built = b.local_builder.default_build(tvm.ir.load_json(module), tvm.target.Target(spec), None)
    built.export_library(str(out), fcompile=_linker(target), workspace_dir=str(out.parent))


def _builder(target: Target, spec: dict[str, Any], folder: Path, pool: Pool) -> Any:
    """MetaSchedule's builder in warm processes, with a limit on each candidate.

    TVM's starts new processes for each batch, each of which imports everything again.
    """
    import tvm
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule import builder as b

    @derived_object
    class Warm(b.PyBuilder):  # type: ignore[misc]
        def build(self, inputs: Any) -> list[Any]:
            # The search removes the folder of each candidate.
            outs = [Path(tempfile.mkdtemp(dir=folder)) / "kernel.so" for _ in inputs]
            calls = [
                (tvm.ir.save_json(i.mod), spec, target, out)
                for i, out in zip(inputs, outs, strict=True)
            ]
            answers = pool.map(_candidate, calls, _CANDIDATE_TIMEOUT_S)
            return [
                b.BuilderResult(str(out), None) if a is None else b.BuilderResult(None, str(a))
                for a, out in zip(answers, outs, strict=True)
            ]

    return Warm()


def search(
    model: str, bundle: Path, target: Target, threads: int, trials: int, shapes: Shapes = None
) -> None:
    """Replace a bundle's library by one with the kernels that MetaSchedule finds.

    Args:
        model: what the bundle was made from.
        bundle: of one thread count; its weights and layouts stay.
        target: of the bundle.
        threads: of the bundle.
        trials: of all kernels together.
        shapes: of the model's inputs by name, where it leaves them open.

    Raises:
        InputError: too few trials, or TVM's search fails.
    """
    import tvm

    from tvmsep.bundle import Package, write_bundle
    from tvmsep.codegen import unscheduled
    from tvmsep.compiler import compile_library, emit, lower, peak_bytes
    from tvmsep.frontends import load_model
    from tvmsep.graph import from_relax, make_plan, normalise
    from tvmsep.schedules import TEMPLATES

    plan = make_plan(
        normalise(from_relax(load_model(model, shapes=shapes).module)), target, threads,
        by_image=False,
    )  # fmt: skip
    tasks = plan.tasks(target)
    if trials < len(tasks):
        raise InputError(
            f"metaschedule:{trials}: the network has {len(tasks)} kernels; give at least as many "
            "trials"
        )
    configs: dict[Workload, tuple[str, Config]] = {}
    modules: list[str] = []
    for task in tasks:
        w = task.workload
        config = TEMPLATES[task.template].default(w, target, threads)
        configs[w] = (task.template, config)
        module = tvm.IRModule({"main": unscheduled(w, target, task.template, config)})
        modules.append(tvm.ir.save_json(module))
    env = {"TVM_NUM_THREADS": str(threads)}
    share = trials // len(tasks)
    args = (modules, target, threads, share)
    found = _away(f"metaschedule:{trials}", env, SEARCH_TIMEOUT_S, _search, *args)
    kernels = {
        task.workload: tvm.ir.load_json(text)
        for task, text in zip(tasks, found, strict=True)
        if text is not None
    }
    if not kernels:
        raise InputError("no candidate of MetaSchedule's could be built and run")
    module = emit(plan, target, configs, kernels=kernels)
    lowered = lower(module, target)
    with Package(bundle) as package:
        m = package.manifest
        all_weights = package.weights()
    weights = {name: all_weights[name] for name in plan.all_params}
    write_bundle(
        bundle, name=m.name, target=m.target, inputs=m.inputs, outputs=m.outputs,
        libraries={threads: compile_library(lowered, target)}, weights=weights,
        relax={threads: module.script(show_meta=False)},
        peak_ram_bytes={threads: peak_bytes(lowered) + sum(a.nbytes for a in weights.values())},
        source=m.source, licence=m.licence, flops=m.flops,
    )  # fmt: skip


def _search(modules: Sequence[str], target: Target, threads: int, trials: int) -> list[str | None]:
    """The best kernel for each module, or None where no candidate could be built and run."""
    _without_devices()
    import tvm
    from tvm import s_tir
    from tvm.s_tir import meta_schedule as ms

    described = {**target.tvm_dict(), "num-cores": threads}
    spec = tvm.target.Target(described)
    runner = ms.runner.LocalRunner(timeout_sec=_RUN_TIMEOUT_S)
    kernels: list[str | None] = []
    pool = Pool(_BUILDERS, _warm_builder)
    try:
        for module in map(tvm.ir.load_json, modules):
            with tempfile.TemporaryDirectory(prefix="tvmsep-ms-") as folder:
                database = ms.tune_tir(
                    module, spec, folder, max_trials_global=trials,
                    num_trials_per_iter=min(trials, 16),
                    builder=_builder(target, described, Path(folder), pool), runner=runner,
                )  # fmt: skip
                found = ms.tir_integration.compile_tir(database, module, spec)
            good = isinstance(found, s_tir.Schedule)
            kernels.append(tvm.ir.save_json(found.mod["main"]) if good else None)
    finally:
        pool.close()
    return kernels
