"""Tensor cores: every layout's products on the emulator, what it finds, what the compiler says."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from cuda_kit import build, device, errors, target

from tvmsep import emulator
from tvmsep.codegen import cuda, kernel
from tvmsep.codegen.nvrtc import compile_image
from tvmsep.contracts import Config, Workload
from tvmsep.emulator import LaunchError, Program, compile_source
from tvmsep.estimate.gpu import Unfit, gpu_seconds
from tvmsep.schedules import CUDA
from tvmsep.schedules.cuda.fragments import CORES, by_fragments
from tvmsep.targets import load_target

__all__ = ["device"]  # a fixture

DEVICES = ("t4", "a100", "rtx-30", "jetson-orin", "rtx-40", "h100")
POINTWISE = CUDA["cuda_pointwise"]


def half(size: int, ic: int, oc: int, blocks: tuple[int, int] = (4, 4), **kw: Any) -> Workload:
    return Workload(
        op="pointwise", ic=ic, oc=oc, ih=size, iw=size, in_block=blocks[0] or ic,
        out_block=blocks[1] or oc, dtype="float16", **kw,
    )  # fmt: skip


def tiles(w: Workload, name: str = "jetson-orin") -> list[Config]:
    return [c for c in POINTWISE.space(w, load_target(name), 1).configs() if by_fragments(c)]


@pytest.mark.parametrize(
    "layouts", [((4, 4), (8, 8)), ((0, 0), (0, 4), (4, 0)), ((1, 1), (4, 1), (1, 4))]
)
def test_every_layout_is_right(device: Any, layouts: tuple[tuple[int, int], ...]) -> None:
    rng = random.Random(len(layouts) + sum(layouts[0]))
    ends = ((), ("bias", "relu6"), ("bias", "add", "relu"), ("bias", "silu"))
    cases = []
    for blocks in layouts:
        for shape in CORES[1:]:
            w = half(
                rng.randint(4, 12), rng.randint(8, 70), rng.randint(8, 70), blocks,
                n=rng.randint(1, 2), epilogue=rng.choice(ends), scaled=rng.random() < 0.3,
                **dict.fromkeys(("sh", "sw"), rng.choice((1, 1, 2))),
            )  # fmt: skip
            found = [c for c in tiles(w) if c["cores"] == shape]
            cases += [(w, "cuda_pointwise", c) for c in rng.sample(found, min(1, len(found)))]
    assert len(cases) >= 3
    assert max(errors(build(cases, target()), cases, device)) < 2e-3


def test_each_barrier_is_needed(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    w = half(8, 64, 32, epilogue=("bias",))
    case = (w, "cuda_pointwise", tiles(w)[0])
    original, barrier = emulator.compile_source, "__syncthreads();"
    for nth in range(3):

        def without(source: str, nth: int = nth) -> bytes:
            parts = source.split(barrier)
            assert len(parts) == 4
            kept = barrier.join(parts[: nth + 1]), barrier.join(parts[nth + 1 :])
            return original("".join(kept))

        monkeypatch.setattr(emulator, "compile_source", without)
        with pytest.raises(AssertionError, match="race|conflict|unspecified"):
            errors(build([case], target()), [case], device)


MULTIPLY = """
#include <cuda_fp16.h>
#include <mma.h>
using namespace nvcuda::wmma;
extern "C" __global__ void __launch_bounds__(32) k(half* a, half* b, float* c) {
  __shared__ alignas(64) half left[512];
  fragment<accumulator, 16, 16, 16, float> sum;
  fragment<matrix_a, 16, 16, 16, half, row_major> x;
  fragment<matrix_b, 16, 16, 16, half, row_major> y;
  for (int i = threadIdx.x; i < 256; i += 32) left[i] = a[i];
  __syncthreads();
  fill_fragment(sum, 0.0f);
  load_matrix_sync(x, &(left[0]), 16);
  load_matrix_sync(y, b, 16);
  mma_sync(sum, x, y, sum);
  store_matrix_sync(c, sum, 16, mem_row_major);
}
"""


def multiply(source: str) -> float:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((16, 16)).astype(np.float16) for _ in range(2))
    c = np.full((16, 16), np.nan, np.float32)
    Program(compile_source(source, True)).launch("k", [1], [32], [a, b, c])
    return float(np.abs(c - a.astype(np.float32) @ b.astype(np.float32)).max())


def test_the_emulator_multiplies_fragments_and_finds_what_is_wrong() -> None:
    assert multiply(MULTIPLY) < 1e-4
    for kind, old, new in (
        ("race", "__syncthreads();", ""),
        ("misaligned", "&(left[0])", "&(left[8])"),
        ("misaligned", "&(left[0]), 16", "&(left[0]), 20"),
        ("address", "load_matrix_sync(y, b, 16)", "load_matrix_sync(y, b, 24)"),
        ("divergence", "mma_sync(sum", "if (threadIdx.x < 31) mma_sync(sum"),
    ):
        assert old in MULTIPLY
        with pytest.raises(LaunchError) as caught:
            multiply(MULTIPLY.replace(old, new))
        assert caught.value.kind == kind, (old, str(caught.value))


@pytest.mark.parametrize("name", DEVICES)
def test_nothing_spills_and_what_is_counted_is_used(name: str) -> None:
    import tvm

    t, rng = load_target(name), random.Random(name)
    w = half(14, 192, 128, rng.choice(((4, 4), (0, 0), (1, 1))), epilogue=("bias", "relu6"))
    config = rng.choice(tiles(w, name))
    with cuda.building(t):
        module = tvm.IRModule({"main": kernel(w, t, "cuda_pointwise", config)})
        source = tvm.tirx.build(module, tvm.target.Target(t.tvm_dict())).imports[0].inspect_source()
    assert t.gpu is not None
    (made,) = cuda.compile_cuda(source, t.gpu).resources
    assert made.spill_bytes == 0
    assert made.threads == 32 * config.int("threads_p") * config.int("threads_oc")
    assert 0 < made.shared_bytes <= t.gpu.shared_per_block
    assert b"wmma.mma.sync.aligned.row.row.m" in compile_image(source, t.gpu, ptx=True)


def test_they_are_off_unless_asked_for() -> None:
    w, orin = half(14, 512, 512), load_target("jetson-orin")
    assert POINTWISE.default(w, orin, 1)["cores"] == "fp32"
    assert POINTWISE.default(w, orin, 1) in POINTWISE.space(w, orin, 1)
    assert len(tiles(w)) > 100
    with pytest.raises(Unfit, match="not modelled"):
        gpu_seconds(kernel(w, orin, "cuda_pointwise", tiles(w)[0]), orin)
    for other, t in (
        (w, load_target("jetson-nano")),
        (Workload(op="pointwise", ic=64, oc=64, ih=14, iw=14, in_block=4, out_block=4), orin),
        (half(1, 64, 64), orin),
    ):
        assert "cores" not in POINTWISE.space(other, t, 1).knobs
        assert "cores" not in POINTWISE.default(other, t, 1)
