"""The engines that `cuda.py` compares; as the table in `engines`, and on a GPU.

A `call` of theirs has `on_device(runs)` besides: seconds of so many runs of the network, each from
the last call's input in the device's memory until the output lies there, the device waited for.
That is what is timed: what moves pictures to a device is the same for all.
"""

from __future__ import annotations

from engines import NUMPY, ONNX, TORCH, Engine

GPU_ENGINES: dict[str, Engine] = {
    e.name: e
    for e in (
        Engine("tvmsep", "engines.tvmsep_cuda_", "tvmsep", ours=True),
        Engine("tvmsep-untuned", "engines.tvmsep_cuda_", "tvmsep", ours=True),
        Engine("torch", "engines.torch_cuda_", "torch", (TORCH, ONNX, NUMPY)),
        Engine("torch-compile", "engines.torch_cuda_", "torch", (TORCH, ONNX, NUMPY)),
        Engine("tensorrt", "engines.tensorrt_", "tensorrt"),
    )
}
