"""The engines that `x86.py` compares: one file each, and this table.

An engine's file has two functions, called in a process of the engine's own environment:

    prepare(job) -> facts        # convert or compile once per network and thread count; untimed
    load(job) -> (call, facts)   # call: NumPy [n,c,h,w] in, NumPy out; this is what is timed

`facts` are short strings by name, kept in the JSON file. Each `call` takes the cheapest documented
way from one NumPy array to another; copies that this way needs are part of an engine's time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ONNX = "onnx==1.23.2"
NUMPY = "numpy==2.4.6"
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Engine:
    """One engine.

    Attributes:
        name: on the command line and in tables.
        module: how its file is imported.
        package: the distribution whose version is reported.
        requirements: what its environment holds, pinned; none means the interpreter that runs the
            benchmark, where tvmsep is.
        ours: whether the peers are compared with it.
        avx2: how `--isa avx2` limits it, or why it cannot.
        limited: whether it can.
        avx2_env: environment variables of that limit.
    """

    name: str
    module: str
    package: str
    requirements: tuple[str, ...] = ()
    ours: bool = False
    avx2: str = ""
    limited: bool = False
    avx2_env: Mapping[str, str] = field(default_factory=dict)


_ONEDNN = {"ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2"}
_TVM = ("apache-tvm==0.27.0.post1", "apache-tvm-ffi==0.1.14.post0")

ENGINES: dict[str, Engine] = {
    e.name: e
    for e in (
        Engine(
            "tvmsep", "engines.tvmsep_", "tvmsep", ours=True,
            avx2="target x86-avx2", limited=True,
        ),
        Engine(
            "tvmsep-untuned", "engines.tvmsep_", "tvmsep", ours=True,
            avx2="target x86-avx2", limited=True,
        ),
        Engine(
            "onnxruntime", "engines.onnxruntime_", "onnxruntime", ("onnxruntime==1.31.1", NUMPY),
            avx2="MLAS picks its kernels by CPUID and has no switch",
        ),
        Engine(
            "openvino", "engines.openvino_", "openvino", ("openvino==2026.4.1", NUMPY),
            avx2="ONEDNN_MAX_CPU_ISA=AVX2; its own kernels need a debug build for that",
            limited=True,
            avx2_env={**_ONEDNN, "OV_CPU_MAX_ISA": "AVX2"},
        ),
        Engine(
            "xnnpack", "engines.xnnpack_", "executorch", ("executorch==1.5.1", TORCH, ONNX, NUMPY),
            avx2="picks its kernels by CPUID; AVX-512 can only be left out when building it",
        ),
        Engine(
            "ncnn", "engines.ncnn_", "ncnn",
            ("ncnn==1.0.20261020", "pnnx==20261020", TORCH, ONNX, NUMPY),
            avx2="picks its kernels by CPUID; AVX-512 can only be left out when building it",
        ),
        Engine(
            "mnn", "engines.mnn_", "MNN", ("MNN==3.6.1", NUMPY),
            avx2="picks its kernels by CPUID; AVX-512 can only be left out when building it",
        ),
        Engine(
            "inductor", "engines.inductor_", "torch", (TORCH, ONNX, NUMPY),
            avx2="ATEN_CPU_CAPABILITY=avx2, cpp.march=haswell, ONEDNN_MAX_CPU_ISA=AVX2",
            limited=True,
            avx2_env={
                **_ONEDNN, "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"
            },
        ),
        Engine(
            "tvm", "engines.tvm_", "apache-tvm", (*_TVM, ONNX, NUMPY),
            avx2="mcpu=haswell", limited=True,
        ),
    )
}  # fmt: skip
