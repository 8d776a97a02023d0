"""Transposed convolutions and resizing, from ONNX to numbers: nothing is left to the fallback."""

from __future__ import annotations

from typing import Any

import pytest
from graph_kit import Net, compile_plan, defaults, noise_for, plan_of, relative, run_library

from tvmsep.compiler import emit
from tvmsep.compiler.stamped import parts, read_relax
from tvmsep.contracts import Target
from tvmsep.frontends import load_model
from tvmsep.graph import evaluate, from_relax
from tvmsep.targets import load_target

IC = 12


@pytest.fixture(scope="module")
def local() -> Target:
    return load_target("local")


def check(net: Net, out: str, local: Target, threads: int) -> None:
    imported = load_model(net.proto(out))
    plan = plan_of(imported, local, threads)
    assert {s.node.op for s in plan.steps if s.node} == set(), "an operator without a template"
    _, library = compile_plan(plan, local)
    inputs = noise_for(imported, 5)
    exact = evaluate(from_relax(imported.module), {"input0": inputs[0]})
    assert imported.reference is not None
    assert relative(imported.reference(inputs), exact) < 2e-5, "the import differs from the model"
    assert relative(run_library(library, plan, inputs), exact) < 5e-6


TRANSPOSED: list[dict[str, Any]] = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]},
    {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1] * 4},
    {"kernel_shape": [2, 3], "strides": [3, 2], "pads": [0, 1, 1, 0]},
    {"kernel_shape": [5, 4], "strides": [2, 3], "pads": [3, 2, 1, 3]},
    {"kernel_shape": [3, 3]},
    {"kernel_shape": [3, 2], "dilations": [2, 1], "pads": [1, 0, 2, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "group": 2, "pads": [1] * 4},
    {"kernel_shape": [4, 4], "strides": [2, 2], "group": IC, "pads": [1] * 4},
    {"kernel_shape": [3, 3], "strides": [1, 2], "group": 3, "dilations": [1, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "output_shape": [26, 19]},
    {"kernel_shape": [5, 4], "strides": [2, 3], "output_shape": [26, 28], "group": 2},
]


@pytest.mark.parametrize("case", range(len(TRANSPOSED)))
def test_transposed_convolution(case: int, local: Target) -> None:
    attrs = TRANSPOSED[case]
    net, group = Net(case), attrs.get("group", 1)
    x = net.conv(net.input(1 + case % 2, 3, 13, 10), IC)
    each = 1 if group == IC else 4 if group > 1 else (20, 5, 3, 1)[case % 4]
    weight = net.noise(IC, each, *attrs["kernel_shape"], scale=0.3)
    y = net.op("ConvTranspose", x, weight, net.noise(each * group), **attrs)
    y = net.act(net.bn(y), ("relu", "hs_op", "silu")[case % 3])
    check(net, net.conv(y, 7), local, 1 + case % 2)


RESIZED: list[tuple[tuple[int, int], dict[str, str]]] = [
    ((18, 14), {"mode": "linear"}),
    ((5, 30), {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ((1, 21), {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}),
    ((18, 14), {"mode": "nearest", "nearest_mode": "floor",
                "coordinate_transformation_mode": "asymmetric"}),
    ((4, 19), {"mode": "nearest", "nearest_mode": "round_prefer_ceil"}),
    ((23, 3), {"mode": "nearest", "nearest_mode": "ceil",
               "coordinate_transformation_mode": "align_corners"}),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(RESIZED)))
def test_resize_between_convolutions(case: int, local: Target) -> None:
    size, attrs = RESIZED[case]
    net = Net(case)
    x = net.act(net.conv(net.input(1, 3, 9, 7), IC), "relu")
    y = net.op("Resize", x, "", "", net.ints(1, IC, *size), **attrs)
    y = net.depthwise(net.act(y, "relu6"), 3)
    check(net, y, local, 1 + case % 2)


def shuffled(net: Net, x: str, groups: int = 2) -> str:
    n, c, h, w = net.shapes[x]
    x = net.op("Reshape", x, net.ints(n, groups, c // groups, h, w))
    return net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints(n, c, h, w))


def mixed(net: Net, case: int) -> str:
    """Channels joined, cut and shuffled between every kind of operator."""
    x = net.act(net.conv(net.input(1 + case % 2, 3, 11, 9), 48), "relu")
    match case:
        case 0:
            return net.depthwise(shuffled(net, x), 3)
        case 1:
            y = shuffled(net, net.op("Concat", x, net.conv(x, 16), axis=1))
            return net.op("Add", y, net.conv(y, 64))
        case 2:
            y = shuffled(net, x, 3)
            return net.op("Concat", net.squeeze_excite(y), net.op("Mul", x, y), y, axis=1)
        case 3:
            left, right = net.ops("Split", x, net.ints(7, 41), outputs=2, axis=1)
            return net.op("Concat", right, net.conv(left, 5), left, right, axis=1)
        case 4:
            cut = net.op("Slice", x, net.ints(-20), net.ints(-3), net.ints(1), net.ints(1))
            other = net.op("Slice", x, net.ints(3), net.ints(40), net.ints(1))
            y = net.op("Concat", cut, other, axis=1)
            return net.conv(net.act(y, "silu"), 6, 3, pads=[1] * 4)
        case 5:
            y = net.conv(shuffled(net, x, 4), 48, 3, groups=4, pads=[1] * 4)
            return net.op("MaxPool", shuffled(net, y, 6), kernel_shape=[3, 3], strides=[2, 2])
        case _:
            y = net.op("Concat", net.inputs[0], x, axis=1)
            return net.conv(net.act(y, "relu6"), 9)


@pytest.mark.parametrize("case", range(7))
def test_channels_between_other_operators(case: int, local: Target) -> None:
    net = Net(case)
    out = mixed(net, case)
    check(net, out, local, 1 + case % 2)


def test_text_of_a_network_with_foreign_operators_can_be_read_back(local: Target) -> None:
    """Their weights are parameters: text holds no arrays."""
    net = Net(1)
    x = net.conv(net.input(1, 3, 9, 8), IC)
    y = net.op("ConvTranspose", x, net.noise(IC, 6, 3, 3), net.noise(6), strides=[2, 2],
               dilations=[2, 2])  # fmt: skip
    y = net.op("Gather", y, net.ints(5, 0, 3), axis=1)
    imported = load_model(net.proto(net.conv(y, 5)))
    plan = plan_of(imported, local, 1)
    assert [s.node.op for s in plan.steps if s.node] == ["nn.conv2d_transpose", "take"]
    module = emit(plan, local, defaults(plan, local))
    again = read_relax(module.script(show_meta=False), "text", "")
    assert [p.name for p in parts(again)] == [p.name for p in parts(module)]
    _, library = compile_plan(plan, local)
    inputs = noise_for(imported, 5)
    exact = evaluate(from_relax(imported.module), {"input0": inputs[0]})
    assert relative(run_library(library, plan, inputs), exact) < 5e-6
