"""A Relax function becomes a `Graph`; what depends on constants alone is computed here."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmsep.contracts import ModelError
from tvmsep.graph.interpret import attributes, can_interpret, interpret
from tvmsep.graph.ir import Graph, Node

if TYPE_CHECKING:
    from tvm import IRModule

_MOST_ELEMENTS = 2**31 - 1
TUPLE = (-1,)
"""The shape of a value that is a tuple of tensors."""


def from_relax(module: IRModule) -> Graph:
    """Read the function `main`.

    Raises:
        ModelError: control flow, dynamic shapes, or calls this cannot read.
    """
    from tvm import ir, relax

    main = module["main"]
    body = main.body
    graph = Graph(inputs={}, nodes={}, constants={}, outputs=[])
    names: dict[Any, str] = {}
    tuples: dict[str, list[str]] = {}

    for param in main.params:
        names[param] = str(param.name)
        graph.inputs[str(param.name)] = _shape(param)
        graph.input_dtypes[str(param.name)] = _dtype(param)

    def value(expr: Any) -> str:
        if isinstance(expr, ir.GenericConst):
            name = f"const{len(graph.constants)}"
            graph.constants[name] = np.asarray(expr.value.numpy())
            return name
        if expr in names:
            return names[expr]
        raise ModelError(f"unsupported expression in the imported model: {expr}")

    if not isinstance(body, relax.SeqExpr):
        raise ModelError("the imported model has no operators")
    for block in body.blocks:
        for binding in block.bindings:
            var, expr = binding.var, binding.value
            name = str(var.name)
            while name in graph.nodes or name in graph.inputs or name in tuples:
                name += "_"
            if isinstance(expr, relax.Tuple):
                tuples[name] = [value(e) for e in expr.fields]
                names[var] = name
            elif isinstance(expr, relax.TupleGetItem):
                source = value(expr.tuple_value)
                if source in tuples:
                    names[var] = tuples[source][expr.index]
                    continue
                names[var] = name
                node = Node(name, "tuple_get", [source], _shape(var), _dtype(var))
                node.attrs["index"] = int(expr.index)
                graph.nodes[name] = node
            elif isinstance(expr, ir.GenericConst) or expr in names:
                names[var] = value(expr)
            elif isinstance(expr, relax.If | relax.Function):
                raise ModelError(f"{name}: control flow is not supported; export a plain graph")
            else:
                _read_call(module, graph, names, tuples, var, name, expr, value)
    result = body.body
    if isinstance(result, relax.Tuple):
        graph.outputs = [value(e) for e in result.fields]
    else:
        last = value(result)
        graph.outputs = list(tuples.get(last, [last]))
    graph.prune()
    return graph


def _read_call(
    module: IRModule,
    graph: Graph,
    names: dict[Any, str],
    tuples: dict[str, list[str]],
    var: Any,
    name: str,
    call: Any,
    value: Any,
) -> None:
    """Add one operator, or compute it if all it reads is constant."""
    from tvm import relax

    op = getattr(call.op, "name", "").removeprefix("relax.")
    arguments = list(call.args)
    function = None
    if op == "call_tir":
        # The ONNX importer writes Max and Min as TE calls; the function's name says which.
        op = re.sub(r"\d+$", "", call.args[0].name_hint)
        arguments = list(call.args[1].fields)
        if op not in ("maximum", "minimum", "add", "subtract", "multiply", "divide"):
            function = module[call.args[0]]
            op = "call_tir"
    inputs: list[str] = []
    for a in arguments:
        if isinstance(a, relax.Tuple):
            inputs += [value(f) for f in a.fields if is_tensor(f)]
        elif isinstance(a, relax.Var) and names.get(a) in tuples:
            inputs += tuples[names[a]]
        elif is_tensor(a):
            inputs.append(value(a))
    node = Node(name, op, inputs, _shape(var), _dtype(var), attributes(call, op), [], call)
    if function is not None:
        node.attrs["function"] = function
    names[var] = name
    constant = inputs and all(i in graph.constants for i in inputs)
    if constant and node.shape != TUPLE and can_interpret(node):
        result = np.asarray(interpret(node, [graph.constants[i] for i in inputs]))
        graph.constants[name] = np.ascontiguousarray(result.astype(node.dtype))
        return
    graph.nodes[name] = node


def is_tensor(expr: Any) -> bool:
    """Whether an argument is a value of the graph; if not, it is part of the operator."""
    from tvm import ir, relax

    return isinstance(expr, relax.Var | ir.GenericConst)


def _shape(var: Any) -> tuple[int, ...]:
    """Static shape; `TUPLE` for a tuple of tensors."""
    from tvm import relax, tirx

    ty = var.ty
    if isinstance(ty, relax.TupleType):
        return TUPLE
    if not isinstance(ty, relax.TensorType) or ty.shape is None:
        raise ModelError(
            f"{var.name}: its shape is not known before the model runs; "
            "fix the input with `--shape name=1,3,224,224`"
        )
    dims = list(ty.shape.values) if hasattr(ty.shape, "values") else None
    if dims is None or not all(isinstance(d, tirx.IntImm | int) for d in dims):
        raise ModelError(
            f"{var.name}: shape {ty.shape} is dynamic; fix it with `--shape name=1,3,224,224`"
        )
    shape = tuple(int(d) for d in dims)
    if math.prod(shape) > _MOST_ELEMENTS:
        raise ModelError(
            f"{var.name} has the shape {list(shape)}, more than {_MOST_ELEMENTS} elements: kernels "
            "count with 32 bits; give a smaller picture or batch"
        )
    return shape


def _dtype(var: Any) -> str:
    return str(getattr(var.ty, "dtype", "float32"))
