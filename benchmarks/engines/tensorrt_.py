"""TensorRT, where it is installed beside torch: its parser of ONNX, its own search of kernels."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt
import torch
from harness.protocol import Job, Unsupported


def _plan(job: Job) -> Path:
    return Path(job.folder) / "net.plan"


def prepare(job: Job) -> dict[str, str]:
    """Build an engine; TF32 is off, float16 only where it is asked for.

    Raises:
        Unsupported: TensorRT cannot read or build the network.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(job.model).read_bytes()):
        raise Unsupported(str(parser.get_error(0)))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if job.dtype == "float16":
        if not hasattr(trt.BuilderFlag, "FP16"):
            raise Unsupported(f"TensorRT {trt.__version__} takes no float16 but from the model")
        config.set_flag(trt.BuilderFlag.FP16)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Unsupported("TensorRT builds no engine of this network")
    _plan(job).write_bytes(bytes(plan))
    return {"dtype": job.dtype}


class _Call:
    def __init__(self, job: Job) -> None:
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(_plan(job).read_bytes())
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._tensors: dict[str, Any] = {}
        for name in names:
            shape = tuple(self._engine.get_tensor_shape(name))
            self._tensors[name] = torch.empty(shape, dtype=torch.float32, device="cuda")
            self._context.set_tensor_address(name, self._tensors[name].data_ptr())
        self._input, self._output = (self._tensors[n] for n in (names[0], names[-1]))

    def _run(self) -> None:
        self._context.execute_async_v3(self._stream.cuda_stream)
        self._stream.synchronize()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self._input.copy_(torch.from_numpy(x))
        torch.cuda.synchronize()
        self._run()
        return self._output.cpu().numpy()

    def on_device(self, runs: int) -> list[float]:
        """Seconds of each run."""
        times = []
        for _ in range(runs):
            begin = time.perf_counter()
            self._run()
            times.append(time.perf_counter() - begin)
        return times


def load(job: Job) -> tuple[object, dict[str, str]]:
    """The engine, deserialised."""
    return _Call(job), {"dtype": job.dtype}
