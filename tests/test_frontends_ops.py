"""Every ONNX pattern that separable networks use: same numbers as onnxruntime, known operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from test_frontends_helpers import assert_matches_reference, floats, model, node, operators

from tvmsep.contracts import ModelError
from tvmsep.frontends import load_model

X = {"x": (1, 8, 9, 10)}
BN = {"s": floats(8), "b": floats(8, seed=1), "m": floats(8, seed=2), "v": floats(8) ** 2 + 0.1}
HALF = ["add", "clip", "divide", "multiply"]


def one(op: str, opset: int = 13, shape: tuple[int, ...] = X["x"], **rest: Any) -> onnx.ModelProto:
    """A model of one node; capitalised keywords are constant inputs, in order."""
    constants = {k.lower(): v for k, v in rest.items() if k.isupper()}
    attrs = {k: v for k, v in rest.items() if not k.isupper() and k != "outputs"}
    outputs = rest.get("outputs", "y")
    present = {k: v for k, v in constants.items() if v is not None}
    inputs = " ".join(["x", *(k if v is not None else "_" for k, v in constants.items())])
    return model([node(op, inputs, outputs, **attrs)], {"x": shape}, present, outputs, opset)


def f(value: float) -> np.ndarray:
    return np.float32(value)


CASES: dict[str, tuple[Callable[[], onnx.ModelProto], list[str] | None]] = {
    "clip opset 7": (lambda: one("Clip", 7, min=0.0, max=6.0), ["clip"]),
    "clip opset 11": (lambda: one("Clip", 11, A=f(0), B=f(6)), ["clip"]),
    "clip below 0 is relu": (lambda: one("Clip", 13, A=f(0)), ["nn.relu"]),
    "clip below": (lambda: one("Clip", 13, A=f(-1)), ["maximum"]),
    "clip above": (lambda: one("Clip", 13, A=None, B=f(1)), ["minimum"]),
    "clip by nothing": (lambda: one("Clip", 13, A=f(-np.inf), B=f(np.nan)), []),
    "hard-swish": (lambda: one("HardSwish", 14), HALF),
    "hard-sigmoid 1/6": (
        lambda: one("HardSigmoid", alpha=1 / 6, beta=0.5),
        ["multiply", "add", "clip"],
    ),
    "hard-sigmoid 0.2": (lambda: one("HardSigmoid"), ["multiply", "add", "clip"]),
    "hard-swish spelled out": (
        lambda: model(
            [node("Add", "x three", "a"), node("Clip", "a zero six", "b")]
            + [node("Mul", "x b", "c"), node("Div", "c six")],
            X,
            {"three": f(3), "zero": f(0), "six": f(6)},
        ),
        ["add", "clip", "multiply", "divide"],
    ),
    "silu": (
        lambda: model([node("Sigmoid", "x", "s"), node("Mul", "x s")], X),
        ["sigmoid", "multiply"],
    ),
    "swish opset 24": (lambda: one("Swish", 24), ["sigmoid", "multiply"]),
    "batch norm opset 7": (lambda: one("BatchNormalization", 7, **_up(BN)), ["nn.batch_norm"]),
    "batch norm opset 15": (
        lambda: one("BatchNormalization", 15, **_up(BN), epsilon=1e-3),
        ["nn.batch_norm"],
    ),
    "conv strides [2,1] asymmetric": (
        lambda: one(
            "Conv", 11, W=floats(8, 8, 3, 3), B=floats(8), strides=[2, 1], pads=[0, 1, 1, 0]
        ),
        ["nn.conv2d", "add"],
    ),
    "conv depthwise multiplier 2": (
        lambda: one("Conv", 11, W=floats(16, 1, 3, 3), group=8, dilations=[2, 2]),
        ["nn.conv2d"],
    ),
    "pad on pixels": (
        lambda: one("Pad", 11, P=np.array([0, 0, 1, 2, 0, 0, 0, 1])),
        ["nn.pad"],
    ),
    "pad on channels": (
        lambda: one("Pad", 13, P=np.array([0, 0, 0, 0, 0, 8, 0, 0]), V=f(0)),
        ["nn.pad"],
    ),
    "pad opset 7": (lambda: one("Pad", 7, pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.5), ["nn.pad"]),
    "pad with axes": (
        lambda: one("Pad", 18, P=np.array([1, 2, 0, 1]), V=f(0), A=np.array([-2, -1])),
        ["nn.pad"],
    ),
    "pad reflect": (
        lambda: one("Pad", 13, P=np.array([0, 0, 1, 2, 0, 0, 0, 1]), mode="reflect"),
        ["nn.pad"],
    ),
    "pad negative": (
        lambda: one("Pad", 13, P=np.array([0, 0, -1, 2, 0, 0, -2, 1])),
        ["strided_slice", "nn.pad"],
    ),
    "pad by nothing": (lambda: one("Pad", 13, P=np.zeros(8, "int64")), []),
    "global average pool": (lambda: one("GlobalAveragePool"), ["mean"]),
    "global max pool": (lambda: one("GlobalMaxPool"), ["max"]),
    "reduce mean opset 13": (lambda: one("ReduceMean", 13, axes=[2, 3]), ["mean"]),
    "reduce mean opset 18": (
        lambda: one("ReduceMean", 18, A=np.array([-1, -2]), keepdims=0),
        ["mean"],
    ),
    "average pool dilated": (
        lambda: one("AveragePool", 19, kernel_shape=[3, 2], dilations=[2, 2]),
        ["nn.avg_pool2d"],
    ),
    "gemm": (
        lambda: one("Gemm", 13, (4, 6), W=floats(5, 6), C=floats(5), transB=1, alpha=0.5, beta=2.0),
        ["matmul", "add"],
    ),
    "gemm transA": (
        lambda: one("Gemm", 13, (6, 4), W=floats(6, 5), C=floats(4, 1), transA=1),
        ["permute_dims", "matmul", "add"],
    ),
    "gemm without bias": (lambda: one("Gemm", 13, (4, 6), W=floats(6, 5)), ["matmul"]),
    "matmul + add": (
        lambda: model(
            [node("MatMul", "x w", "m"), node("Add", "b m")],
            {"x": (2, 6)},
            {"w": floats(6, 5), "b": floats(5)},
        ),
        ["matmul", "add"],
    ),
    "flatten": (lambda: one("Flatten", 13, axis=-2), ["reshape"]),
    "reshape 0 and -1": (lambda: one("Reshape", S=np.array([0, -1])), ["reshape"]),
    "softmax opset 11": (
        lambda: one("Softmax", 11, axis=1),
        ["reshape", "nn.softmax", "reshape"],
    ),
    "softmax opset 7, rows": (lambda: one("Softmax", 7, (2, 6)), ["nn.softmax"]),
    "softmax opset 13": (lambda: one("Softmax", 13, axis=1), ["nn.softmax"]),
    "squeeze opset 11": (lambda: one("Squeeze", 11, (1, 4, 1, 1), axes=[2, 3]), ["squeeze"]),
    "squeeze opset 13": (lambda: one("Squeeze", 13, (1, 4, 1, 1), A=np.array([-1])), ["squeeze"]),
    "unsqueeze": (lambda: one("Unsqueeze", 13, A=np.array([0, -1])), ["expand_dims"] * 2),
    "concat": (
        lambda: model([node("Relu", "x", "a"), node("Concat", "x a", axis=-3)], X),
        ["nn.relu", "concat"],
    ),
    "transpose": (lambda: one("Transpose", perm=[0, 2, 3, 1]), ["permute_dims"]),
    "slice opset 9": (lambda: one("Slice", 9, starts=[1], ends=[5], axes=[1]), ["strided_slice"]),
    "slice opset 10": (
        lambda: one(
            "Slice",
            10,
            S=np.array([1, 2]),
            E=np.array([99, -1]),
            A=np.array([2, 3]),
            T=np.array([2, 1]),
        ),
        ["strided_slice"],
    ),
    "split opset 11": (lambda: one("Split", 11, outputs="y z", axis=1, split=[3, 5]), ["split"]),
    "split opset 13": (
        lambda: one("Split", 13, S=np.array([3, 5]), outputs="y z", axis=1),
        ["split"],
    ),
    "split opset 18 uneven": (
        lambda: one("Split", 18, outputs="y z w", axis=-3, num_outputs=3),
        ["split"],
    ),
    "split into one": (lambda: one("Split", 13, axis=1), []),
    "gather": (lambda: one("Gather", 13, I=np.array([3, -1]), axis=1), ["take"]),
    "add per channel": (lambda: one("Add", B=floats(8, 1, 1)), ["add"]),
    "multiply by a scalar": (lambda: one("Mul", B=f(2)), ["multiply"]),
    "power of an integer": (lambda: one("Pow", B=np.int64(2)), ["power"]),
    "prelu per channel": (lambda: one("PRelu", 9, S=floats(8, 1, 1)), ["nn.prelu"]),
    "prelu of one slope": (lambda: one("PRelu", 16, S=floats(1)), ["nn.prelu"]),
    "prelu per pixel": (
        lambda: one("PRelu", 16, S=floats(1, 9, 10)),
        ["less", "multiply", "where"],
    ),
    "leaky relu": (lambda: one("LeakyRelu", alpha=0.1), ["nn.leakyrelu"]),
    "sum, max, min, mean": (
        lambda: model(
            [node("Sum", "x x x", "a"), node("Max", "a c", "b"), node("Min", "b x c", "d")]
            + [node("Mean", "d x")],
            X,
            {"c": floats(8, 1, 1)},
        ),
        ["add", "add", "maximum", "minimum", "minimum", "add", "multiply"],
    ),
    "squeeze and excitation": (
        lambda: model(
            [node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "g")]
            + [node("HardSigmoid", "g", "s", alpha=1 / 6), node("Mul", "s c", "m")]
            + [node("Add", "m x")],
            X,
            {"w": floats(8, 8, 1, 1)},
        ),
        ["nn.conv2d", "mean", "multiply", "add", "clip", "multiply", "add"],
    ),
    "dropout opset 7": (
        lambda: model([node("Dropout", "x", "a", ratio=0.3), node("Relu", "a")], X, opset=7),
        ["nn.relu"],
    ),
    "dropout opset 13": (
        lambda: model([node("Dropout", "x r", "a mask"), node("Relu", "a")], X, {"r": f(0.3)}),
        ["nn.relu"],
    ),
    "resize opset 10": (
        lambda: one("Resize", 10, S=np.array([1, 1, 2, 3], "float32"), mode="linear"),
        ["image.resize2d"],
    ),
    "upsample opset 7": (
        lambda: one("Upsample", 7, scales=[1.0, 1.0, 2.0, 2.0]),
        ["image.resize2d"],
    ),
    "upsample opset 9": (
        lambda: one("Upsample", 9, S=np.array([1, 1, 2, 2], "float32"), mode="linear"),
        ["image.resize2d"],
    ),
    "resize with empty scales": (
        lambda: one(
            "Resize",
            11,
            R=np.zeros(0, "float32"),
            S=np.zeros(0, "float32"),
            Z=np.array([1, 8, 18, 15]),
            mode="linear",
        ),
        ["image.resize2d"],
    ),
    "an operator defined by others": (lambda: one("Celu", 12, alpha=2.0), None),
}


def _up(constants: dict[str, Any]) -> dict[str, Any]:
    return {k.upper(): v for k, v in constants.items()}


for _mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
    CASES[f"conv {_mode}"] = (
        lambda mode=_mode: one("Conv", W=floats(4, 8, 3, 2), strides=[2, 2], auto_pad=mode),
        ["nn.conv2d"],
    )
    for _pool in ("MaxPool", "AveragePool"):
        CASES[f"{_pool} {_mode}"] = (
            lambda mode=_mode, pool=_pool: one(
                pool, 11, kernel_shape=[3, 2], strides=[2, 2], auto_pad=mode
            ),
            [f"nn.{_pool[:3].lower().replace('ave', 'avg')}_pool2d"],
        )
for _ceil in (0, 1):
    CASES[f"max pool, ceil_mode={_ceil}"] = (
        lambda ceil=_ceil: one(
            "MaxPool", 12, kernel_shape=[3, 2], strides=[2, 3], pads=[1, 0, 0, 1], ceil_mode=ceil
        ),
        ["nn.max_pool2d"],
    )
    for _count in (0, 1):
        for _kernel, _step, _pads in ((3, 2, [1, 0, 0, 1]), (2, 3, [1, 1, 1, 1])):
            CASES[f"average pool {_kernel}/{_step}, ceil={_ceil}, count={_count}"] = (
                lambda ceil=_ceil, count=_count, k=_kernel, s=_step, pads=_pads: one(
                    "AveragePool",
                    19,
                    kernel_shape=[k, k],
                    strides=[s, s],
                    pads=pads,
                    ceil_mode=ceil,
                    count_include_pad=count,
                ),
                None,
            )
for _op in "Relu Sigmoid Tanh Exp Abs Neg Erf Softplus Elu Floor Ceil Round Sign".split():
    CASES[_op] = (lambda op=_op: one(op), None)
for _how in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"):
    for _method in ("nearest", "linear", "cubic"):
        CASES[f"resize {_method} {_how}"] = (
            lambda how=_how, method=_method: one(
                "Resize",
                19,
                (1, 2, 7, 9),
                R=None,
                S=None,
                Z=np.array([1, 2, 12, 20]),
                mode=method,
                coordinate_transformation_mode=how,
                nearest_mode="floor",
            ),
            ["image.resize2d"],
        )


@pytest.mark.parametrize("name", CASES)
def test_matches_onnxruntime(name: str) -> None:
    make, wanted = CASES[name]
    imported = load_model(make())
    assert_matches_reference(imported)
    if wanted is not None:
        assert operators(imported) == wanted


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "an unknown operator": (lambda: one("Wavelet"), "Wavelet_y uses operator Wavelet"),
    "an operator TVM lacks": (
        lambda: one("Det", 13, (2, 3, 3)),
        "Det_y uses operator Det",
    ),
    "training batch norm": (
        lambda: one("BatchNormalization", 15, **_up(BN), training_mode=1, outputs="y p q"),
        "training mode",
    ),
    "positions of maxima": (
        lambda: one("MaxPool", 12, kernel_shape=[2, 2], outputs="y z"),
        "positions of the maxima",
    ),
    "a scale between pixels": (
        lambda: one("Resize", 13, R=None, S=np.array([1, 1, 1.3, 1.3], "float32"), mode="linear"),
        "makes 11.7 of 9 pixels",
    ),
    "antialiasing": (
        lambda: one(
            "Resize", 18, R=None, S=np.array([1, 1, 2, 2], "float32"), mode="linear", antialias=1
        ),
        "antialias",
    ),
    "a negative step": (
        lambda: one("Slice", S=np.array([8]), E=np.array([0]), A=np.array([1]), T=np.array([-1])),
        "step -1 is negative",
    ),
    "a shape computed while running": (
        lambda: model(
            [node("ReduceMax", "x", "m", keepdims=0), node("Cast", "m", "i", to=7)]
            + [node("Unsqueeze", "i a", "s"), node("Reshape", "x s")],
            X,
            {"a": np.array([0])},
        ),
        "target shape is computed while running",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_the_node(name: str) -> None:
    make, wanted = REFUSED[name]
    with pytest.raises(ModelError, match=wanted) as caught:
        load_model(make())
    assert "node " in str(caught.value)
    assert "\n" not in str(caught.value)
