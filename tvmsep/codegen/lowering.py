"""From scheduled functions to machine code: TVM's pipeline, on CPUs with small arrays on the stack.

TVM puts an array of a kilobyte or more into memory that it asks for at run time. A register tile of
16 accumulators of AVX-512 is such an array. LLVM turns an array on the stack whose indices are
constants into registers, one from a call only where it can prove that nobody else sees it: in the
function that a parallel loop becomes it often cannot, and stores all accumulators between two steps
of the sum.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tvmsep.codegen.cuda import building
from tvmsep.contracts import Target

if TYPE_CHECKING:
    from tvm import IRModule, tirx

_PIPELINE = "tvmsep"
_STACK_BYTES = 4096
"""Of the largest array that is put on the stack: the registers of AVX-512 twice."""
_AS_IT_IS = "disable_lower_builtin"
"""Of an allocation: TVM's own word for one that shall not become a call."""


def machine_code(mod: IRModule | tirx.PrimFunc, target: Target) -> Any:
    """TVM's module of compiled functions; a GPU's are imported by it, as CUDA C."""
    import tvm

    with building(target):
        device = tvm.target.Target(target.tvm_dict())
        return tvm.tirx.build(mod, device, pipeline=pipeline(target))


def pipeline(target: Target) -> str:
    """The name by which TVM knows how a target's functions are lowered.

    A GPU's keep TVM's own: an array between two of its kernels belongs to the device, and in the
    host's part of the function nothing here would tell.
    """
    if target.gpu is not None:
        return "s_tir"
    import tvm
    from tvm.s_tir.pipeline import default_s_tir_pipeline
    from tvm.tirx import compilation_pipeline as known

    def passes() -> tuple[Any, ...]:
        lowering, host, device = default_s_tir_pipeline()
        on_stack = tvm.tirx.transform.prim_func_pass(_on_stack, opt_level=0)
        return tvm.transform.Sequential([lowering, on_stack]), host, device

    if _PIPELINE not in known.PIPELINE_MAP:
        known.register_tir_pipeline(_PIPELINE, passes)
    return _PIPELINE


def _on_stack(func: tirx.PrimFunc, mod: IRModule, context: Any) -> tirx.PrimFunc:
    import tvm_ffi
    from tvm import tirx

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.AllocBuffer, _kept)))


def _kept(allocation: Any) -> Any:
    import tvm
    from tvm import tirx

    buffer = allocation.buffer
    dtype = tvm.DataType(str(buffer.dtype))
    if buffer.scope() != "global" or not all(isinstance(n, tirx.IntImm) for n in buffer.shape):
        return allocation
    size = math.prod(int(n) for n in buffer.shape) * dtype.bits * dtype.lanes // 8
    if size > _STACK_BYTES:
        return allocation
    marks = {**allocation.annotations, _AS_IT_IS: tirx.IntImm("int32", 1)}
    return tirx.AllocBuffer(buffer, marks, allocation.span)
