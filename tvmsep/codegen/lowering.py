"""From scheduled functions to machine code: TVM's pipeline, with register tiles kept on the stack.

TVM puts an array of a kilobyte or more into memory that it asks for at run time. A register tile of
16 accumulators of AVX-512 is one. LLVM turns an array on the stack whose indices are constants into
registers, one from a call only where it can prove that nobody else sees it: in the function that a
parallel loop becomes it often cannot, and stores all accumulators between two steps of the sum.
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
"""Up to which an array is put on the stack: the registers of AVX-512 twice."""
_AS_IT_IS = "disable_lower_builtin"
"""Of an allocation: TVM's own word for one that shall not become a call."""


def machine_code(mod: IRModule | tirx.PrimFunc, target: Target) -> Any:
    """TVM's module of compiled functions; a GPU's are imported by it, as CUDA C."""
    import tvm

    with building(target):
        device = tvm.target.Target(target.tvm_dict())
        return tvm.tirx.build(mod, device, pipeline=pipeline())


def pipeline() -> str:
    """The name by which TVM knows how functions are lowered here."""
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

    if func.attrs["target"].kind.name != "llvm":
        return func
    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.AllocBuffer, _kept)))


def _kept(allocation: Any) -> Any:
    import tvm
    from tvm import tirx

    buffer = allocation.buffer
    dtype = tvm.DataType(str(buffer.dtype))
    extents = [int(getattr(extent, "value", 0)) for extent in buffer.shape]
    size = math.prod(extents) * dtype.bits * dtype.lanes // 8
    if buffer.scope() != "global" or not 0 < size <= _STACK_BYTES:
        return allocation
    marks = {**allocation.annotations, _AS_IT_IS: tirx.IntImm("int32", 1)}
    return tirx.AllocBuffer(buffer, marks)
