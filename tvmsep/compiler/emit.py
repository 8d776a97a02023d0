"""A plan and a config for each of its kernels become a Relax module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from tvmsep.codegen import kernel
from tvmsep.compiler.batch import HEAD, IMAGES, copied, in_turns
from tvmsep.compiler.clock import Clock, stamps_shape
from tvmsep.compiler.events import MARKED
from tvmsep.compiler.shares import THREADS
from tvmsep.contracts import Config, ModelError, Target, Workload
from tvmsep.graph.importer import is_tensor
from tvmsep.graph.ir import VIEWS, Node
from tvmsep.graph.plan import Plan, Step, times

if TYPE_CHECKING:
    from tvm import IRModule

SCHEDULED = "tvmsep.scheduled"
WORKLOAD, CONFIG, TASK = "tvmsep.workload", "tvmsep.config", "tvmsep.task"
"""Attributes of a kernel: its template, its workload as JSON, its config as one line, and what was
tuned for it: key of the workload (of one image, where it computes several) and thread count."""
_OPAQUE_PATTERN = 8  # relax.OpPatternKind.kOpaque: FuseOps leaves the kernel alone


def emit(
    plan: Plan,
    target: Target,
    configs: Mapping[Workload, tuple[str, Config]],
    *,
    stamped_runs: int = 0,
    extern: Mapping[Workload, str] | None = None,
    kernels: Mapping[Workload, Any] | None = None,
) -> IRModule:
    """A Relax function `main(inputs..., parameters...)`; kernels are shared between equal steps.

    Of a plan of several turns, or with a head, `main` calls a function `IMAGES` with a part of the
    batch each time, and then one `HEAD`.

    Args:
        plan: what to run.
        target: what to schedule for.
        configs: template and config of each workload of the plan.
        stamped_runs: above 0, the network takes one parameter more, which `stamps_shape`
            describes, and reads the clock into it before its first step and after each one. For a
            GPU's target the module only gets the attribute `MARKED`, see `events.py`. Only of a
            plan of one turn without a head.
        extern: names of the kernels if they are not to be part of the module but called there,
            compiled before; `configs` is not used then. Only of a plan of one image at once.
        kernels: scheduled PrimFuncs of others, to take instead of what `configs` would make.
    """
    from tvm import relax

    threads = max(plan.threads, plan.images)
    if plan.in_parts and stamped_runs > 0:
        raise ValueError("readings go into the network of one turn, without a head")
    builder = relax.BlockBuilder()
    functions: dict[Workload, Any] = {}

    def function(w: Workload, part: Plan) -> Any:
        if extern is not None:
            return relax.ExternFunc(extern[w])
        # Each template's outermost loop, shared by threads, begins with the images.
        whole = _at_once(w, part.images)
        if whole not in functions:
            template, config = configs[w]
            name = f"{w.op}_{len(functions)}"
            if kernels is not None and w in kernels:
                func = kernels[w].with_attr({"global_symbol": name, "tirx.noalias": True})
            else:
                func = kernel(whole, target, template, config, name)
            attrs = {
                SCHEDULED: template,
                WORKLOAD: msgspec.json.encode(whole).decode(),
                CONFIG: config.key,
                TASK: f"{w.key} {part.threads}",
            }
            func = func.with_attr({"op_pattern": _OPAQUE_PATTERN, **attrs})
            functions[whole] = builder.add_func(func, name)
        return functions[whole]

    if plan.in_parts:
        turn = _network(builder, plan.of_one_turn, IMAGES, function)
        head = plan.head and _network(builder, plan.head, HEAD, function)
        in_turns(builder, plan, turn, head)
        return builder.get().with_attr(THREADS, threads)
    timed = stamped_runs > 0 and target.gpu is None
    clock = Clock(builder, target, stamps_shape(plan, stamped_runs)) if timed else None
    _network(builder, plan, "main", function, clock)
    module = builder.get().with_attr(THREADS, threads)
    return module.with_attr(MARKED, 1) if stamped_runs > 0 and not timed else module


def _network(
    builder: Any, plan: Plan, name: str, function: Callable[..., Any], clock: Clock | None = None
) -> Any:
    """Add a function that runs a plan's steps once; returns its name in the module."""
    from tvm import relax

    values: dict[str, Any] = {}
    for key, shape in plan.input_shapes.items():
        dtype = plan.input_dtypes.get(key, "float32")
        values[key] = relax.Var(key, relax.TensorType(shape, dtype))
    for key, array in plan.params.items():
        var = key.replace(".", "_")
        values[key] = relax.Var(f"p_{var}", relax.TensorType(array.shape, str(array.dtype)))
    shared, single = _shared(plan), len(plan.outputs) == 1
    arguments = [*values.values(), *([clock.stamps] if clock else [])]
    attrs = {"num_input": len(plan.inputs)}
    with builder.function(name, arguments, attrs=attrs, private=name != "main"):
        with builder.dataflow():
            if clock:
                clock.read()
            for step in plan.steps:
                if step.workload is not None:
                    values[step.output] = _kernel_call(builder, step, function, values, plan)
                elif step.node is not None:
                    values[step.output] = _again(builder, step.node, step.inputs, values, plan)
                if clock:
                    clock.read()
            outputs = [
                values[o] if o in values else relax.const(plan.constants[o]) for o in plan.outputs
            ]
            if clock:  # an output too, or the readings would be dead code
                outputs, shared, single = [*outputs, clock.stamps], [*shared, False], False
            if not any(shared):
                outputs = [builder.emit_output(outputs[0] if single else relax.Tuple(outputs))]
            else:
                outputs = [
                    builder.emit_output(v) if isinstance(v, relax.DataflowVar) else v
                    for v in outputs
                ]
        if any(shared):
            # Out here: in a dataflow block TVM takes a copy for a reshape, and makes it a view.
            outputs = [
                copied(builder, v) if again else v for v, again in zip(outputs, shared, strict=True)
            ]
            outputs = outputs if single else [builder.emit(relax.Tuple(outputs))]
        return builder.emit_func_output(outputs[0])


def _kernel_call(
    builder: Any, step: Step, function: Any, values: Mapping[str, Any], plan: Plan
) -> Any:
    from tvm import relax

    assert step.workload is not None
    w = _at_once(step.workload, plan.images)
    # Parameter order of every template: x, then w and bias, then y or the residual.
    first = _shaped(builder, values[step.inputs[0]], w.source_shapes[0])
    args = [first, *(values[p] for p in step.params), *(values[i] for i in step.inputs[1:])]
    func = function(step.workload, plan)
    kind = relax.call_dps_packed if isinstance(func, relax.ExternFunc) else relax.call_tir
    call = kind(func, args, relax.TensorType(w.out_shape, w.out_dtype))
    out = builder.emit(call, step.output.replace(".", "_"))
    if w.out_block:
        return out
    return _shaped(builder, out, times(plan.shapes[step.output], plan.images))


def _at_once(w: Workload, images: int) -> Workload:
    return msgspec.structs.replace(w, n=images * w.n) if images > 1 else w


def _shaped(builder: Any, value: Any, shape: tuple[int, ...]) -> Any:
    from tvm import relax

    if tuple(int(d) for d in value.ty.shape.values) == shape:
        return value
    return builder.emit(relax.op.reshape(value, shape))


def _shared(plan: Plan) -> list[bool]:
    """Which outputs lie where an input, a constant or an earlier output does.

    They must be copied: the caller may write to what it is given, and hands inputs in whose
    memory is its own.
    """
    views = {s.output: s.inputs[0] for s in plan.steps if s.node is not None and _is_view(s.node)}
    taken = {*plan.inputs, *plan.constants}
    found = []
    for name in plan.outputs:
        root = name
        while root in views:
            root = views[root]
        found.append(root in taken)
        taken.add(root)
    return found


def _is_view(node: Node) -> bool:
    return node.op in (*VIEWS, "view")


def _again(
    builder: Any, node: Node, inputs: list[str], values: Mapping[str, Any], plan: Plan
) -> Any:
    """The operator as the importer wrote it, on new arguments.

    Raises:
        ModelError: TVM refuses it; names the node.
    """
    from tvm import ir, relax

    queue = [values[i] if i in values else relax.const(plan.constants[i]) for i in inputs]
    if node.op == "tuple_get":
        return builder.emit(relax.TupleGetItem(queue[0], node.attrs["index"]))
    if _is_view(node):  # its batch may be another here, and what to drop or add is said by shapes
        shape = relax.ShapeExpr(times(node.shape, plan.images))
        return builder.emit(relax.op.reshape(queue[0], shape), node.name)
    if node.op in ("maximum", "minimum", "add", "subtract", "multiply", "divide"):
        return builder.emit(getattr(relax.op, node.op)(*queue))

    def rebuild(arg: Any) -> Any:
        if isinstance(arg, ir.GlobalVar):
            return builder.add_func(node.attrs["function"], arg.name_hint)
        if isinstance(arg, relax.Tuple):
            return relax.Tuple([rebuild(f) for f in arg.fields])
        if isinstance(arg, relax.Var) and isinstance(arg.ty, relax.TupleType):
            return relax.Tuple([queue.pop(0) for _ in arg.ty.fields])
        if is_tensor(arg):
            return queue.pop(0)
        return arg

    call = node.call
    arguments = [rebuild(a) for a in call.args]
    again = ir.Call(call.op, arguments, call.attrs, call.ty_args)
    try:
        return builder.emit(again, node.name)
    except Exception as error:  # TVM raises whatever it likes: name the node, keep the cause
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"node {node.name} ({node.op}) cannot be compiled: {reason[-1] if reason else error}; "
            "export the model without it"
        ) from error
