"""What fusing a depthwise and a pointwise kernel saves on a GPU: bytes of device memory, modelled.

Separate kernels write what lies between them and read it again; the fused one keeps it in shared
memory, and computes and reads again what several of its blocks need: halos, and all of the
depthwise part where the pointwise one's channels are divided over blocks. What is read again
counts as far as L2 cannot hold the kernel's tensors; what one kernel left in L2 for the next one
is not counted.
"""

from __future__ import annotations

import msgspec

from tvmsep.codegen import kernel, machine_code
from tvmsep.codegen.cuda import device_code
from tvmsep.contracts import Target, Workload
from tvmsep.estimate.gpu import GpuTime, gpu_seconds
from tvmsep.schedules import template_for

SAVED = 0.5
"""Share of the traffic that a fused kernel must save to be taken without a measurement."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One pair in both forms, each kernel with its default config."""

    fused: GpuTime
    depthwise: GpuTime
    pointwise: GpuTime
    once_bytes: int
    """Of the fused kernel's own tensors: what it moves if nothing is read twice."""

    @property
    def saved(self) -> float:
        """Share of the separate kernels' traffic with memory that the fused one does without."""
        return 1 - self.fused.memory_bytes / self.separate_bytes

    @property
    def most(self) -> float:
        """The share that no fused kernel could exceed: its tensors have to move once."""
        return 1 - self.once_bytes / self.separate_bytes

    @property
    def separate_bytes(self) -> int:
        """Of both separate kernels."""
        return self.depthwise.memory_bytes + self.pointwise.memory_bytes

    @property
    def separate_s(self) -> float:
        """Of both separate kernels, modelled."""
        return self.depthwise.seconds + self.pointwise.seconds

    @property
    def worth(self) -> bool:
        """Whether it saves enough traffic, and is no slower by the model."""
        return self.saved >= SAVED and self.fused.seconds <= self.separate_s


def spill_bytes(w: Workload, target: Target) -> int:
    """Bytes that a kernel with its default config moves to local memory, by the compiler.

    Raises:
        DeviceCodeRefused: it does not compile.
        LinkError: the compiler is not installed.
    """
    template = template_for(w, target)
    assert template is not None and target.gpu is not None
    func = kernel(w, target, template.name, template.default(w, target, 1))
    built = machine_code(func, target)
    code = device_code(built.imports[0].inspect_source(), target.gpu)
    return sum(r.spill_bytes for r in code.resources)


def model_pair(w: Workload, target: Target) -> Pair:
    """Model a "dwpw" workload and its parts on a GPU.

    Raises:
        Unfit: a default config does not fit on the device.
    """

    def time(part: Workload) -> GpuTime:
        template = template_for(part, target)
        assert template is not None
        config = template.default(part, target, 1)
        return gpu_seconds(kernel(part, target, template.name, config), target)

    depthwise, pointwise = w.parts
    return Pair(
        fused=time(w), depthwise=time(depthwise), pointwise=time(pointwise),
        once_bytes=w.bytes_moved,
    )  # fmt: skip
