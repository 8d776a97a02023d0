"""The network's inputs may begin at any address: callers' arrays are read where they lie.

TVM's kernels assume that a tensor begins at a multiple of 64 bytes, and NumPy's do not. Copying a
224x224 picture to where it does takes 0.1 ms, so the kernels that read an input are told to assume
no more than whole elements. Everything between kernels stays aligned.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tvm import IRModule, tirx

_VIEWS = ("relax.reshape",)


def accept_unaligned_inputs(mod: IRModule) -> IRModule:
    """The module with each kernel that `main` hands an input, or a view of one, told so."""
    from tvm import ir, relax

    main = mod["main"]
    inputs = set(main.params[: int(main.attrs["num_input"])])
    readers: dict[Any, set[int]] = defaultdict(set)
    for block in main.body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, ir.Var) and call in inputs:
                inputs.add(binding.var)
            if not isinstance(call, ir.Call) or not isinstance(call.op, ir.Op):
                continue
            if call.op.name in _VIEWS and call.args[0] in inputs:
                inputs.add(binding.var)
            if call.op.name == "relax.call_tir" and isinstance(call.args[1], relax.Tuple):
                fields = call.args[1].fields
                readers[call.args[0]] |= {i for i, f in enumerate(fields) if f in inputs}
    changed = {g: _unaligned(mod[g], sorted(which)) for g, which in readers.items() if which}
    for g, func in changed.items():
        mod.update_func(g, func)
    return mod


def _unaligned(func: tirx.PrimFunc, which: list[int]) -> tirx.PrimFunc:
    """A PrimFunc whose parameters at `which` begin at whole elements, by way of its JSON form.

    No pass of TVM changes a buffer's alignment.
    """
    from tvm import ir

    graph = json.loads(ir.save_json(func))
    nodes = graph["nodes"]
    params = nodes[nodes[graph["root_index"]]["data"]["params"]]["data"]
    for i in which:
        var = nodes[params[i]]["data"]
        kind = nodes[var["ty"]]
        size = np.dtype(str(func.params[i].ty.dtype)).itemsize
        var["ty"] = len(nodes)
        nodes.append({**kind, "data": {**kind["data"], "data_alignment": size}})
    return ir.load_json(json.dumps(graph))
