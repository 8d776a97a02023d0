"""Networks in NHWC: transposes around convolutions cancel, and nothing else changes."""

from __future__ import annotations

import onnx
import pytest
from graph_kit import Net, labels, noise_for, pipeline_error, relative

from tvmsep.frontends import load_model
from tvmsep.graph import evaluate, from_relax
from tvmsep.graph.transposes import settle_transposes
from tvmsep.targets import load_target

TO, BACK = [0, 3, 1, 2], [0, 2, 3, 1]


def conv(net: Net, x: str, oc: int, k: int = 1, groups: int = 1) -> str:
    """A convolution as TensorFlow's exporters write it."""
    inner = net.op("Transpose", x, perm=TO)
    out = net.conv(inner, oc, k, groups, bias=False, pads=[k // 2] * 4)
    out = net.op("Transpose", out, perm=BACK)
    return net.op("Add", out, net.noise(oc, scale=0.3))


def settled(proto: onnx.ModelProto) -> tuple[list[str], float]:
    """Operators that are left, and how much settling changed the outputs."""
    imported = load_model(proto)
    before, after = (from_relax(imported.module) for _ in range(2))
    settle_transposes(after)
    inputs = dict(zip(before.inputs, noise_for(imported, 1), strict=True))
    exact = evaluate(before, inputs)
    return [n.op for n in after.nodes.values()], relative(evaluate(after, inputs), exact)


def test_an_inverted_residual_in_nhwc_is_the_one_in_nchw() -> None:
    net = Net()
    x = net.input(1, 8, 8, 16)
    y = net.act(conv(net, x, 48), "relu6")
    y = net.op("Pad", y, net.ints(0, 1, 1, 0, 0, 1, 1, 0))
    y = net.op("Transpose", y, perm=TO)
    y = net.op("Transpose", net.conv(y, 48, 3, 48, bias=False), perm=BACK)
    y = net.op("Mul", y, net.noise(48, scale=0.1, shift=1.0))
    y = net.op("Add", conv(net, net.act(y, "relu6"), 16), conv(net, x, 16))
    y = net.op("ReduceMean", y, net.ints(1, 2), keepdims=0)
    proto = net.proto(net.gemm(y, 10))
    names, off = settled(proto)
    assert off < 1e-12
    assert names.count("permute_dims") == 2  # one an entry: x is read twice
    steps = labels(proto)
    assert "nn.pad" not in steps and "add" not in steps
    assert [s.split()[0] for s in steps if s != "permute_dims" and "pack" not in s] == [
        "pointwise", "depthwise", "pointwise", "pointwise", "pool:global_avg", "dense",
    ]  # fmt: skip


def test_squeeze_and_excite_in_nhwc() -> None:
    net = Net()
    x = conv(net, net.input(1, 6, 6, 16), 16)
    gate = net.op("ReduceMean", x, net.ints(1, 2), keepdims=1)
    gate = net.act(conv(net, net.act(conv(net, gate, 4), "relu"), 16), "sigmoid")
    y = conv(net, net.op("Mul", x, gate), 8)
    proto = net.proto(y)
    names, off = settled(proto)
    assert off < 1e-12 and names.count("permute_dims") == 2
    assert sum(s.startswith("scale") or "eltwise" in s for s in labels(proto)) <= 1


def test_squeeze_and_excite_of_dense_layers_in_nhwc() -> None:
    """Keras's: dense layers on the pooled vector, which a reshape makes an image again."""
    net = Net()
    x = conv(net, net.input(1, 6, 6, 16), 16)
    gate = net.act(net.gemm(net.op("ReduceMean", x, net.ints(1, 2), keepdims=0), 4), "relu")
    gate = net.op("Reshape", net.act(net.gemm(gate, 16), "sigmoid"), net.ints(1, 1, 1, 16))
    proto = net.proto(conv(net, net.op("Mul", x, gate), 8))
    names, off = settled(proto)
    assert off < 1e-12 and names.count("permute_dims") == 2
    steps = labels(proto)
    assert "multiply" not in steps and "reshape" not in steps
    assert any("*scale" in s for s in steps), steps


def _step(net: Net, x: str) -> str:
    n, h, w, c = net.shapes[x]
    match int(net.rng.integers(15)):
        case 0:
            return conv(net, x, int(net.rng.choice([4, 8, 12])))
        case 1:
            return conv(net, x, c, 3, c)
        case 2:
            return net.op("Relu", x)
        case 3:
            return net.op("Add", x, conv(net, x, c))
        case 4:
            return net.op("Concat", x, conv(net, x, 4), axis=3)
        case 5:
            return net.op("Mul", x, net.op("ReduceMean", x, net.ints(1, 2), keepdims=1))
        case 6:
            left, right = net.ops("Split", x, net.ints(c // 2, c - c // 2), outputs=2, axis=-1)
            return net.op("Concat", right, left, axis=-1)
        case 7:
            return net.op("Softmax", x, axis=-1)
        case 8:
            return net.op("Pad", x, net.ints(0, 0, 1, 0, 0, 1, 0, 0), net.const(0.5))
        case 9:
            return net.op("Slice", x, net.ints(0), net.ints(max(1, h - 1)), net.ints(1))
        case 10:
            return net.op("Mul", net.noise(1, h, 1, c), x)
        case 11:
            return net.op("Transpose", x, perm=[0, 2, 1, 3])
        case 12:
            rows = net.op("Reshape", x, net.ints(n, h * w, c))
            return net.op("Reshape", net.op("Tanh", rows), net.ints(n, h, w, c))
        case 13:
            gate = net.op("ReduceMean", x, net.ints(1, 2), keepdims=0)
            gate = net.op("Reshape", net.gemm(gate, c), net.ints(n, 1, 1, c))
            return net.op("Mul", *([x, gate] if net.rng.integers(2) else [gate, x]))
        case _:
            wide = net.op("Transpose", net.bn(net.op("Transpose", x, perm=TO)), perm=BACK)
            return net.op("PRelu", wide, net.noise(c, scale=0.2))


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_between_the_outputs_stay(seed: int) -> None:
    net = Net(seed)
    x = net.input(1, 5, 4, 6)
    kept = []
    for _ in range(int(net.rng.integers(3, 10))):
        x = _step(net, x)
        if net.rng.integers(4) == 0:
            kept.append(x)
    flat = net.op("Flatten", net.op("ReduceMax", x, net.ints(1, 2), keepdims=1))
    proto = net.proto(*dict.fromkeys([x, *kept, net.gemm(flat, 3)]))
    _, off = settled(proto)
    assert off < 1e-12


@pytest.mark.parametrize("seed", [3, 17])
def test_compiled_too(seed: int) -> None:
    net = Net(seed)
    x = conv(net, net.input(1, 9, 7, 5), 12, 3)
    for _ in range(6):
        x = _step(net, x)
    assert pipeline_error(net.proto(x), load_target("local"), 2) < 2e-5


def test_a_transpose_that_is_needed_stays() -> None:
    """A detection head: NCHW to NHWC, then boxes as rows."""
    net = Net()
    x = net.conv(net.input(1, 8, 4, 4), 12)
    rows = net.op("Reshape", net.op("Transpose", x, perm=BACK), net.ints(1, 48, 4))
    proto = net.proto(net.op("Concat", rows, rows, axis=1))
    names, off = settled(proto)
    assert off == 0 and names.count("permute_dims") == 1
