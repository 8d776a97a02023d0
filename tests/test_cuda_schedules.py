"""Every CUDA template computes what NumPy computes, in every layout, without races or overruns.

The kernels run on the emulator, which checks each access; threads run in another order each time.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from cuda_kit import CUDA, Case, build, device, errors, target
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from workload_kit import workloads

from tvmsep.contracts import Target

__all__ = ["device"]  # a fixture

TOLERANCE = {"float32": 1e-5, "float16": 2e-3}
BATCH = 5
"""Workloads in one library: a compiler started for each would take most of the time."""
LAYOUTS = ("nchw4c", "nchw", "nhwc")


@st.composite
def cases(draw: st.DrawFn, name: str, t: Target) -> Case:
    """A workload that the template takes, in one of the layouts, and a config of its space."""
    template = CUDA[name]
    layout, seed = draw(st.sampled_from(LAYOUTS)), draw(st.integers(0, 2**31))
    op = name.removeprefix("cuda_")
    blocks = {"nchw4c": lambda c: 4, "nchw": lambda c: 1, "nhwc": lambda c: c}[layout]
    w = draw(workloads(op, blocks).filter(lambda w: template.accepts(w, t)))
    w = msgspec.structs.replace(w, dtype=draw(st.sampled_from(("float32", "float16"))))
    space, default = template.space(w, t, 1), template.default(w, t, 1)
    assert default in space, f"{w.label}: the default {default} is outside the space"
    configs = space.configs()
    return w, name, default if seed % 4 == 0 else random.Random(seed).choice(configs)


@pytest.mark.parametrize("name", CUDA)
def test_equals_numpy(name: str, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    t, seen = target(), Counter[str]()

    @settings(
        max_examples=4, deadline=None, derandomize=True, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(cases(name, t), min_size=BATCH, max_size=BATCH), st.integers(0, 2**31))
    def prop(batch: list[Case], order: int) -> None:
        monkeypatch.setenv("TVMSEP_EMULATOR_SEED", str(order))
        for case, error in zip(batch, errors(build(batch, t), batch, device), strict=True):
            seen[case[0].dtype] += 1
            assert error < TOLERANCE[case[0].dtype], f"{case}: error {error}"

    prop()
    assert seen.total() >= 20
