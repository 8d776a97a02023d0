"""What an ONNX file must hold before anything is made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmsep.contracts import ModelError

if TYPE_CHECKING:
    import onnx

MIN_OPSET = 7
_ORDINARY_DOMAINS = ("", "ai.onnx")


def require_onnx() -> Any:
    """The `onnx` package.

    Raises:
        ModelError: it isn't installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ModelError(
            'reading models needs the onnx package: pip install "tvmsep[tune]"'
        ) from error
    return onnx


def opset(model: onnx.ModelProto) -> int:
    """The version of the ordinary operator set that `model` uses; 1 where none is named."""
    return next((o.version for o in model.opset_import if o.domain in _ORDINARY_DOMAINS), 1)


def check_header(model: onnx.ModelProto) -> None:
    """There is a graph, in an opset that is read, and its weights are in the file."""
    if not model.graph.node or not model.graph.output:
        raise ModelError("this is not an ONNX model, or it is cut off: it holds no graph")
    if opset(model) < MIN_OPSET:
        raise ModelError(
            f"the model uses opset {opset(model)}; opset {MIN_OPSET} and later are read: "
            "convert it with onnx.version_converter.convert_version(model, 13)"
        )
    if model.graph.sparse_initializer:
        raise ModelError("the model has sparse weights, which are not supported: make them dense")
    for tensor in model.graph.initializer:
        if not (tensor.HasField("raw_data") or _typed_length(tensor) or 0 in tensor.dims):
            raise ModelError(
                f"weight {tensor.name} holds no data: its external data was not loaded; give "
                "the model as a path, with its data files beside it"
            )


def _typed_length(tensor: onnx.TensorProto) -> int:
    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    return max(len(getattr(tensor, f)) for f in fields)


def check_wiring(graph: onnx.GraphProto, version: int) -> None:
    """Every node reads what an input, a weight or an earlier node provides, and all it needs."""
    known = {i.name for i in graph.input} | {t.name for t in graph.initializer} | {""}
    for node in graph.node:
        if not all(isinstance(t, str) for t in (node.name, node.op_type, *node.input)):
            raise ModelError("the model holds names that are no text: the file is damaged")
        if node.domain not in _ORDINARY_DOMAINS:
            raise ModelError(
                f"node {node.name} uses {node.domain}.{node.op_type}, an operator outside the "
                "ONNX standard: give the model as it was before onnxruntime or another tool "
                "optimised it"
            )
        _check_inputs(node, version)
        _check_order(node)
        for name in node.input:
            if name not in known:
                raise ModelError(
                    f"node {node.name} ({node.op_type}) reads {name}, which nothing before it "
                    "provides: the file is damaged; export it again"
                )
        known.update(node.output)
    for value in graph.output:
        if value.name not in known:
            raise ModelError(f"nothing provides output {value.name}: the file is damaged")


def _check_order(node: onnx.NodeProto) -> None:
    """A transpose names each axis once."""
    for attribute in node.attribute if node.op_type == "Transpose" else ():
        axes = list(attribute.ints)
        if attribute.name == "perm" and sorted(axes) != list(range(len(axes))):
            raise ModelError(
                f"node {node.name} (Transpose) has the perm {axes}, which is no order of axes: the "
                "file is damaged; export it again"
            )


def _check_inputs(node: onnx.NodeProto, version: int) -> None:
    """Neither the first input nor one of a list is left out: TVM looks there all the same.

    Others may be, whatever the standard says: exporters write Resize of opset 11 so.
    """
    defs = require_onnx().defs
    if not defs.has(node.op_type, version, ""):
        return
    formal = list(defs.get_schema(node.op_type, version, "").inputs)
    several = defs.OpSchema.FormalParameterOption.Variadic
    for i, name in enumerate(node.input):
        if not name and formal and (i == 0 or formal[min(i, len(formal) - 1)].option == several):
            raise ModelError(
                f"node {node.name} ({node.op_type}) leaves out an input that it needs "
                f"({', '.join(n or 'nothing' for n in node.input)}): the file is damaged; "
                "export it again"
            )
