"""Engines as adapters: a class that loads a network when it is made and runs it when called.

An adapter of your own is a class in a file; `tvmsep compare FILE.py:CLASS ours.tvmsep` runs it:

    class MyEngine:
        version = "1.0"

        def __init__(self, job):  # job.path: the ONNX file; job.threads
            self.net = my_engine.load(job.path, threads=job.threads)

        def __call__(self, arrays):  # NumPy in, a list of NumPy out: this is what is timed
            return [self.net.run(*arrays)]

Each takes the cheapest documented way from NumPy to NumPy; copies that this way needs are part of
its time. An adapter lives in a fresh process that runs nothing else.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from tvmsep.contracts import InputError

Array = NDArray[Any]
Takes = Literal["bundle", "library", "onnx", "model"]


@dataclass(frozen=True)
class Job:
    """What an adapter is made from."""

    path: str
    """A bundle, a library that TVM's own pipeline exported, or the model's file."""
    threads: int


class Adapter(Protocol):
    """A loaded network. `version` is shown beside the engine's name."""

    version: str

    def __init__(self, job: Job) -> None: ...

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once."""
        ...


@dataclass(frozen=True)
class Engine:
    """One line of the table.

    Attributes:
        name: on the command line.
        adapter: `module:class`, or `file.py:class`.
        takes: what its `Job.path` is.
        package: what must be installed.
        extra: of tvmsep, which installs it.
    """

    name: str
    adapter: str
    takes: Takes
    package: str = ""
    extra: str = ""

    @property
    def reads_onnx(self) -> bool:
        """Whether a program of torch's has to be exported for it."""
        return self.takes in ("onnx", "library")


def _listed(result: Any) -> list[Array]:
    return list(result) if isinstance(result, tuple | list) else [result]


class Ours:
    """A bundle as `tvmsep.Bundle` runs it, what makes its outputs arrays included."""

    def __init__(self, job: Job) -> None:
        from tvmsep import __version__
        from tvmsep.bundle import Bundle

        self.version = __version__
        self._net = Bundle.load(job.path, job.threads)

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once."""
        return _listed(self._net(*arrays))


class OnnxRuntime:
    """onnxruntime's CPU provider with every graph optimisation."""

    def __init__(self, job: Job) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        self.version = ort.__version__
        self._net = ort.InferenceSession(job.path, options, providers=["CPUExecutionProvider"])
        self._names = [i.name for i in self._net.get_inputs()]

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once."""
        return list(self._net.run(None, dict(zip(self._names, arrays, strict=True))))


class OpenVino:
    """OpenVINO's CPU plugin in float32, hinted to latency, one stream, arrays not copied."""

    def __init__(self, job: Job) -> None:
        import openvino as ov

        settings = {
            "INFERENCE_NUM_THREADS": job.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        model = ov.Core().compile_model(job.path, "CPU", settings)
        self.version = ov.__version__.partition("-")[0]
        self._ov, self._request, self._outputs = ov, model.create_infer_request(), model.outputs

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once. What is returned is overwritten by the next call."""
        for i, array in enumerate(arrays):
            self._request.set_input_tensor(i, self._ov.Tensor(array, shared_memory=True))
        self._request.infer()
        return [self._request.get_output_tensor(i).data for i in range(len(self._outputs))]


class Torch:
    """An exported program (`.pt2`) as torch itself runs it, without autograd."""

    def __init__(self, job: Job) -> None:
        import torch

        torch.set_num_threads(job.threads)
        self.version = torch.__version__
        self._torch, self._net = torch, torch.export.load(job.path).module()

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once."""
        with self._torch.inference_mode():
            result = self._net(*map(self._torch.from_numpy, arrays))
        parts: list[Any] = _listed(result)
        return [part.numpy() for part in parts]


class StockTvm:
    """A library that TVM's own pipeline made, in TVM's virtual machine."""

    def __init__(self, job: Job) -> None:
        import os

        os.environ["TVM_NUM_THREADS"] = str(job.threads)  # else its pool has half of the cores
        import tvm
        from tvm import relax

        self.version = str(tvm.__version__)
        self._tensor = tvm.runtime.tensor
        self._main = relax.VirtualMachine(tvm.runtime.load_module(job.path), tvm.cpu())["main"]

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once."""
        result = self._main(*map(self._tensor, arrays))
        parts = [result] if hasattr(result, "numpy") else list(result)
        return [part.numpy() for part in parts]


_HERE = "tvmsep.compare.engines"
OURS = Engine("tvmsep", f"{_HERE}:Ours", "bundle")
ENGINES: dict[str, Engine] = {
    e.name: e
    for e in (
        Engine("onnxruntime", f"{_HERE}:OnnxRuntime", "onnx", "onnxruntime", "tune"),
        Engine("openvino", f"{_HERE}:OpenVino", "onnx", "openvino", "openvino"),
        Engine("torch", f"{_HERE}:Torch", "model", "torch", "torch"),
        Engine("stock-tvm", f"{_HERE}:StockTvm", "library"),
    )
}


def own_engine(text: str) -> Engine:
    """The engine that `FILE.py:CLASS` names.

    Raises:
        InputError: no such file.
    """
    file, _, name = text.rpartition(":")
    path = Path(file)
    if not path.is_file() or not name.isidentifier():
        raise InputError(f"{text}: no such adapter; write FILE.py:CLASS")
    return Engine(name, f"{path.resolve()}:{name}", "model")


def require(engine: Engine) -> None:
    """See that an engine's package is installed, without importing it.

    Raises:
        InputError: it is not; says what to install.
    """
    if engine.package and importlib.util.find_spec(engine.package) is None:
        raise InputError(
            f"engine {engine.name} needs the package {engine.package}: "
            f"pip install 'tvmsep[{engine.extra}]'"
        )


def make(adapter: str, job: Job) -> Adapter:
    """Load a network; called in a process of its own.

    Raises:
        InputError: the adapter is no class.
    """
    modules: dict[str, Any] = sys.modules
    if "torch" in modules and modules["torch"] is None:  # how workers keep it out
        del modules["torch"]
    home, _, name = adapter.rpartition(":")
    if home.endswith(".py"):
        spec = importlib.util.spec_from_file_location("tvmsep_adapter", home)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["tvmsep_adapter"] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(home)
    cls = getattr(module, name, None)
    if not isinstance(cls, type):
        raise InputError(f"{home} has no class {name}: write FILE.py:CLASS")
    adapter_object: Adapter = cls(job)
    return adapter_object
