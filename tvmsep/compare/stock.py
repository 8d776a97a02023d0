"""TVM without our schedules: its default pipeline, and its own search on our blocked workloads."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tvmsep.contracts import Config, InputError, Target, Workload
from tvmsep.measure.worker import Worker, WorkerDied, WorkerError, WorkerTimeout

Shapes = Mapping[str, Sequence[int]] | None
COMPILE_TIMEOUT_S = 600.0
SEARCH_TIMEOUT_S = 4 * 3600.0
_CANDIDATE_TIMEOUT_S = 30.0


def _warm() -> None:
    pass


def _away(what: str, env: dict[str, str], limit_s: float, fn: Any, *args: Any) -> None:
    """Run it in a process of its own: TVM's pools and its search leave theirs in no good state."""
    worker = Worker(_warm, {"TVM_USE_RUNTIME_LIB": "0", **env})
    try:
        worker.call(fn, *args, limit_s=limit_s)
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


def _builder(target: Target, folder: Path) -> Any:
    """MetaSchedule's builder in this process.

    TVM's starts new processes for each batch, and each imports 18 s of CUDA intrinsics.
    """
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule import builder as b

    link = _linker(target)

    @derived_object
    class Here(b.PyBuilder):  # type: ignore[misc]
        def build(self, inputs: Any) -> list[Any]:
            return [self._one(i) for i in inputs]

        def _one(self, one: Any) -> Any:
            out = Path(tempfile.mkdtemp(dir=folder)) / "kernel.so"  # the search removes its folder
            try:
                built = b.local_builder.default_build(one.mod, one.target, None)
                built.export_library(str(out), fcompile=link, workspace_dir=str(out.parent))
            except Exception as error:  # TVM raises whatever it likes
                return b.BuilderResult(None, str(error))
            return b.BuilderResult(str(out), None)

    return Here()


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
    env = {"TVM_NUM_THREADS": str(threads)}
    args = (model, bundle, target, threads, trials, shapes)
    _away(f"metaschedule:{trials}", env, SEARCH_TIMEOUT_S, _search, *args)


def _search(
    model: str, bundle: Path, target: Target, threads: int, trials: int, shapes: Shapes
) -> None:
    from tvm import IRModule, s_tir
    from tvm.s_tir import meta_schedule as ms
    from tvm.target import Target as TvmTarget

    from tvmsep.bundle import Package, write_bundle
    from tvmsep.compiler import compile_library, emit, lower, peak_bytes
    from tvmsep.frontends import load_model
    from tvmsep.graph import from_relax, make_plan, normalise
    from tvmsep.schedules import TEMPLATES

    plan = make_plan(
        normalise(from_relax(load_model(model, shapes=shapes).module)), target, threads
    )
    tasks = plan.tasks(target)
    if trials < len(tasks):
        raise InputError(
            f"metaschedule:{trials}: the network has {len(tasks)} kernels; give at least as many "
            "trials"
        )
    configs: dict[Workload, tuple[str, Config]] = {}
    modules: dict[Workload, Any] = {}
    for task in tasks:
        w, template = task.workload, TEMPLATES[task.template]
        config = template.default(w, target, threads)
        configs[w] = (task.template, config)
        func = template.compute(w, target, config).with_attr("global_symbol", "main")
        modules[w] = IRModule({"main": func.with_attr("tirx.noalias", True)})
    spec = TvmTarget({**target.tvm_dict(), "num-cores": threads})
    share = max(1, trials // len(tasks))
    kernels: dict[Workload, Any] = {}
    runner = ms.runner.LocalRunner(timeout_sec=_CANDIDATE_TIMEOUT_S)
    for w, module in modules.items():
        with tempfile.TemporaryDirectory(prefix="tvmsep-ms-") as folder:
            database = ms.tune_tir(
                module, spec, folder, max_trials_global=share, num_trials_per_iter=min(share, 16),
                builder=_builder(target, Path(folder)), runner=runner,
            )  # fmt: skip
            found = ms.tir_integration.compile_tir(database, module, spec)
            if isinstance(found, s_tir.Schedule):
                kernels[w] = found.mod["main"]
    if not kernels:
        raise InputError("no candidate of MetaSchedule's could be built and run")
    module = emit(plan, target, configs, kernels=kernels)
    lowered = lower(module, target)
    with Package(bundle) as package:
        m = package.manifest
        weights = package.weights()
    write_bundle(
        bundle, name=m.name, target=m.target, inputs=m.inputs, outputs=m.outputs,
        libraries={threads: compile_library(lowered, target)}, weights=weights,
        relax={threads: module.script(show_meta=False)},
        peak_ram_bytes={threads: peak_bytes(lowered) + sum(a.nbytes for a in weights.values())},
        source=m.source, licence=m.licence, flops=m.flops,
    )  # fmt: skip
