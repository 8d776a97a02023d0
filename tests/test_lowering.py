"""Arrays of up to 4 KB lie on the stack, so that LLVM can keep register tiles in registers."""

from __future__ import annotations

import re

import pytest

from tvmsep.codegen import kernel, machine_code
from tvmsep.contracts import Config, Workload
from tvmsep.targets import load_target

AVX512 = load_target("x86-avx512")
ASKS = "AllocWorkspace"
"""TVM's function for memory at run time."""


def assembly(w: Workload, config: Config) -> str:
    return str(machine_code(kernel(w, AVX512, w.op, config), AVX512).inspect_source("s"))


@pytest.mark.parametrize("tile_p", [14, 28])
def test_accumulators_of_a_parallel_loop_stay_in_registers(tile_p: int) -> None:
    w = Workload(
        op="pointwise", n=2, ic=64, ih=14, iw=14, oc=64, in_block=16, out_block=16,
        epilogue=("bias", "relu6"),
    )  # fmt: skip
    config = Config(tile_p=tile_p, tile_oc=1, loop="px.oc", chunks=1, unroll=2, prefetch=2)
    text = assembly(w, config)
    assert ASKS not in text
    stores = re.findall(r"vmov\w+\s+%zmm\d+, \S*\(", text)
    assert len(stores) == tile_p  # the results; none of a sum that goes on


@pytest.mark.parametrize(
    ("floats", "asks"), [(255, False), (256, False), (1024, False), (1025, True)]
)
def test_small_arrays_lie_on_the_stack(floats: int, asks: bool) -> None:
    from tvm import te

    x = te.placeholder((floats,), name="x")
    between = te.compute((floats,), lambda i: x[i] * x[i], name="between")
    turned = te.compute((floats,), lambda i: between[floats - 1 - i] + between[i], name="turned")
    text = machine_code(te.create_prim_func([x, turned]), AVX512).inspect_source("s")
    assert (ASKS in text) == asks


def test_what_lies_between_two_kernels_of_a_gpu_is_the_devices() -> None:
    from tvm import s_tir, te

    x = te.placeholder((256,), name="x")
    between = te.compute((256,), lambda i: x[i] * x[i], name="between")
    turned = te.compute((256,), lambda i: between[255 - i] + between[i], name="turned")
    sch = s_tir.Schedule(te.create_prim_func([x, turned]))
    for name in ("between", "turned"):
        (loop,) = sch.get_loops(sch.get_sblock(name))
        sch.bind(loop, "threadIdx.x")
    host = machine_code(sch.mod, load_target("t4")).inspect_source()
    assert ASKS in host
