"""A workload and a config become a modelled time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from tvmsep.codegen import kernel
from tvmsep.contracts import Config, Target, Workload


@dataclass(frozen=True)
class Modelled:
    """One kernel's time, modelled; `program` is equal for equal programs."""

    seconds: float
    program: str
    detail: str = ""
    """What limits it, for a reader."""


def modelled(w: Workload, target: Target, template: str, config: Config, threads: int) -> Modelled:
    """Build a candidate as far as its model needs, and model its time.

    Raises:
        InputError: the target cannot be modelled, or llvm-mca is missing.
        Unfit: no block of it fits on the GPU. TVM's own errors pass through.
    """
    func = kernel(w, target, template, config)
    if target.gpu is None:
        from tvmsep.estimate.cpu import cpu_seconds

        seconds, program = cpu_seconds(func, w, target, threads)
        return Modelled(seconds, program)
    from tvmsep.estimate.gpu import kernel_seconds
    from tvmsep.estimate.lowered import read_kernel

    read = read_kernel(func, target)
    found = kernel_seconds(read, target.gpu)
    detail = (
        f"{found.bound}; {found.blocks} blocks of {found.threads}, {found.resident} resident, "
        f"{found.registers} registers, {found.shared} B shared"
    )
    return Modelled(found.seconds, hashlib.sha256(read.text.encode()).hexdigest()[:16], detail)


def must_model(target: Target) -> str:
    """What models a target's kernels, for people: `cortex-a72 (LLVM version 22.1.0)`.

    Raises:
        InputError: nothing does, or llvm-mca is missing.
    """
    if target.gpu is not None:
        return f"{target.gpu.arch}, {target.gpu.sms} multiprocessors, by counts of its TIR"
    from tvmsep.estimate.mca import find_mca, must_have_model, version_line

    must_have_model(target)
    clock = f" at {target.clock_ghz:g} GHz" if target.clock_ghz else ", cycles as nanoseconds"
    return f"{target.mca_cpu} by {version_line(find_mca())}{clock}"
