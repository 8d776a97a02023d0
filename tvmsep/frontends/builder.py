"""From a row-by-row table to an ONNX graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmsep.frontends.weights import Floats, GivenWeights, RandomWeights, Weight, Weights

if TYPE_CHECKING:
    import onnx

    from tvmsep.frontends.builtin import Block, BuiltinSpec, Network


def _relu6(x: Floats) -> Floats:
    return np.clip(x, 0, 6)


def _hard_sigmoid(x: Floats) -> Floats:
    return np.clip(x / 6 + 0.5, 0, 1)


_ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": _relu6,
    "hard_swish": lambda x: x * _hard_sigmoid(x),
    "hard_sigmoid": _hard_sigmoid,
}


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round to a multiple of `divisor`, never down by more than a tenth (as all these nets do)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def build(spec: BuiltinSpec, net: Network, state: Mapping[str, Any] | None) -> onnx.ModelProto:
    """The network of `spec` as an ONNX model; see `builtin_proto`."""
    from tvmsep.frontends.builtin import OPSET
    from tvmsep.frontends.onnx_check import require_onnx

    onnx = require_onnx()
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    weights = RandomWeights(spec.seed) if state is None else GivenWeights(state)
    graph = _Graph(spec, net, weights)
    graph.network()
    side = spec.resolution
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            spec.network,
            [helper.make_tensor_value_info("input", floats, [spec.batch, 3, side, side])],
            [helper.make_tensor_value_info("logits", floats, [spec.batch, spec.classes])],
            [onnx.numpy_helper.from_array(a, name) for name, a in graph.tensors.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="tvmsep",
        doc_string=spec.title if state is None else spec.network,
    )
    proto.ir_version = 8  # opset 17's own: older runtimes read it too
    return proto


class _Graph:
    """Appends layers to one tensor, `x`, whose channels and side are known."""

    def __init__(self, spec: BuiltinSpec, net: Network, weights: Weights) -> None:
        self.spec, self.net, self.weights = spec, net, weights
        self.nodes: list[Any] = []
        self.tensors: dict[str, Weight] = {}
        self.x, self.channels, self.side = "input", 3, spec.resolution

    def network(self) -> None:
        """Stem, blocks, last convolution, pooling, classifier; names as in torchvision."""
        spec, net = self.spec, self.net
        self.conv_bn("features.0", self.width(net.stem), 3, 2, net.stem_act)
        for n, block in enumerate(net.blocks, 1):
            self.block(f"features.{n}.{'block' if net.head else 'conv'}", block)
        after = f"features.{len(net.blocks) + 1}"
        if net.head:
            self.conv_bn(after, 6 * self.channels, 1, 1, net.act)
        elif net.last:  # widened with the network but never narrowed
            self.conv_bn(after, make_divisible(net.last * max(1.0, spec.width)), 1, 1, net.act)
        self.emit("GlobalAveragePool", "pool")
        self.emit("Flatten", "flatten", axis=1)
        if net.head:
            self.linear("classifier.0", self.width(net.head))
            self.activation("classifier.1", net.act)
            self.linear("classifier.3", spec.classes, "logits")
        else:
            self.linear("classifier.1", spec.classes, "logits")

    def width(self, channels: int) -> int:
        """Scaled by the width multiplier, rounded as the network's authors did."""
        scaled = channels * self.spec.width
        return make_divisible(scaled) if self.net.linear_out else int(scaled)

    def block(self, key: str, block: Block) -> None:
        """Expand, filter each channel, gate, project: what the row asks for of these."""
        start = (self.x, self.channels, self.weights.save())
        steps = itertools.count()
        wide = self.width(block.expand) if block.expand else self.channels * block.factor
        if wide != self.channels:
            self.conv_bn(f"{key}.{next(steps)}", wide, 1, 1, block.act)
        self.conv_bn(f"{key}.{next(steps)}", wide, block.kernel, block.stride, block.act, wide)
        if block.gate:
            self.squeeze_excite(f"{key}.{next(steps)}")
        last = f"{key}.{next(steps)}"
        if self.net.head:
            self.project(f"{last}.0", f"{last}.1", block, start)
        else:
            self.project(last, f"{key}.{next(steps)}", block, start)

    def project(self, conv: str, norm: str, block: Block, start: tuple[str, int, Any]) -> None:
        """The block's last 1x1 convolution, with its activation or residual."""
        self.conv(conv, self.width(block.out), 1, 1)
        self.batch_norm(norm)
        if not self.net.linear_out:
            self.activation(f"{conv}.act", block.act)
        elif block.stride == 1 and start[1] == self.channels:
            self.emit("Add", f"{conv}.add", start[0])
            self.weights.add(start[2])

    def squeeze_excite(self, key: str) -> None:
        """Scale each channel by a gate computed from all channels' means."""
        inside, mark = self.x, self.weights.save()
        channels = self.channels
        self.emit("GlobalAveragePool", f"{key}.pool")
        self.conv(f"{key}.fc1", make_divisible(channels // 4), 1, 1, bias=True)
        self.activation(f"{key}.relu", "relu")
        self.conv(f"{key}.fc2", channels, 1, 1, bias=True)
        self.activation(f"{key}.gate", "hard_sigmoid")
        self.emit("Mul", f"{key}.mul", inside)
        self.weights.gate(mark)

    def conv_bn(
        self, key: str, oc: int, kernel: int, stride: int, act: str, groups: int = 1
    ) -> None:
        """Convolution, batch norm, activation."""
        self.conv(f"{key}.0", oc, kernel, stride, groups)
        self.batch_norm(f"{key}.1")
        self.activation(f"{key}.2", act)

    def conv(
        self, key: str, oc: int, kernel: int, stride: int, groups: int = 1, bias: bool = False
    ) -> None:
        """Convolution that keeps the picture's size, divided by the stride and rounded up."""
        pads = self.pads(kernel, stride)
        tensors = self.weights.conv(key, (oc, self.channels // groups, kernel, kernel), bias)
        names = self.keep(key, ("weight", "bias")[: 1 + bias], tensors)
        self.emit(
            "Conv",
            key,
            *names,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=pads,
            group=groups,
        )
        self.channels = oc
        if not bias:  # SE's convolutions, which have one, run on the pooled pixel
            self.side = (self.side + pads[0] + pads[2] - kernel) // stride + 1

    def pads(self, kernel: int, stride: int) -> list[int]:
        """Top, left, bottom, right."""
        if self.net.same == "torch":
            return [(kernel - 1) // 2] * 4
        total = max(0, (-(-self.side // stride) - 1) * stride + kernel - self.side)
        return [total // 2] * 2 + [total - total // 2] * 2

    def batch_norm(self, key: str) -> None:
        """Unfolded, in inference mode."""
        tensors = self.weights.batch_norm(key, self.channels, self.net.eps)
        names = self.keep(key, ("weight", "bias", "running_mean", "running_var"), tensors)
        self.emit("BatchNormalization", key, *names, epsilon=self.net.eps)

    def linear(self, key: str, out: int, output: str | None = None) -> None:
        """Fully connected, with bias."""
        tensors = self.weights.linear(key, (out, self.channels))
        names = self.keep(key, ("weight", "bias"), tensors)
        self.emit("Gemm", key, *names, output=output, transB=1)
        self.channels = out

    def activation(self, key: str, name: str) -> None:
        """ReLU6 as `Clip`, the hard ones as the operators of that name."""
        if name == "relu":
            self.emit("Relu", key)
        elif name == "relu6":
            self.tensors.setdefault("zero", np.array(0, np.float32))
            self.tensors.setdefault("six", np.array(6, np.float32))
            self.emit("Clip", key, "zero", "six")
        elif name == "hard_swish":
            self.emit("HardSwish", key)
        else:
            self.emit("HardSigmoid", key, alpha=1 / 6, beta=0.5)
        self.weights.activation(_ACTIVATIONS[name])

    def keep(self, key: str, parts: tuple[str, ...], tensors: list[Weight]) -> list[str]:
        """Store tensors as initializers; returns their names."""
        names = [f"{key}.{part}" for part in parts]
        self.tensors.update(zip(names, tensors, strict=True))
        return names

    def emit(self, op: str, key: str, *more: str, output: str | None = None, **attrs: Any) -> None:
        """Append a node that reads `x` (and `more`) and writes the new `x`."""
        from onnx import helper

        output = output or f"{key}.out"
        self.nodes.append(helper.make_node(op, [self.x, *more], [output], name=key, **attrs))
        self.x = output
