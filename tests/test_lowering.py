"""Register tiles lie on the stack, whatever their size, so that LLVM can keep them in registers."""

from __future__ import annotations

import re

import pytest

from tvmsep.codegen import kernel, machine_code
from tvmsep.contracts import Config, Workload
from tvmsep.schedules import TEMPLATES
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


def test_what_is_no_register_tile_is_asked_for() -> None:
    w = Workload(
        op="dwpw", groups=64, ic=64, ih=28, iw=28, oc=64, kh=3, kw=3, pads=(1, 1, 1, 1),
        in_block=16, out_block=16,
    )  # fmt: skip
    assert ASKS in assembly(w, TEMPLATES["dwpw"].default(w, AVX512, 1))
