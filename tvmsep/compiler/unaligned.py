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

from tvmsep.compiler.batch import IMAGES, PART, VIEWS, parts_of

if TYPE_CHECKING:
    from tvm import IRModule, tirx


def accept_unaligned_inputs(mod: IRModule) -> IRModule:
    """The module with each kernel that the network hands an input, or a view of one, told so."""
    from tvm import ir, relax

    functions = parts_of(mod)
    main = functions.get(IMAGES, functions["main"])
    parts = IMAGES in functions
    inputs = set(main.params[: int(main.attrs["num_input"])])
    readers: dict[Any, set[int]] = defaultdict(set)
    for block in main.body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, ir.Var) and call in inputs:
                inputs.add(binding.var)
            if not isinstance(call, ir.Call) or not isinstance(call.op, ir.Op):
                continue
            if call.op.name in VIEWS and call.args[0] in inputs:
                inputs.add(binding.var)
                parts |= call.op.name == PART
            if call.op.name == "relax.call_tir" and isinstance(call.args[1], relax.Tuple):
                fields = call.args[1].fields
                readers[call.args[0]] |= {i for i, f in enumerate(fields) if f in inputs}
    changed = {g: _unaligned(mod[g], sorted(which), parts) for g, which in readers.items() if which}
    for g, func in changed.items():
        mod.update_func(g, func)
    return mod


def _unaligned(func: tirx.PrimFunc, which: list[int], parts: bool) -> tirx.PrimFunc:
    """A PrimFunc whose parameters at `which` begin at whole elements, by way of its JSON form.

    No pass of TVM changes a buffer's alignment. Where they are parts of a batch (`parts`), views
    that TVM describes by their distance from its beginning, they are also told to look at that.
    """
    from tvm import ir

    graph = json.loads(ir.save_json(func))
    nodes = graph["nodes"]
    params = nodes[nodes[graph["root_index"]]["data"]["params"]]["data"]
    for i in which:
        var = nodes[params[i]]["data"]
        kind = nodes[var["ty"]]
        size = np.dtype(str(func.params[i].ty.dtype)).itemsize
        data = {**kind["data"], "data_alignment": size}
        if parts:
            first = len(nodes)
            nodes += [
                {"type": "ir.PrimType", "data": {"span": 0, "dtype": "int64"}},
                {"type": "ffi.String", "data": f"begin{i}"},
                {"type": "ir.Var", "data": {"span": 0, "ty": first, "name": first + 1}},
            ]
            data |= {"elem_offset": first + 2, "offset_factor": 1}
        var["ty"] = len(nodes)
        nodes.append({**kind, "data": data})
    return ir.load_json(json.dumps(graph))
