"""The built-in networks through the whole pipeline: right, static, and without a scalar loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from graph_kit import compile_plan, defaults, noise_for, plan_of, relative, run_library
from tvm import s_tir, te, tirx

from tvmsep.compiler import emit, lower, peak_bytes
from tvmsep.compiler.emit import SCHEDULED
from tvmsep.compiler.fallback import schedule_rest
from tvmsep.contracts import Target
from tvmsep.frontends import load_model
from tvmsep.graph import evaluate, from_relax
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import load_target

NETWORKS = (
    "mobilenet_v1:width=0.25,resolution=64",
    "mobilenet_v2:width=0.5,resolution=96",
    "mobilenet_v3_small:resolution=64",
    "mobilenet_v3_large:resolution=64",
    "mnasnet_1_0:resolution=64",
    "efficientnet_lite0:resolution=64",
)
FLOOR = 1e-6
"""Error that the order of fp32 sums alone explains."""


@pytest.fixture(scope="module")
def local() -> Target:
    return load_target("local")


@pytest.mark.parametrize("spec", NETWORKS)
def test_network_is_as_exact_as_onnxruntime(spec: str, local: Target) -> None:
    imported = load_model(spec)
    threads = 1 + NETWORKS.index(spec) % 2
    plan = plan_of(imported, local, threads)
    _, library = compile_plan(plan, local)
    inputs, others = noise_for(imported, 3), noise_for(imported, 4)
    exact = evaluate(from_relax(imported.module), {"input": inputs[0]})
    assert imported.reference is not None
    theirs = relative(imported.reference(inputs), exact)
    assert theirs < 5e-5, "the import differs from the model: nothing below would mean anything"
    ours = run_library(library, plan, inputs)
    assert relative(ours, exact) <= 2 * theirs + FLOOR
    assert relative(run_library(library, plan, others), ours) > 1e-2, "the input has no effect"


# No scalar loop


@dataclass
class Loops:
    """What is left of a kernel's loops once vectors are made."""

    vector_stores: int = 0
    scalar_stores: int = 0
    parallel: bool = False
    elements: int = 0

    @property
    def fault(self) -> str:
        """Why a kernel that is not ours would be slow; empty if it is fine."""
        if self.scalar_stores or not self.vector_stores:
            return f"{self.scalar_stores} scalar stores, {self.vector_stores} of vectors"
        return "serial" if self.elements >= 4096 and not self.parallel else ""


def inspect(func: tirx.PrimFunc, target: Target) -> Loops:
    """Lower a kernel as the compiler does, as far as its vectors, and look at what it stores."""
    found = Loops()
    found.elements = int(np.prod([int(d) for d in func.params[-1].shape]))
    passes = tvm.transform.Sequential(
        [
            s_tir.transform.CanonicalizeLoop(),
            s_tir.transform.LowerInitBlock(),
            s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.CompactBufferAllocation(),
            s_tir.transform.StmtSimplify(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.NarrowDataType(32),
            tirx.transform.VectorizeLoop(),
            s_tir.transform.StmtSimplify(),
        ]
    )
    with tvm.target.Target(target.tvm_dict()):
        lowered = passes(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}))["main"]

    def store(node: Any) -> None:
        if any(isinstance(i, tirx.Ramp) for i in node.indices):
            found.vector_stores += 1
        else:
            found.scalar_stores += 1

    def loop(node: Any) -> None:
        found.parallel |= int(node.kind) == int(tirx.ForKind.PARALLEL)

    tvm_ffi.structural_walk(lowered.body, [(tirx.BufferStore, store), (tirx.For, loop)])
    return found


def kernels(mod: tvm.IRModule) -> dict[str, tuple[str, tirx.PrimFunc]]:
    """Name to (template or `fallback`, function)."""
    return {
        var.name_hint: (str(func.attrs[SCHEDULED]), func)
        for var, func in mod.functions_items()
        if isinstance(func, tirx.PrimFunc)
    }


@pytest.mark.parametrize("spec", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large"])
def test_every_kernel_is_ours_or_fast(spec: str, local: Target) -> None:
    plan = plan_of(load_model(spec), local, 2)
    assert {s.node.op for s in plan.steps if s.node} == set(), "an operator without a template"
    lowered = lower(emit(plan, local, defaults(plan, local)), local)
    table = kernels(lowered)
    assert len([t for t, _ in table.values() if t in TEMPLATES]) > 15
    for name, (template, func) in table.items():
        loops = inspect(func, local)
        if template in TEMPLATES:
            assert loops.vector_stores, f"{name} ({template}) stores no vector"
        else:
            assert template == "fallback" and not loops.fault, f"{name}: {loops.fault}"


def test_memory_is_planned_before_the_network_runs(local: Target) -> None:
    plan = plan_of(load_model("mobilenet_v2"), local, 2)
    lowered = lower(emit(plan, local, defaults(plan, local)), local)
    text = lowered["main"].script(show_meta=False)
    allocations = [line for line in text.splitlines() if "alloc_storage(" in line]
    assert 0 < len(allocations) < 10, "tensors share a few storages"
    assert all("alloc_storage(R.shape([" in line for line in allocations), "sizes are constants"
    assert "alloc_tensor(" in text and "builtin.alloc_tensor" not in text
    outputs = [int(np.prod(s.workload.out_shape)) * 4 for s in plan.steps if s.workload]
    largest = max(a + b for a, b in zip(outputs, outputs[1:], strict=False))
    assert largest <= peak_bytes(lowered) < sum(outputs) / 3


def _elementwise(rows: int, columns: int) -> tirx.PrimFunc:
    x = te.placeholder((rows, columns), name="x")
    y = te.compute((rows, columns), lambda i, j: x[i, j] * x[i, j] + 1.0, name="y")
    return te.create_prim_func([x, y])


def test_the_check_finds_what_nobody_scheduled(local: Target) -> None:
    assert "1 scalar" in inspect(_elementwise(64, 128), local).fault
    sch = s_tir.Schedule(_elementwise(64, 128))
    sch.vectorize(sch.split(sch.get_loops(sch.get_sblock("y"))[1], [None, 8])[1])
    assert inspect(sch.mod["main"], local).fault == "serial"
    small = s_tir.Schedule(_elementwise(4, 8))
    small.vectorize(small.get_loops(small.get_sblock("y"))[1])
    assert inspect(small.mod["main"], local).fault == ""
    mod = schedule_rest(tvm.IRModule({"main": _elementwise(64, 128)}), local)
    assert inspect(mod["main"], local).fault == ""
