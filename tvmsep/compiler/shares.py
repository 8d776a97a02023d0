"""Parallel loops cut into as many tasks as the pool of threads hands out, even ones.

TVM gives each task as many iterations, rounded up, and the last ones what is left: ten iterations
on eight tasks would be five tasks of two. Here a parallel loop is one over the tasks, of which each
has the same iterations up to one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm import IRModule, tirx

THREADS = "tvmsep.threads"
"""Attribute of a module: on how many threads it will run."""
CUTS = 4
"""Tasks a thread; `pool.c` has the same number."""


def cut_loops(mod: IRModule) -> IRModule:
    """The module with its kernels' parallel loops cut for its threads."""
    from tvm import tirx

    threads = int((mod.attrs or {}).get(THREADS, 1))
    if threads > 1:
        for var, func in list(mod.functions_items()):
            if isinstance(func, tirx.PrimFunc):
                mod[var] = _cut(func, CUTS * threads)
    return mod


def _cut(func: tirx.PrimFunc, tasks: int) -> tirx.PrimFunc:
    import tvm_ffi
    from tvm import tirx

    def cut(loop: Any) -> Any:
        if int(loop.kind) != int(tirx.ForKind.PARALLEL) or loop.annotations:
            return loop
        extent, start = (int(getattr(e, "value", -1)) for e in (loop.extent, loop.min))
        # What follows is computed in 32 bits: ARMv7 calls a function to divide 64.
        if start != 0 or not 1 < extent < 2**31 // tasks:
            return loop
        task, kind = tirx.Var("task", "int32"), str(loop.loop_var.ty.dtype)
        begin = tirx.floordiv(task * extent, tasks).astype(kind)
        end = tirx.floordiv((task + 1) * extent, tasks).astype(kind)
        inner = tirx.For(loop.loop_var, begin, end - begin, tirx.ForKind.SERIAL, loop.body)
        return tirx.For(task, 0, tasks, tirx.ForKind.PARALLEL, inner)

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, cut)))
