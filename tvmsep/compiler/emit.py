"""A plan and a config for each of its kernels become a Relax module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tvmsep.codegen import kernel
from tvmsep.contracts import Config, Target, Workload
from tvmsep.graph.ir import Node
from tvmsep.graph.plan import Plan, Step

if TYPE_CHECKING:
    from tvm import IRModule

SCHEDULED = "tvmsep.scheduled"
_OPAQUE_PATTERN = 8  # relax.OpPatternKind.kOpaque: FuseOps leaves the kernel alone


def emit(plan: Plan, target: Target, configs: Mapping[Workload, tuple[str, Config]]) -> IRModule:
    """One Relax function `main(inputs..., parameters...)`; kernels are shared between equal steps.

    Args:
        plan: what to run.
        target: what to schedule for.
        configs: template and config of each workload of the plan.
    """
    from tvm import relax

    builder = relax.BlockBuilder()
    values: dict[str, Any] = {}
    for name, shape in plan.inputs.items():
        dtype = plan.input_dtypes.get(name, "float32")
        values[name] = relax.Var(name, relax.TensorType(shape, dtype))
    for name, array in plan.params.items():
        var = name.replace(".", "_")
        values[name] = relax.Var(f"p_{var}", relax.TensorType(array.shape, str(array.dtype)))
    functions: dict[Workload, Any] = {}

    def function(w: Workload) -> Any:
        if w not in functions:
            template, config = configs[w]
            name = f"{w.op}_{len(functions)}"
            func = kernel(w, target, template, config, name)
            func = func.with_attr({"op_pattern": _OPAQUE_PATTERN, SCHEDULED: template})
            functions[w] = builder.add_func(func, name)
        return functions[w]

    with builder.function("main", list(values.values()), attrs={"num_input": len(plan.inputs)}):
        with builder.dataflow():
            for step in plan.steps:
                if step.workload is not None:
                    values[step.output] = _kernel_call(builder, step, function, values, plan)
                elif step.node is not None:
                    call = _again(step.node, step.inputs, values, plan)
                    values[step.output] = builder.emit(call)
            results = [_result(builder, values, plan, o) for o in plan.outputs]
            last = builder.emit_output(results[0] if len(results) == 1 else relax.Tuple(results))
        builder.emit_func_output(last)
    return builder.get()


def _kernel_call(
    builder: Any, step: Step, function: Any, values: Mapping[str, Any], plan: Plan
) -> Any:
    from tvm import relax

    w = step.workload
    assert w is not None
    # Parameter order of every template: x, then w and bias, then y or the residual.
    first = _shaped(builder, values[step.inputs[0]], w.in_shape)
    args = [first, *(values[p] for p in step.params), *(values[i] for i in step.inputs[1:])]
    call = relax.call_tir(function(w), args, relax.TensorType(w.out_shape, w.dtype))
    out = builder.emit(call)
    return out if w.out_block else _shaped(builder, out, plan.shapes[step.output])


def _shaped(builder: Any, value: Any, shape: tuple[int, ...]) -> Any:
    from tvm import relax

    if tuple(int(d) for d in value.ty.shape.values) == shape:
        return value
    return builder.emit(relax.op.reshape(value, shape))


def _result(builder: Any, values: Mapping[str, Any], plan: Plan, name: str) -> Any:
    """An output; one that is an input or a constant itself is copied, since the caller owns it."""
    from tvm import relax

    if name in plan.constants:
        return builder.emit(relax.const(plan.constants[name]))
    return values[name]


def _again(node: Node, inputs: list[str], values: Mapping[str, Any], plan: Plan) -> Any:
    """The operator as the importer wrote it, on new arguments."""
    from tvm import ir, relax

    queue = [values[i] if i in values else relax.const(plan.constants[i]) for i in inputs]
    if node.op == "tuple_get":
        return relax.TupleGetItem(queue[0], node.attrs["index"])
    if node.op in ("maximum", "minimum", "add", "subtract", "multiply", "divide"):
        return getattr(relax.op, node.op)(*queue)

    def rebuild(arg: Any) -> Any:
        if isinstance(arg, relax.Tuple):
            return relax.Tuple([rebuild(f) for f in arg.fields])
        if isinstance(arg, relax.Var) and isinstance(arg.ty, relax.TupleType):
            return relax.Tuple([queue.pop(0) for _ in arg.ty.fields])
        if isinstance(arg, relax.Var | ir.GenericConst):
            return queue.pop(0)
        return arg

    call = node.call
    return ir.Call(call.op, [rebuild(a) for a in call.args], call.attrs)
