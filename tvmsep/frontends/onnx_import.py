"""ONNX to Relax: TVM's importer, with our converters (`onnx_ops`) in place of some of its own.

Bindings are named after the nodes they come from, so that tables can name layers, and every
refusal names its node.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING, Any

import tvm
from tvm.relax.frontend.onnx import onnx_frontend as stock

from tvmsep.contracts import ModelError
from tvmsep.frontends.names import identifier
from tvmsep.frontends.onnx_check import opset, require_onnx
from tvmsep.frontends.onnx_clean import name_nodes
from tvmsep.frontends.onnx_images import check_kernel, settle_output_shape
from tvmsep.frontends.onnx_ops import CONVERTERS
from tvmsep.frontends.onnx_values import Expr

if TYPE_CHECKING:
    import onnx

_CONTROL_FLOW = ("If", "Loop", "Scan")
_INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


def to_relax(model: onnx.ModelProto) -> tvm.IRModule:
    """The Relax module of a cleaned proto; `main` takes the graph's inputs in order.

    Raises:
        ModelError: an operator, or what it is asked to do, is not supported.
    """
    _check_dtypes(model.graph)
    model = _expand_functions(model)
    importer = _Importer()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # stock warns of renamed inputs; we keep the names
        try:
            module = importer.from_onnx(model.graph, opset(model))
        except Exception as error:
            with contextlib.suppress(tvm.error.InternalError):  # there may be none yet
                importer.bb._end_block()  # or TVM complains on stderr when the builder goes
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"the model cannot be imported: {_last_line(error)}; check it with "
                "onnx.checker.check_model, or export it again"
            ) from error
    main = module["main"]
    if "num_input" in (main.attrs or {}):
        module["main"] = main.without_attr("num_input")
    return module


def _expand_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Spell out operators that TVM lacks but the standard defines by others, then check all."""
    require_onnx()
    from onnx import inliner

    supported = set(stock._get_convert_map()) | set(CONVERTERS)
    missing = sorted({n.op_type for n in model.graph.node} - supported - set(_CONTROL_FLOW))
    if missing:
        model = inliner.inline_selected_functions(
            model, [("", op) for op in missing], inline_schema_functions=True
        )
        name_nodes(model.graph)
    for node in model.graph.node:
        if node.op_type in _CONTROL_FLOW or node.op_type not in supported:
            raise ModelError(
                f"node {node.name} uses operator {node.op_type} (opset {opset(model)}), which is "
                "not supported: export the model without it, or cut the graph before it with "
                "onnx.utils.extract_model"
            )
    return model


def _check_dtypes(graph: onnx.GraphProto) -> None:
    """Only float32 flows; integers may appear on the way (indices, shapes)."""
    onnx = require_onnx()
    types = onnx.TensorProto
    for value in graph.input:
        kind = value.type.tensor_type.elem_type
        if kind != types.FLOAT:
            raise ModelError(
                f"input {value.name} is {types.DataType.Name(kind).lower()}: only float32 inputs "
                "are supported; export the model in float32 (casts and scaling of pixels belong "
                "to the preprocessing)"
            )
    unsupported = (types.FLOAT16, types.BFLOAT16, types.DOUBLE)
    producers = {name: node for node in graph.node for name in node.output}
    for value in [*graph.value_info, *graph.output]:
        kind = value.type.tensor_type.elem_type
        if kind in unsupported and value.name in producers:
            raise ModelError(
                f"node {producers[value.name].name} computes in "
                f"{types.DataType.Name(kind).lower()}: only float32 is supported; export the "
                "model in float32"
            )
    for node in graph.node:
        if "quantize" in node.op_type.lower() or node.op_type in _INTEGER_OPS:
            raise ModelError(
                f"node {node.name} ({node.op_type}) quantises: integer models are not supported; "
                "give the float32 model it was made from"
            )


def _last_line(error: BaseException) -> str:
    """TVM puts its C++ stack first and the reason last."""
    lines = [line for line in str(error).splitlines() if any(c.isalpha() for c in line)]
    return (lines or [type(error).__name__])[-1].strip()


class _Importer(stock.ONNXGraphImporter):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__({}, "float32")

    def _sanitize_name(self, name: str) -> str:
        return str(self._name_supply.fresh_name(identifier(name)))

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        """Done before, naming the node."""

    def _convert_operator(
        self, op_name: str, inputs: list[Any], attrs: dict[str, Any], opset: int
    ) -> Expr:
        name = attrs["tvm_custom"]["name"]
        attrs["opset"] = opset
        try:
            if op_name == "ConvTranspose":
                check_kernel(inputs[0], inputs[1], attrs, transposed=True)
                settle_output_shape(inputs[0], inputs[1], attrs)
            if op_name in CONVERTERS:
                expr = CONVERTERS[op_name](self.bb, inputs, attrs)
            else:
                expr = super()._convert_operator(op_name, inputs, attrs, opset)
            if isinstance(expr, tvm.ir.Call):
                expr = self.bb.emit(expr, name_hint=identifier(name))
        except ModelError as error:
            raise ModelError(f"node {name} ({op_name}): {error}") from error
        except Exception as error:  # TVM raises whatever it likes: name the node, keep the cause
            raise ModelError(
                f"node {name} ({op_name}) cannot be imported: {_last_line(error)}; export the "
                "model without it, or cut the graph before it with onnx.utils.extract_model"
            ) from error
        return expr
