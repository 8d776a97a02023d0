"""A board's CUDA device: what it is, whether it runs a target's code, and what its errors mean."""

from __future__ import annotations

from typing import Any

import msgspec

from tvmsep.contracts import BoardError, Failure, Gpu, Target
from tvmsep.contracts.trial import is_emulated

ADVICE = (
    "it needs NVIDIA's driver 580 or newer (libcuda.so.1) and CUDA 13's runtime "
    "(libcudart.so.13: `pip install 'tvmsep[cuda-run]'` there brings it)"
)

_FAULTS: dict[Failure, tuple[str, ...]] = {
    "illegal_address": (
        "an illegal memory access", "misaligned address", "CUDA_ERROR_ILLEGAL_ADDRESS",
        "CUDA_ERROR_MISALIGNED_ADDRESS", "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    ),
    "out_of_memory": ("out of memory", "CUDA_ERROR_OUT_OF_MEMORY"),
    "launch_error": (
        "CUDALaunch Error", "CUDA_ERROR_LAUNCH", "too many resources requested for launch",
        "unspecified launch failure", "the launch timed out", "invalid configuration argument",
        "Failed to set the allowed dynamic shared memory size", "an illegal instruction",
        "CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_HARDWARE_STACK_ERROR", "hardware stack error",
    ),
}  # fmt: skip
"""How TVM 0.27 and CUDA say it; the first that is found counts, since the error of a kernel often
shows at the next launch."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What CUDA says of a board's first device."""

    name: str
    capability: int
    """87 for compute capability 8.7."""
    runtime: int
    """CUDA's runtime, 13000 for 13.0; 0 if TVM does not say."""
    sms: int
    memory_bytes: int
    free_bytes: int
    """0 if TVM does not say."""

    @property
    def emulated(self) -> bool:
        """Whether a CPU stands in for it, so that its times say nothing."""
        return is_emulated(self.name)

    @property
    def label(self) -> str:
        """As logs name what measured: `Orin (sm_87)`."""
        return f"{self.name} (sm_{self.capability})"


def fault(text: str) -> Failure | None:
    """Which failure of a CUDA device an error's words mean; None if none of its own."""
    return next((f for f, words in _FAULTS.items() if any(w in text for w in words)), None)


def find(remote: Any) -> Device:
    """Ask a session's board for its CUDA device; any TVM server can answer.

    Raises:
        BoardError: TVM has no CUDA there, or CUDA no device.
    """
    try:
        device = remote.device("cuda", 0)
        exists = bool(device.exist)
    except Exception as error:  # TVM raises several types
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise BoardError(f"the board has no CUDA: {words[-1]}; {ADVICE}") from error
    if not exists:
        raise BoardError(f"the board has no CUDA device that TVM can use: {ADVICE}")

    def ask(name: str) -> int:
        try:
            return int(getattr(device, name) or 0)
        except Exception:  # an attribute that this TVM does not know
            return 0

    major, _, minor = str(device.compute_version).partition(".")
    return Device(
        name=str(device.device_name),
        capability=10 * int(major) + int(minor or 0),
        runtime=ask("api_version"),
        sms=ask("multi_processor_count"),
        memory_bytes=ask("total_global_memory"),
        free_bytes=ask("available_global_memory"),
    )


def misfit(device: Device, gpu: Gpu, target: str) -> str:
    """Why a target's kernels are not to be measured on a device, or "".

    Machine code is tuned for one compute capability, PTX runs on newer ones too.
    """
    wanted = gpu.compute_capability
    if device.capability == wanted or gpu.ptx and device.capability > wanted:
        return ""
    return (
        f"target {target} is for {gpu.arch}, the board's {device.name} has compute capability "
        f"{device.capability // 10}.{device.capability % 10}: give a target with that arch"
    )


def device_of(remote: Any, target: Target) -> Any:
    """Where a target's kernels run, on a session's board."""
    return remote.cpu(0) if target.gpu is None else remote.device("cuda", 0)


def check(remote: Any, target: Target) -> Device | None:
    """The device that a target's kernels will run on; None for targets without one.

    Raises:
        BoardError: the board has none, or another kind.
    """
    if target.gpu is None:
        return None
    found = find(remote)
    if why := misfit(found, target.gpu, target.name):
        raise BoardError(why)
    return found
