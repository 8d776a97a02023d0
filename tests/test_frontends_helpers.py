"""What the frontend tests share: tiny ONNX graphs, and running a Relax module as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def node(op: str, inputs: str, outputs: str = "y", **attrs: Any) -> onnx.NodeProto:
    """A node; names are separated by blanks and `_` is an absent input."""
    names = ["" if n == "_" else n for n in inputs.split()]
    return helper.make_node(op, names, outputs.split(), **attrs)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str] | None],
    constants: Mapping[str, Any] | None = None,
    outputs: str = "y",
    opset: int = 13,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of float inputs and outputs of unstated shape."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(n, dtype, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs.split()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal random float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def run(module: Any, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Compile with TVM's own pipeline, fast rather than well, and run once."""
    import tvm

    target = tvm.target.Target({"kind": "llvm", "opt-level": 0})
    machine = tvm.relax.VirtualMachine(tvm.compile(module, target), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(a) for a in arrays))
    return [result.numpy()] if hasattr(result, "numpy") else [r.numpy() for r in result]


def assert_matches_reference(imported: Any, tolerance: float = 2e-5, seed: int = 1) -> None:
    """The Relax module computes what the original framework computes on random inputs."""
    arrays = [2 * floats(*s.shape, seed=seed + i) for i, s in enumerate(imported.inputs)]
    wanted, got = imported.reference(arrays), run(imported.module, arrays)
    assert [w.shape for w in wanted] == [s.shape for s in imported.outputs]
    assert [w.shape for w in wanted] == [g.shape for g in got]
    for w, g in zip(wanted, got, strict=True):
        scale = max(1.0, float(np.abs(w).max()))
        assert float(np.abs(w - g).max()) <= tolerance * scale


def operators(imported: Any) -> list[str]:
    """The names of the Relax operators of `main`, in order; TIR calls as `call_tir`."""
    import tvm

    names = []
    for block in imported.module["main"].body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, tvm.ir.Call):
                names.append(binding.value.op.name.removeprefix("relax."))
    return names
