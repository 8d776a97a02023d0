"""Tiled products on CUDA devices: a tiling for every shape, asynchronous copies, no spills."""

from __future__ import annotations

import random
import re
from functools import partial
from typing import Any

import pytest
from cuda_kit import build, device, errors, target

from tvmsep import emulator
from tvmsep.codegen import cuda, kernel
from tvmsep.contracts import Config, Workload
from tvmsep.estimate.pair import spill_bytes
from tvmsep.schedules import CUDA, template_for
from tvmsep.targets import load_target

__all__ = ["device"]  # a fixture

DEVICES = ("jetson-nano", "jetson-orin", "h100")


def pointwise(size: int, ic: int, oc: int, block: int = 4, **kw: Any) -> Workload:
    return Workload(
        op="pointwise", ic=ic, oc=oc, ih=size, iw=size, in_block=block or ic,
        out_block=block or oc, **kw,
    )  # fmt: skip


def shape(rng: random.Random) -> Workload:
    """Any size from one pixel and one channel on, in any blocks."""
    op = rng.choice(("pointwise", "conv", "dense", "dwpw"))
    ic, oc = rng.randint(1, 70), rng.randint(1, 70)
    block = rng.choice((1, 4, 8, 0))
    side = 1 if op == "dense" else rng.randint(1, 40)
    taps = rng.choice((1, 3, 5)) if op in ("conv", "dwpw") else 1
    return Workload(
        op=op, n=rng.randint(1, 3), ic=ic, oc=oc, ih=side, iw=side, kh=taps, kw=taps,
        pads=(taps // 2,) * 4, groups=ic if op == "dwpw" else 1, in_block=block or ic,
        out_block=block or oc, dtype=rng.choice(("float32", "float16")),
    )  # fmt: skip


@pytest.mark.parametrize("name", DEVICES)
def test_every_shape_has_a_tiling_that_fits(name: str) -> None:
    t, rng = load_target(name), random.Random(name)
    for _ in range(30):
        w = shape(rng)
        template = template_for(w, t)
        assert template is not None, w
        assert template.default(w, t, 1) in template.space(w, t, 1), w


@pytest.mark.parametrize("name", DEVICES)
def test_a_layer_worth_tuning_has_hundreds_of_tilings(name: str) -> None:
    t = load_target(name)
    for w in (pointwise(14, 512, 512), pointwise(7, 960, 160), pointwise(56, 144, 24)):
        found = CUDA["cuda_pointwise"].space(w, t, 1).configs()
        assert 300 <= len(found) <= 8000, (w.label, len(found))


def test_copies_are_asynchronous_and_right(device: Any) -> None:
    t, rng = target(), random.Random(5)
    cases = []
    for w in (pointwise(7, 96, 40), pointwise(8, 64, 32, block=1), pointwise(10, 64, 48, block=0)):
        space = CUDA["cuda_pointwise"].space(w, t, 1).configs()
        c = rng.choice([c for c in space if c["pipeline"] == "async"])
        cases.append((w, "cuda_pointwise", c))
    assert max(errors(build(cases, t), cases, device)) < 1e-5
    import tvm

    w, name, c = cases[0]
    with cuda.building(t):
        func = tvm.IRModule({"main": kernel(w, t, name, c)})
        module = tvm.tirx.build(func, tvm.target.Target(t.tvm_dict()))
    assert "cp.async.cg.shared.global" in module.imports[0].inspect_source()


def test_each_wait_for_a_copy_is_needed(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, what the second round reads is still on its way: old data, but for the check."""
    w = pointwise(7, 96, 40)
    c = Config(
        tile_p=1, tile_oc=1, threads_p=16, threads_oc=4, split_k=1, step_k=4, pipeline="async"
    )
    assert c in CUDA["cuda_pointwise"].space(w, target(), 1)
    case, compiled = (w, "cuda_pointwise", c), emulator.compile_source
    wait = re.compile(r"[^\n]*cp\.async\.wait_group \d+;[^\n]*\n")
    found = 0

    def without(planted: int, text: str) -> bytes:
        nonlocal found
        waits = list(wait.finditer(text))
        found = len(waits)
        start, end = waits[planted].span()
        return compiled(text[:start] + text[end:])

    for planted in range(2):  # in the loop, and behind it
        monkeypatch.setattr(emulator, "compile_source", partial(without, planted))
        with pytest.raises(AssertionError, match="an asynchronous copy is under way"):
            errors(build([case], target()), [case], device)
    assert found == 2


def test_old_devices_have_no_asynchronous_copies() -> None:
    w = pointwise(14, 512, 512)
    knobs = {
        name: CUDA["cuda_pointwise"].space(w, load_target(name), 1).knobs["pipeline"]
        for name in ("t4", "a100")
    }
    assert "async" not in knobs["t4"]
    assert "async" in knobs["a100"]


@pytest.mark.parametrize(
    ("name", "w"),
    [
        ("jetson-nano", pointwise(14, 64, 384, dtype="float16", epilogue=("bias", "relu6"))),
        ("jetson-nano", pointwise(7, 512, 1024, dtype="float16", epilogue=("bias", "relu6"))),
        ("jetson-orin", pointwise(56, 64, 128, 0, dtype="float16", epilogue=("bias", "relu6"))),
    ],
    ids=lambda x: x if isinstance(x, str) else x.label,
)  # fmt: skip
def test_defaults_do_not_spill(name: str, w: Workload) -> None:
    """Those of the published networks that did, while the registers of halves were guessed low."""
    assert spill_bytes(w, load_target(name)) == 0


def test_what_spills_for_occupancy_is_compiled_again() -> None:
    import tvm

    t = load_target("jetson-orin")
    w = pointwise(7, 960, 160, epilogue=("bias", "add"), scaled=True)
    c = Config(
        tile_p=4, tile_oc=1, threads_p=7, threads_oc=8, split_k=4, step_k=4, pipeline="registers"
    )
    with cuda.building(t):
        func = tvm.IRModule({"main": kernel(w, t, "cuda_pointwise", c)})
        module = tvm.tirx.build(func, tvm.target.Target(t.tvm_dict()))
    source = module.imports[0].inspect_source()
    (made,) = cuda.compile_cuda(source, t.gpu).resources
    assert made.spill_bytes == 0
    assert made.threads == 7 * 8 * 4


def test_the_barrier_that_tvm_leaves_out_is_needed(device: Any) -> None:
    """One row of threads copies what all read: such tilings race, so spaces leave them out."""
    t, w = target(), pointwise(4, 3, 36)
    c = Config(
        tile_p=1, tile_oc=3, threads_p=16, threads_oc=4, split_k=1, step_k=1, pipeline="none"
    )
    assert c not in CUDA["cuda_pointwise"].space(w, t, 1)
    case = (w, "cuda_pointwise", c)
    with pytest.raises(AssertionError, match="race|conflict|unspecified|illegal"):
        errors(build([case], t), [case], device)
