"""A network with clock readings put between its kernels, from its Relax module alone.

`emit` writes the workload and the config of each kernel into the kernel's attributes, and a bundle
holds the Relax text, so the module says what every call is: no model is needed to profile it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tvmsep.compiler.batch import VIEWS, in_line
from tvmsep.compiler.clock import Clock
from tvmsep.compiler.emit import CONFIG, SCHEDULED, WORKLOAD
from tvmsep.contracts import BundleError, Target, Workload

if TYPE_CHECKING:
    from tvm import IRModule

PROBES = ("reading", "empty", "fork")
"""Intervals after the last kernel of a stamped network: a reading alone, with an empty kernel
before it, and with an empty kernel that starts and joins all threads."""
PROBE_RUNS = 4
"""How often each is there, one behind the other: the first finds other code in the caches."""


@dataclass(frozen=True)
class Part:
    """One call of the network, between two readings."""

    name: str
    """Of what it computes."""
    operator: str
    """Operator or function; its workload says more, where it has one."""
    workload: Workload | None
    template: str
    """Empty where no template took the operator."""
    config: str
    bytes: int
    """Inputs, weights and output once each; of the workload where there is one."""
    weight_bytes: int
    """Of them the weights' and biases'; 0 where there is no workload."""
    parallel: bool
    """Whether it divides its work over threads."""


@dataclass(frozen=True)
class Stamped:
    """A module whose `main` takes one parameter more and returns it last: the readings."""

    module: IRModule
    shape: tuple[int, int]
    """Of that parameter: a counter, then each run's readings (seconds, nanoseconds)."""


def read_relax(text: str, path: object, advice: str) -> IRModule:
    """The module behind a bundle's Relax text.

    Raises:
        BundleError: it is not there as a whole; says so of `path`, and gives the advice.
    """
    import tvm

    try:
        module = tvm.script.from_source(text)
        module["main"]  # a text cut off between two functions still parses
        return module
    except Exception as error:  # the parser raises whatever it likes
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BundleError(
            f"the Relax text of {path} cannot be read back ({reason[-1]}): {advice}"
        ) from error


def parts(mod: IRModule) -> list[Part]:
    """What `main` runs, in order; calls that only rename or reshape a value are left out."""
    mod = in_line(mod)
    functions = {g.name_hint: f for g, f in mod.functions.items()}
    found = []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            if _runs(binding):
                found.append(_part(binding, functions))
    return found


def kernel_names(mod: IRModule) -> list[str]:
    """Names of the functions that `main` calls for workloads, in order."""
    return [p.operator for p in parts(mod) if p.workload is not None]


def stamp(
    mod: IRModule, target: Target, threads: int, runs: int, *, between: bool = True
) -> Stamped:
    """The module with the clock read before its first call and after each one.

    Args:
        mod: as `emit` makes it, without readings.
        target: whose clock it is.
        threads: how many the network runs on.
        runs: how often it will run.
        between: False for readings before the first and after the last call only; otherwise those
            after the last call of `parts` are followed by `PROBE_RUNS` for each of `PROBES`.
    """
    import tvm
    from tvm import relax

    mod = in_line(mod)
    main = mod["main"]
    readings = 1 + len(parts(mod)) + PROBE_RUNS * len(PROBES) if between else 2
    shape = 1 + runs * readings, 2
    builder = relax.BlockBuilder(
        tvm.IRModule({g: f for g, f in mod.functions.items() if g.name_hint != "main"})
    )
    clock = Clock(builder, target, shape)
    attrs = {"num_input": int(main.attrs["num_input"])}
    with builder.function("main", [*main.params, clock.stamps], attrs=attrs):
        first = True
        for block in main.body.blocks:
            if isinstance(block, relax.DataflowBlock):
                with builder.dataflow():
                    first = _copy(builder, block, clock, first, between)
                    clock.stamps = builder.emit_output(clock.stamps)
            else:
                first = _copy(builder, block, clock, first, between)
        for probe in [p for p in PROBES for _ in range(PROBE_RUNS)] if between else ["reading"]:
            if probe != "reading":
                clock.probe(probe, threads if probe == "fork" else 1)
            clock.read()
        result = main.body.body
        outputs = [result]
        if isinstance(result.ty, relax.TupleType):
            outputs = [
                builder.emit(relax.TupleGetItem(result, i)) for i in range(len(result.ty.fields))
            ]
        builder.emit_func_output(builder.emit(relax.Tuple([*outputs, clock.stamps])))
    stamped = builder.get()
    return Stamped(stamped.with_attrs(mod.attrs) if mod.attrs else stamped, shape)


def _copy(builder: Any, block: Any, clock: Clock, first: bool, between: bool) -> bool:
    """Emit a block's bindings again, with readings; whether the first reading is still to come."""
    for binding in block.bindings:
        runs = _runs(binding)
        if runs and first:
            clock.read()
            first = False
        builder.emit_normalized(binding)
        if runs and between:
            clock.read()
    return first


def _runs(binding: Any) -> bool:
    from tvm import ir

    call = binding.value
    return isinstance(call, ir.Call) and getattr(call.op, "name", "") not in VIEWS


def _part(binding: Any, functions: dict[str, Any]) -> Part:
    call = binding.value
    name, operator, attrs = str(binding.var.name), str(call.op.name), {}
    values = [*call.args, binding.var]
    func = None
    if operator == "relax.call_tir":
        func = functions[call.args[0].name_hint]
        operator, attrs = call.args[0].name_hint, dict(func.attrs or {})
        values = [*call.args[1].fields, binding.var]
    workload = None
    if WORKLOAD in attrs:
        workload = msgspec.json.decode(str(attrs[WORKLOAD]), type=Workload)
    return Part(
        name=name,
        operator=operator.removeprefix("relax."),
        workload=workload,
        template=str(attrs.get(SCHEDULED, "")),
        config=str(attrs.get(CONFIG, "")),
        bytes=workload.bytes_moved if workload else sum(map(_bytes, values)),
        weight_bytes=workload.weight_bytes if workload else 0,
        parallel=func is None or workload is None or _parallel(func),
    )


def _bytes(value: Any) -> int:
    """Of a tensor, or of all tensors in a tuple; 0 for what is neither."""
    from tvm import relax

    of = value.ty
    fields = of.fields if isinstance(of, relax.TupleType) else [of]
    total = 0
    for field in fields:
        if isinstance(field, relax.TensorType) and field.shape is not None:
            size = np.dtype(str(field.dtype)).itemsize
            total += size * math.prod(int(dim) for dim in field.shape.values)
    return total


def _parallel(func: Any) -> bool:
    import tvm_ffi
    from tvm import tirx

    kinds: list[int] = []
    tvm_ffi.structural_walk(func.body, [(tirx.For, lambda node: kinds.append(int(node.kind)))])
    return int(tirx.ForKind.PARALLEL) in kinds
