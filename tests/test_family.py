"""The rest of the family: as exact as onnxruntime."""

from __future__ import annotations

import msgspec
import pytest
from family_kit import NETWORKS
from graph_kit import compile_plan, noise_for, plan_of, relative, run_library

from tvmsep.check import ROUNDINGS, weights_alone
from tvmsep.contracts import Target
from tvmsep.frontends import load_model
from tvmsep.graph import evaluate, from_relax
from tvmsep.targets import load_target

FLOOR = 1e-6
"""Error that the order of fp32 sums alone explains."""
SIDE = 32
"""Of the pictures, in pixels."""


@pytest.fixture(scope="module")
def local() -> Target:
    return load_target("local")


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *((name, "") for name in NETWORKS),
        *((n, "nhwc") for n in ("shufflenet_v2", "mixnet", "unet")),
    ],
)
def test_network_is_as_exact_as_onnxruntime(name: str, layout: str, local: Target) -> None:
    imported = load_model(NETWORKS[name](SIDE))
    plan = plan_of(imported, local, 1 + list(NETWORKS).index(name) % 2, layout=layout)
    _, library = compile_plan(plan, local)
    inputs, others = noise_for(imported, 3), noise_for(imported, 4)
    exact = evaluate(from_relax(imported.module), {"input0": inputs[0]})
    assert imported.reference is not None
    theirs = relative(imported.reference(inputs), exact)
    assert theirs < 5e-5, "the import differs from the model: nothing below would mean anything"
    ours = run_library(library, plan, inputs)
    assert relative(ours, exact) <= 2 * theirs + FLOOR
    assert relative(run_library(library, plan, others), ours) > 1e-3, "the input has no effect"


@pytest.mark.parametrize(("name", "layout"), [("mixnet", ""), ("pplcnet", "nhwc")])
def test_half_precision_is_as_exact_as_its_sums(name: str, layout: str, local: Target) -> None:
    half = msgspec.structs.replace(local, lanes=4, vector_registers=32, broadcast_operand=False,
                                   lane_operand=True, half_arithmetic=True)  # fmt: skip
    imported = load_model(NETWORKS[name](SIDE))
    plan = plan_of(imported, half, 2, layout=layout, dtype="float16")
    assert {s.workload.dtype for s in plan.steps if s.workload} == {"float16"}
    _, library = compile_plan(plan, half)
    inputs = noise_for(imported, 3)
    exact = evaluate(from_relax(imported.module), {"input0": inputs[0]})
    alone = weights_alone(from_relax(imported.module), inputs, exact, "float16")
    assert 1e-5 < relative(run_library(library, plan, inputs), exact) < ROUNDINGS * alone
