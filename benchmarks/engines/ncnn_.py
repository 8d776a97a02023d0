"""ncnn on the CPU in float32: every fp16, bf16 and int8 option off, which is not its default."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import ncnn
import numpy as np
from harness.protocol import Job, Unsupported

_NOT_FLOAT32 = (
    "use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed",
    "use_bf16_storage", "use_int8_inference", "use_int8_packed", "use_int8_storage",
    "use_int8_arithmetic",
)  # fmt: skip


def prepare(job: Job) -> dict[str, str]:
    """Convert with pnnx, told to keep float32 weights."""
    folder = Path(job.folder)
    if not (folder / "model.ncnn.param").is_file():
        shape = np.load(job.inputs, mmap_mode="r").shape[1:]
        if shape[0] != 1:
            raise Unsupported("ncnn's matrices have no batch: it takes one picture a call")
        shutil.copy(job.model, folder / "model.onnx")
        pnnx = str(Path(sys.executable).with_name("pnnx"))
        command = [pnnx, "model.onnx", f"inputshape=[{','.join(map(str, shape))}]", "fp16=0"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if not (folder / "model.ncnn.param").is_file():
            raise Unsupported(f"pnnx: {(done.stdout + done.stderr).strip()[-300:]}")
    return {}


def load(job: Job) -> tuple[object, dict[str, str]]:
    """A network and one extractor a call, as ncnn's own benchmark does."""
    net = ncnn.Net()
    net.opt.num_threads, net.opt.use_vulkan_compute = job.threads, False
    for name in _NOT_FLOAT32:
        if hasattr(net.opt, name):
            setattr(net.opt, name, False)
    ncnn.set_omp_num_threads(job.threads)
    folder = Path(job.folder)
    net.load_param(str(folder / "model.ncnn.param"))
    net.load_model(str(folder / "model.ncnn.bin"))
    source, result = net.input_names()[0], net.output_names()[0]

    def call(x: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input(source, ncnn.Mat(x[0]))
        return np.array(extractor.extract(result)[1])

    return call, {"threads": str(net.opt.num_threads), "precision": "fp32"}
