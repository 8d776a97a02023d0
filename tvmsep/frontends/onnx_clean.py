"""ONNX protos as importers like them: static shapes, folded constants, nothing left of training.

The passes only rewrite what means the same: a cleaned proto computes what the file computes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import InputError, ModelError, OpenShapeError
from tvmsep.frontends.onnx_check import check_header, check_wiring, opset, require_onnx

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

_NEVER_FOLDED = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
    + ("Bernoulli", "Multinomial", "If", "Loop", "Scan")
)


def read_proto(path: Path) -> onnx.ModelProto:
    """The model in `path`, its external data loaded.

    Raises:
        ModelError: the file is missing, empty, damaged or no ONNX model, or its external data
            cannot be found.
    """
    onnx = require_onnx()
    from google.protobuf.message import DecodeError

    if path.is_dir():
        raise ModelError(f"{path} is a directory: give the .onnx file inside it")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"no model file {path}: check the path") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    if not data:
        raise ModelError(f"{path} is empty (0 bytes): fetch or export it again")
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a Git LFS pointer, not the model: run `git lfs pull`")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{path} is not an ONNX model, or is cut off ({len(data)} bytes): "
            "fetch or export it again"
        ) from error
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"{path} keeps weights in files beside it that cannot be read: {_first_line(error)}; "
            "put those files next to the model under their original names"
        ) from error
    return model


def clean(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None) -> onnx.ModelProto:
    """A copy of `model` with static shapes and every constant expression folded.

    Args:
        model: as read; not changed.
        shapes: a shape for each input whose own is not fully static, by input name.

    Raises:
        ModelError: the model is damaged, too old, or keeps a dimension dynamic.
        InputError: `shapes` names an unknown input or contradicts the model.
    """
    onnx = require_onnx()
    cleaned = onnx.ModelProto()
    cleaned.CopyFrom(model)
    check_header(cleaned)
    if cleaned.functions:
        cleaned = onnx.inliner.inline_local_functions(cleaned)
    graph = cleaned.graph
    weights = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)
    name_nodes(graph)
    check_wiring(graph, opset(cleaned))
    fix_shapes(graph, shapes or {})
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    return _fold(cleaned)


def name_nodes(graph: onnx.GraphProto) -> None:
    """Name every nameless node after its operator and first output."""
    for n, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{next(filter(None, node.output), n)}"


def static_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """The shape of `value`, or None where it is not fully known."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    dims = tensor.shape.dim
    if not all(d.HasField("dim_value") and d.dim_value > 0 for d in dims):
        return None
    return tuple(d.dim_value for d in dims)


def fix_shapes(graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Write `shapes` into the graph's inputs; a symbol fixed once is fixed everywhere.

    Raises:
        ModelError: a dimension stays dynamic.
        InputError: `shapes` does not fit the graph's inputs.
    """
    names = [i.name for i in graph.input]
    for name in shapes:
        if name not in names:
            raise InputError(f"the model has no input {name}: its inputs are {', '.join(names)}")
    symbols: dict[str, int] = {}
    for value in graph.input:
        if value.name not in shapes:
            continue
        wanted = tuple(int(d) for d in shapes[value.name])
        tensor = value.type.tensor_type
        own = list(tensor.shape.dim)
        if any(d < 1 for d in wanted) or (tensor.HasField("shape") and len(own) != len(wanted)):
            raise InputError(
                f"shape {_comma(wanted)} does not fit input {value.name}, "
                f"whose shape is {_show(value)}: give {len(own)} positive dimensions"
            )
        if not tensor.HasField("shape"):
            for _ in wanted:
                tensor.shape.dim.add()
        for dim, size in zip(tensor.shape.dim, wanted, strict=True):
            if dim.dim_value > 0 and dim.dim_value != size:
                raise InputError(
                    f"shape {_comma(wanted)} contradicts input {value.name}, whose shape is "
                    f"{_show(value)}: only dynamic dimensions can be chosen"
                )
            if dim.dim_param and symbols.setdefault(dim.dim_param, size) != size:
                raise InputError(
                    f"dimension {dim.dim_param} would be {symbols[dim.dim_param]} and {size} at "
                    "once: inputs that share it need the same size"
                )
        for dim, size in zip(tensor.shape.dim, wanted, strict=True):
            dim.dim_value = size
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
        if static_shape(value) is None:
            raise OpenShapeError(
                f"input {value.name} has the dynamic shape {_show(value)}: fix it with "
                f"--shape {value.name}={_suggest(value)}"
            )


def _show(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return "unknown"
    dims = (str(d.dim_value) if d.dim_value > 0 else d.dim_param or "?" for d in tensor.shape.dim)
    return f"[{','.join(dims)}]"


def _suggest(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    usual = (1, 3, 224, 224)
    if not tensor.HasField("shape"):
        return _comma(usual)
    own = [d.dim_value for d in tensor.shape.dim]
    fill = usual if len(own) == 4 else (1,) * len(own)
    return _comma([o if o > 0 else f for o, f in zip(own, fill, strict=True)])


def _comma(dims: Sequence[int]) -> str:
    return ",".join(map(str, dims))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Evaluate what depends on constants and shapes alone, until nothing changes."""
    onnx = require_onnx()
    constants = {t.name: _array(t) for t in model.graph.initializer}
    while True:
        try:
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except (onnx.shape_inference.InferenceError, ValueError, MemoryError) as error:
            raise ModelError(
                f"the model's shapes contradict each other: {_first_line(error)}"
            ) from error
        graph = model.graph
        known = [*graph.input, *graph.value_info, *graph.output]
        shapes = {v.name: s for v in known if (s := static_shape(v)) is not None}
        kept: list[Any] = []
        found: dict[str, Any] = {}
        for node in graph.node:
            if node.op_type == "If" and node.input[0] in constants:
                nodes, values = _branch(node, taken=bool(constants[node.input[0]].all()))
                kept.extend(nodes)
            else:
                folded = _evaluate(node, model, constants, shapes)
                kept.extend([node] if folded is None else [])
                values = folded or {}
            constants.update(values)
            found.update(values)
        if not found and len(kept) == len(graph.node):
            _prune(model, constants)
            return model
        del graph.node[:]
        graph.node.extend(kept)
        graph.initializer.extend(onnx.numpy_helper.from_array(v, n) for n, v in found.items())


def _array(tensor: onnx.TensorProto) -> Any:
    try:
        return require_onnx().numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"weight {tensor.name} cannot be read ({_first_line(error)}): the file is damaged; "
            "fetch or export it again"
        ) from error


def _evaluate(
    node: onnx.NodeProto,
    model: onnx.ModelProto,
    constants: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Any] | None:
    """The outputs of a node that depends on constants or shapes alone, else None."""
    onnx = require_onnx()
    import numpy as np
    from onnx.reference import ReferenceEvaluator

    if node.op_type in ("Shape", "Size") and node.input[0] in shapes:
        shape = np.array(shapes[node.input[0]], "int64")
        if node.op_type == "Size":
            return {node.output[0]: shape.prod()}
        attrs = {a.name: a.i for a in node.attribute}
        return {node.output[0]: shape[attrs.get("start", 0) : attrs.get("end", len(shape))]}
    used = [name for name in node.input if name]
    if node.op_type in _NEVER_FOLDED or not all(name in constants for name in used):
        return None
    helper = onnx.helper
    typed = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(constants[name].dtype), constants[name].shape
        )
        for name in dict.fromkeys(used)
    ]
    wanted = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    version = opset(model)
    if node.op_type == "DequantizeLinear":  # means the same since 10; evaluated from 19 on
        version = max(version, 19)
    single = helper.make_model(
        helper.make_graph([node], "fold", typed, wanted),
        opset_imports=[helper.make_opsetid("", version)],
    )
    try:
        with np.errstate(all="ignore"):  # a constant may be infinite or NaN: not ours to judge
            results = ReferenceEvaluator(single).run(None, {n: constants[n] for n in used})
    except Exception as error:  # the evaluator is a convenience: what it lacks stays in the graph
        log.debug("node %s (%s) was not folded: %s", node.name, node.op_type, error)
        return None
    if not all(isinstance(r, np.ndarray | np.generic) for r in results):
        return None
    return {w.name: np.asarray(r) for w, r in zip(wanted, results, strict=True)}


def _branch(node: onnx.NodeProto, taken: bool) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """The nodes and the constants of the branch that a constant condition always takes."""
    onnx = require_onnx()
    wanted = "then_branch" if taken else "else_branch"
    graph = next(a.g for a in node.attribute if a.name == wanted)
    nodes = list(graph.node)
    for inner, outer in zip(graph.output, node.output, strict=True):
        nodes.append(onnx.helper.make_node("Identity", [inner.name], [outer]))
    for n, inner_node in enumerate(nodes):
        inner_node.name = f"{node.name}_{inner_node.name or n}"
    return nodes, {t.name: _array(t) for t in graph.initializer}


def _prune(model: onnx.ModelProto, constants: Mapping[str, Any]) -> None:
    """Drop nodes, trailing outputs and constants that no output needs."""
    onnx = require_onnx()
    graph = model.graph
    needed = {v.name for v in graph.output}
    kept: list[Any] = []
    for node in reversed(graph.node):
        if not needed.intersection(node.output):
            continue
        while node.output[-1] not in needed:
            node.output.pop()
        needed.update(node.input)
        kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    del graph.initializer[:]
    del graph.sparse_initializer[:]
    for name in sorted(needed.intersection(constants)):
        graph.initializer.append(onnx.numpy_helper.from_array(constants[name], name))
