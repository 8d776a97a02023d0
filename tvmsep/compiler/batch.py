"""A batch in turns: a function of some images at once, called for each part of the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tvm import IRModule

    from tvmsep.graph.plan import Plan

IMAGES, HEAD = "images", "head"
"""The functions that `main` calls: with a part of the batch at a time, and with all of it."""
PART = "relax.memory.view"
VIEWS = ("relax.reshape", PART)
"""Calls that become views: nothing runs."""


def in_line(mod: IRModule) -> IRModule:
    """The module with all calls of kernels in `main`: turn after turn, and the head."""
    from tvm import relax

    return relax.transform.InlinePrivateFunctions()(mod) if len(parts_of(mod)) > 1 else mod


def parts_of(mod: IRModule) -> dict[str, Any]:
    """The functions that run kernels, by name: `main` comes first, then those that it calls."""
    found = {g.name_hint: f for g, f in mod.functions.items()}
    return {name: found[name] for name in ("main", IMAGES, HEAD) if name in found}


def copied(builder: Any, value: Any) -> Any:
    """The same in memory of its own; not for a dataflow block, where TVM makes it a view."""
    return builder.emit(builder.call_te(_copy, value, primfunc_name_hint="copy"))


def _copy(x: Any) -> Any:
    from tvm import te

    return te.compute(x.shape, lambda *i: x[i], name="copy")


def in_turns(builder: Any, plan: Plan, turn: Any, head: Any | None) -> None:
    """Add a function `main` that computes a batch in the plan's turns, and its head at the end.

    Parts of the inputs are read where they lie; outputs are copied to their place at the end.

    Args:
        builder: has the functions.
        plan: says how many turns, and which outputs.
        turn: name in the module of the function for a part of the batch.
        head: of the one that reads its first outputs, if there is one.
    """
    from tvm import ir, relax

    module, count = builder.get(), len(plan.inputs)
    params = list(module[turn].params)
    parts = params[:count]
    inputs = [relax.Var(v.name, _longer(v.ty, plan.turns)) for v in parts]
    weights = [relax.Var(v.name, v.ty) for v in params[count:]]
    behind = list(module[head].params[len(plan.head.inputs) :]) if plan.head else []
    known = {v.name: v for v in weights}
    more = [relax.Var(v.name, v.ty) for v in behind if v.name not in known]
    known |= {v.name: v for v in more}
    with builder.function("main", [*inputs, *weights, *more], attrs={"num_input": count}):
        made = []
        for i in range(plan.turns):
            pieces = (
                [builder.emit(_part(x, v.ty, i)) for x, v in zip(inputs, parts, strict=True)]
                if plan.turns > 1
                else inputs
            )
            made.append(_fields(builder, builder.emit(ir.Call(turn, [*pieces, *weights]))))
        outputs = [
            _joined(builder, one, name.replace(".", "_"))
            for name, one in zip(plan.outputs, zip(*made, strict=True), strict=True)
        ]
        if plan.head:
            ends = outputs[: len(plan.head.inputs)]
            read = [*ends, *(known[v.name] for v in behind)]
            outputs += _fields(builder, builder.emit(ir.Call(head, read)))
        outputs = [
            copied(builder, outputs[i]) if i in plan.order[:k] else outputs[i]
            for k, i in enumerate(plan.order)
        ]
        if len(outputs) > 1:
            outputs = [builder.emit(relax.Tuple(outputs))]
        builder.emit_func_output(outputs[0])


def _fields(builder: Any, made: Any) -> list[Any]:
    from tvm import relax

    if not isinstance(made.ty, relax.TupleType):
        return [made]
    return [builder.emit(relax.TupleGetItem(made, k)) for k in range(len(made.ty.fields))]


def _shape(of: Any) -> tuple[int, ...]:
    return tuple(int(d) for d in of.shape.values)


def _longer(of: Any, turns: int) -> Any:
    from tvm import relax

    n, *rest = _shape(of)
    return relax.TensorType((n * turns, *rest), of.dtype)


def _part(whole: Any, of: Any, i: int) -> Any:
    from tvm import relax

    size = math.prod(_shape(of)) * np.dtype(str(of.dtype)).itemsize
    return relax.op.memory.view(whole, _shape(of), str(of.dtype), i * size)


def _joined(builder: Any, parts: Sequence[Any], name: str) -> Any:
    """The parts, one behind the other. No concatenation: TVM's asks at each element whose it is."""
    import tvm
    from tvm import relax

    if len(parts) == 1:
        return parts[0]
    shape, dtype = _shape(parts[0].ty), str(parts[0].ty.dtype)
    whole = (shape[0] * len(parts), *shape[1:])
    axes = [f"i{k}" for k in range(len(shape))]
    args = [f'y{i}: T.Buffer({shape}, "{dtype}")' for i in range(len(parts))]
    script = [
        "@T.prim_func(s_tir=True)",
        f'def join({", ".join(args)}, out: T.Buffer({whole}, "{dtype}")):',
        '    T.func_attr({"tirx.noalias": True})',
    ]
    spaces = [f"T.axis.spatial({d}, {a})" for d, a in zip(shape, axes, strict=True)]
    for i in range(len(parts)):
        at = ", ".join([f"v0 + {i * shape[0]}", *(f"v{k}" for k in range(1, len(shape)))])
        script += [
            f"    for {', '.join(axes)} in T.grid({', '.join(map(str, shape))}):",
            f'        with T.sblock("part{i}"):',
            *(f"            v{k} = {space}" for k, space in enumerate(spaces)),
            f"            out[{at}] = y{i}[{', '.join(f'v{k}' for k in range(len(shape)))}]",
        ]
    func = tvm.script.from_source("\n".join(script) + "\n")
    func = func.without_attr("global_symbol").with_attr("op_pattern", 8)  # one for each output
    join = builder.add_func(func, "join")
    call = relax.call_tir(join, list(parts), relax.TensorType(whole, dtype))
    return builder.emit(call, name)
