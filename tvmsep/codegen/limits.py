"""What a CUDA device cannot launch is refused before it is compiled, by TVM's own check.

Spaces hold only configs that fit (each template's `space`); this is the second net, for what a
template's estimate missed: TVM counts threads and shared memory in the lowered kernel itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmsep.codegen.nvrtc import DeviceCodeRefused
from tvmsep.contracts import Gpu

if TYPE_CHECKING:
    from tvm import IRModule


def check_limits(mod: IRModule, gpu: Gpu) -> None:
    """See that the kernels of a scheduled module fit the device.

    Raises:
        DeviceCodeRefused: one does not; says which limit it breaks. TVM's errors pass through.
    """
    from tvm.s_tir.analysis import verify_gpu_code

    limits = {
        "max_threads_per_block": (gpu.threads_per_block, "threads a block"),
        "max_shared_memory_per_block": (gpu.shared_per_block, "bytes of shared memory a block"),
    }
    lowered = _lower(mod)
    for var, func in lowered.functions.items():
        for key, (limit, what) in limits.items():
            if not verify_gpu_code(func, {key: limit}):
                raise DeviceCodeRefused(
                    f"kernel {var.name_hint} needs more than the {limit} {what} of {gpu.arch}"
                )


def _lower(mod: IRModule) -> IRModule:
    """The passes of TVM's pipeline that settle threads, allocations and vectors."""
    import tvm
    from tvm import tirx
    from tvm.s_tir import transform as st

    passes = [
        st.LowerCrossThreadReduction(), st.LowerInitBlock(),
        st.PlanAndUpdateBufferAllocationLocation(), st.ConvertBlocksToOpaque(),
        st.LiftThreadBinding(), st.ManifestSharedMemoryLocalStage(), st.CompactBufferAllocation(),
        st.UnifyThreadBinding(), st.LowerMatchBuffer(), st.StmtSimplify(),
        st.LowerOpaqueBlock(), tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32), tirx.transform.VectorizeLoop(),
        st.InjectVirtualThread(), tirx.transform.StorageRewrite(),
    ]  # fmt: skip
    return tvm.transform.Sequential(passes)(mod)
