"""The ONNX file as a torch module, for the engines that take torch: the operators of this family.

What onnxruntime and others do when they load a file is done here by hand: batch norms are folded
into the convolution before them. Two spellings matter to the engines: the pooling keeps its
dimensions (XNNPACK takes no other mean) and a padding that differs between sides is a pad of its
own, which costs a pass over the tensor that other engines do not need (MobileNetV1 has five).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from harness.protocol import Unsupported
from onnx import helper, numpy_helper
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    """Nodes in their order; values by name."""

    def __init__(self, path: str) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        self.constants = {t.name: np.array(numpy_helper.to_array(t)) for t in graph.initializer}
        self.source, self.result = graph.input[0].name, graph.output[0].name
        self.steps: list[tuple[str, Any, list[str], str]] = []
        readers: dict[str, int] = {}
        for node in graph.node:
            for name in node.input:
                readers[name] = readers.get(name, 0) + 1
        for node in graph.node:
            self._add(node, readers)

    def _add(self, node: Any, readers: dict[str, int]) -> None:
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        names = [name for name in node.input if name not in self.constants]
        fixed = [self.constants[name] for name in node.input if name in self.constants]
        step: Any
        match node.op_type:
            case "Constant":
                self.constants[node.output[0]] = numpy_helper.to_array(options["value"])
                return
            case "Conv":
                step = _conv(options, fixed)
            case "BatchNormalization":
                last = self.steps[-1]
                if last[3] != names[0] or readers[names[0]] != 1 or not _is_conv(last[1]):
                    raise Unsupported(f"batch norm {node.name} does not follow a convolution")
                conv = last[1][-1] if isinstance(last[1], nn.Sequential) else last[1]
                _fold(conv, fixed, options.get("epsilon", 1e-5))
                self.steps[-1] = (*last[:3], node.output[0])
                return
            case "Gemm":
                if options.get("transA", 0) or not (
                    options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
                ):
                    raise Unsupported(f"node {node.name}: a Gemm that is no linear layer")
                step = _linear(fixed[0] if options.get("transB", 0) else fixed[0].T, fixed[1:])
            case "Clip":
                step = (float(fixed[0]), float(fixed[1]))
            case "Reshape":
                step = tuple(int(v) for v in fixed[0])
            case "ReduceMean":
                axes = options.get("axes") or fixed[0].tolist()
                step = (tuple(int(a) for a in axes), bool(options.get("keepdims", 1)))
            case "HardSigmoid":
                if abs(options.get("alpha", 0.2) - 1 / 6) > 1e-5:
                    raise Unsupported(f"node {node.name}: torch's hard sigmoid has slope 1/6")
                step = None
            case "Add" | "Mul" if fixed:
                raise Unsupported(f"node {node.name}: {node.op_type} with a constant")
            case "Relu" | "HardSwish" | "GlobalAveragePool" | "Flatten" | "Add" | "Mul":
                step = None
            case other:
                raise Unsupported(f"node {node.name}: no torch spelling of {other} here")
        if isinstance(step, nn.Module):
            self.add_module(f"n{len(self.steps)}", step)
        self.steps.append((node.op_type, step, names, node.output[0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One input, one output."""
        values = {self.source: x}
        for kind, step, names, out in self.steps:
            values[out] = _apply(kind, step, [values[name] for name in names])
        return values[self.result]


def _is_conv(step: Any) -> bool:
    return isinstance(step[-1] if isinstance(step, nn.Sequential) else step, nn.Conv2d)


def _conv(options: dict[str, Any], fixed: list[np.ndarray]) -> nn.Module:
    weight, groups = fixed[0], options.get("group", 1)
    top, left, bottom, right = options.get("pads", [0, 0, 0, 0])
    even = (top, left) == (bottom, right)
    conv = nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], weight.shape[2:],
        tuple(options.get("strides", (1, 1))), (top, left) if even else 0,
        tuple(options.get("dilations", (1, 1))), groups,
    )  # fmt: skip
    bias = fixed[1] if len(fixed) > 1 else np.zeros(weight.shape[0], np.float32)
    _set(conv, weight, bias)
    return conv if even else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), conv)


def _linear(weight: np.ndarray, bias: list[np.ndarray]) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    _set(layer, weight, bias[0] if bias else np.zeros(weight.shape[0], np.float32))
    return layer


def _set(layer: nn.Conv2d | nn.Linear, weight: np.ndarray, bias: np.ndarray) -> None:
    layer.weight = nn.Parameter(torch.from_numpy(np.array(weight)), requires_grad=False)
    layer.bias = nn.Parameter(torch.from_numpy(np.array(bias)), requires_grad=False)


def _fold(conv: nn.Conv2d, statistics: list[np.ndarray], eps: float) -> None:
    scale, shift, mean, var = (a.astype(np.float64) for a in statistics)
    gain = scale / np.sqrt(var + eps)
    weight = conv.weight.numpy() * gain[:, None, None, None]
    bias = (conv.bias.numpy() - mean) * gain + shift
    _set(conv, weight.astype(np.float32), bias.astype(np.float32))


def _apply(kind: str, step: Any, x: list[torch.Tensor]) -> torch.Tensor:
    if isinstance(step, nn.Module):
        return step(x[0])
    match kind:
        case "Relu":
            return F.relu(x[0])
        case "Clip":
            return F.hardtanh(x[0], *step)
        case "HardSwish":
            return F.hardswish(x[0])
        case "HardSigmoid":
            return F.hardsigmoid(x[0])
        case "Add":
            return x[0] + x[1]
        case "Mul":
            return x[0] * x[1]
        case "GlobalAveragePool":
            return x[0].mean((2, 3), keepdim=True)
        case "ReduceMean":
            mean = x[0].mean(step[0], keepdim=True)
            return mean if step[1] else mean.flatten(1)
        case "Flatten":
            return x[0].flatten(1)
        case _:  # Reshape
            return x[0].reshape(step)


def load(path: str) -> Net:
    """The network, ready to run.

    Raises:
        Unsupported: a node has no spelling here.
    """
    return Net(path).eval()
