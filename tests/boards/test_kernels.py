"""Kernels for each kind of ARM core, run by qemu-user without TVM's runtime, against NumPy.

`test_runtime.py` runs a whole network on a 32-bit board, with the runtime that we compile.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tvm_ffi
from boards import emulated

from tvmsep.codegen import example_inputs, kernel, machine_code, reference, relative_error
from tvmsep.codegen.link import zig
from tvmsep.contracts import Target, Workload
from tvmsep.graph.plan import choose_block, vectors_of
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import load_target, target_names

NAMES = [
    n
    for n in target_names()
    if load_target(n).machine in ("aarch64", "armv7l") and load_target(n).gpu is None
]
TASKS = 3
_ACT = ("bias", "relu6")
_B = {"in_block": 4, "out_block": 4, "epilogue": _ACT}
_DW = {"kh": 3, "kw": 3, "pads": (1, 1, 1, 1)}
WORKLOADS = (
    Workload(op="pointwise", ic=24, oc=40, ih=14, iw=14, **_B),
    Workload(op="pointwise", ic=10, oc=33, ih=7, iw=9, **{**_B, "epilogue": ("bias", "add")}),
    Workload(op="depthwise", ic=20, oc=20, groups=20, ih=14, iw=14, **_DW, **_B),
    Workload(op="depthwise", ic=8, oc=8, groups=8, ih=13, iw=13, sh=2, sw=2, **_DW, **_B),
    Workload(op="conv", ic=3, oc=16, ih=28, iw=28, sh=2, sw=2, **_DW, **{**_B, "in_block": 0}),
    Workload(op="conv", ic=16, oc=24, ih=9, iw=9, **_DW, **{**_B, "epilogue": ("hard_swish",)}),
    Workload(op="dwpw", ic=16, oc=24, groups=16, ih=14, iw=14, mid_epilogue=_ACT, **_DW, **_B),
    Workload(op="dense", ic=64, oc=10, **{**_B, "epilogue": ("bias", "silu")}),
    Workload(op="pool", ic=12, oc=12, ih=7, iw=7, kh=7, kw=7, kind="global_avg", in_block=4,
             out_block=4),
    Workload(op="eltwise", kind="act", ic=8, oc=8, ih=5, iw=5, in_block=4, out_block=4,
             epilogue=("sigmoid",)),
)  # fmt: skip


FORMS = {
    "rpi4": ("nhwc", "float32"), "graviton4": ("nchw8c", "float32"), "rpi5": ("", "float16"),
    "graviton3": ("nhwc", "float16"), "jetson-orin-cpu": ("nchw16c", "float16"),
}  # fmt: skip
"""Layout and precision that a target's kernels are tried in, where not the default."""
LIMIT = {"float32": 1e-5, "float16": 4e-3}


def formed(w: Workload, t: Target) -> Workload:
    """The workload in the layout and precision of `FORMS`, as a plan has it."""
    layout, dtype = FORMS.get(t.name, ("", "float32"))
    i, o = (choose_block(c, t, layout, dtype) for c in (w.ic, w.oc))
    blocks = (i if w.in_block else 0, o)
    runs = (vectors_of(block, t, dtype) for block in blocks)
    names = ("in_block", "out_block", "in_run", "out_run")
    return msgspec.structs.replace(
        w, dtype=dtype, **dict(zip(names, (*blocks, *runs), strict=True))
    )


@pytest.fixture(scope="session")
def mains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Object files of `kernel.c`, filled as machines ask for them."""
    return {"folder": tmp_path_factory.mktemp("mains")}


def triple(t: Target) -> str:
    return "arm-linux-musleabihf" if t.machine == "armv7l" else "aarch64-linux-musl"


def zig_cc(t: Target, *words: str | Path) -> None:
    done = subprocess.run(
        [zig(), "cc", "-target", triple(t), *map(str, words)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def main_object(t: Target, mains: dict[str, Path]) -> Path:
    if t.machine not in mains:
        include = Path(tvm_ffi.__file__).parent / "include"
        out = mains["folder"] / f"{t.machine}.o"
        source = Path(__file__).parent / "kernel.c"
        zig_cc(t, "-O1", f"-DTASKS={TASKS}", f"-I{include}", "-c", source, "-o", out)
        mains[t.machine] = out
    return mains[t.machine]


@pytest.mark.parametrize("name", NAMES)
def test_kernels_equal_numpy(name: str, mains: dict[str, Path], tmp_path: Path) -> None:
    t = load_target(name)
    tool = emulated.qemu("arm" if t.machine == "armv7l" else "aarch64")
    main = main_object(t, mains)
    for w in (formed(w, t) for w in WORKLOADS):
        template = TEMPLATES[w.op]
        assert template.accepts(w, t), w.label
        config = template.default(w, t, TASKS)
        built = machine_code(kernel(w, t, template.name, config), t)
        obj, program = tmp_path / "kernel.o", tmp_path / "kernel"
        built.write_to_file(str(obj), "o")
        zig_cc(t, "-static", obj, main, "-o", program)
        inputs = example_inputs(w, 0)
        arrays = [*inputs, np.full(w.out_shape, np.nan, w.out_dtype)]
        data = struct.pack("<i", len(arrays))
        for a in arrays:
            bits = 8 * a.itemsize
            data += struct.pack(f"<2i{a.ndim}q", bits, a.ndim, *a.shape) + a.tobytes()
        (tmp_path / "in").write_bytes(data)
        done = subprocess.run(
            [tool, program, tmp_path / "in", tmp_path / "out"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, (w.label, config, done.stderr)
        got = np.fromfile(tmp_path / "out", w.out_dtype).reshape(w.out_shape)
        error = relative_error(got, reference(w, inputs), w.oc)
        assert error <= LIMIT[w.dtype], (w.label, config, error)
