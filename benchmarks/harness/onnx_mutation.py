"""Sound ONNX files in which a few things were changed, most of which can still be parsed."""

from __future__ import annotations

import random
from typing import Any

_OPERATORS = (
    "Relu", "Sigmoid", "HardSwish", "HardSigmoid", "Tanh", "LeakyRelu", "Clip", "Elu", "Softmax",
    "Add", "Mul", "Sub", "Div", "Max", "Min", "Pow", "Concat", "Identity", "GlobalAveragePool",
    "GlobalMaxPool", "MaxPool", "AveragePool", "Flatten", "Reshape", "Transpose", "Squeeze",
    "Resize", "Conv", "ConvTranspose", "BatchNormalization", "Gemm", "MatMul", "PRelu", "Softplus",
    "ReduceMean", "Cast", "NoSuchOperator", "LSTM", "Loop", "QuantizeLinear",
)  # fmt: skip
_NUMBERS = (-(2**63), -(2**31), -7, -2, -1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 1000, 2**31, 2**62)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, 3.4e38, float("inf"), float("-inf"), float("nan"))


def mutate_onnx(data: bytes, rng: random.Random) -> bytes:
    """One to three changes of operators, attributes, wiring, weights, shapes or versions."""
    import onnx

    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if model.graph.node:
            rng.choice(_CHANGES)(model, rng)
    return model.SerializeToString()


def _any_node(model: Any, rng: random.Random) -> Any:
    return rng.choice(model.graph.node)


def _attribute(model: Any, rng: random.Random) -> None:
    import onnx

    nodes = [n for n in model.graph.node if n.attribute]
    if not nodes:
        return
    a = rng.choice(rng.choice(nodes).attribute)
    kinds = onnx.AttributeProto
    if a.type == kinds.INT:
        a.i = rng.choice(_NUMBERS)
    elif a.type == kinds.FLOAT:
        a.f = rng.choice(_FLOATS)
    elif a.type == kinds.INTS and a.ints:
        match rng.randrange(3):
            case 0:
                a.ints[rng.randrange(len(a.ints))] = rng.choice(_NUMBERS)
            case 1:
                a.ints.append(rng.choice(_NUMBERS))
            case _:
                del a.ints[-1]
    elif a.type == kinds.STRING:
        a.s = rng.choice((b"", b"\xff\xfe", b"SAME_UPPER", b"SAME_LOWER", b"VALID", b"cubic"))
    else:
        a.type = rng.choice((kinds.INT, kinds.FLOAT, kinds.STRING, kinds.TENSOR))


def _drop_attribute(model: Any, rng: random.Random) -> None:
    node = _any_node(model, rng)
    if node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]


def _operator(model: Any, rng: random.Random) -> None:
    _any_node(model, rng).op_type = rng.choice(_OPERATORS)


def _drop_node(model: Any, rng: random.Random) -> None:
    at = rng.randrange(len(model.graph.node))
    node = model.graph.node[at]
    if rng.random() < 0.7 and node.input and node.output:  # its readers read what it read
        for other in model.graph.node:
            for i, name in enumerate(other.input):
                if name == node.output[0]:
                    other.input[i] = node.input[0]
    del model.graph.node[at]


def _double_node(model: Any, rng: random.Random) -> None:
    model.graph.node.append(_any_node(model, rng))


def _wiring(model: Any, rng: random.Random) -> None:
    node = _any_node(model, rng)
    if not node.input:
        return
    names = [o for n in model.graph.node for o in n.output]
    names += [t.name for t in model.graph.initializer] + [i.name for i in model.graph.input]
    at = rng.randrange(len(node.input))
    match rng.randrange(4):
        case 0:
            node.input[at] = rng.choice(names)
        case 1:
            node.input[at] = ""
        case 2:
            del node.input[-1]
        case _:
            node.input.append(rng.choice(names))


def _weight(model: Any, rng: random.Random) -> None:
    import numpy as np
    from onnx import numpy_helper

    if not model.graph.initializer:
        return
    tensor = rng.choice(model.graph.initializer)
    match rng.randrange(5):
        case 0:
            if tensor.dims:
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_NUMBERS)
        case 1:
            tensor.data_type = rng.randrange(24)
        case 2:
            tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
        case 3:
            array = numpy_helper.to_array(tensor).copy()
            if array.size:
                array.reshape(-1)[rng.randrange(array.size)] = rng.choice((0, 1, -1, 100))
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        case _:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.float32 and array.ndim:
                turned = np.ascontiguousarray(array.T)
                tensor.CopyFrom(numpy_helper.from_array(turned, tensor.name))


def _shape(model: Any, rng: random.Random) -> None:
    values = [*model.graph.input, *model.graph.output]
    dims = rng.choice(values).type.tensor_type.shape.dim
    if dims:
        dim = rng.choice(dims)
        if rng.random() < 0.2:
            dim.dim_param = "N"
        else:
            dim.dim_value = rng.choice(_NUMBERS)


def _header(model: Any, rng: random.Random) -> None:
    match rng.randrange(4):
        case 0:
            model.opset_import[0].version = rng.choice((-1, 0, 1, 6, 7, 9, 10, 11, 13, 21, 99))
        case 1:
            model.ir_version = rng.choice((0, 3, 8, 99))
        case 2:
            model.graph.output[0].name = rng.choice(("", "nothing", model.graph.input[0].name))
        case _:
            rng.choice(model.graph.input).type.tensor_type.elem_type = rng.randrange(20)


_CHANGES = (
    _attribute, _attribute, _attribute, _drop_attribute, _operator, _operator, _drop_node,
    _double_node, _wiring, _wiring, _weight, _weight, _shape, _header,
)  # fmt: skip
