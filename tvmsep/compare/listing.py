"""What a config becomes: its lowered loops, and its hot loop's assembly or a GPU's CUDA C."""

from __future__ import annotations

import re

import msgspec

from tvmsep.codegen.cubin import KernelResources
from tvmsep.compare.kernels import Choice
from tvmsep.contracts import Gpu, InputError, Target

_KERNEL = 'extern "C" __global__'
"""Where the first kernel begins; before it stand TVM's own helpers."""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One config."""

    name: str
    template: str
    config: str
    loops: tuple[str, ...]
    """Lines of the lowered loop nest."""
    hot: tuple[str, ...]
    """Lines of assembly: the innermost loop with the most multiply-adds; of CUDA C: the kernel."""
    summary: str
    resources: KernelResources | None = None
    """What a GPU's kernel uses, where it is machine code; of several, the one with the most
    registers."""


class Diff(msgspec.Struct, frozen=True, kw_only=True):
    """Two configs of one task."""

    task: str
    target: str
    threads: int
    a: Side
    b: Side


def diff(a: Choice, b: Choice, target: Target) -> Diff:
    """Both configs of a task, lowered and compiled.

    Raises:
        InputError: TVM refuses a config.
    """
    return Diff(
        task=a.task.workload.label, target=target.name, threads=a.task.threads,
        a=side(a, target), b=side(b, target),
    )  # fmt: skip


def side(choice: Choice, target: Target) -> Side:
    """One config, lowered and compiled.

    Raises:
        InputError: TVM refuses it.
    """
    from tvmsep.codegen import kernel, machine_code
    from tvmsep.codegen.assembly import hot_loop
    from tvmsep.codegen.cuda import device_code

    try:
        func = kernel(choice.task.workload, target, choice.template, choice.config)
        library = machine_code(func, target)
        loops = _loops(func)
    except Exception as error:  # TVM raises whatever it likes
        raise InputError(f"{choice.text}: TVM refuses this config: {error}") from error
    resources = None
    if target.gpu is None:
        hot = hot_loop(library.inspect_source("s").splitlines())
        lines, summary = hot.lines, f"hot loop, {hot.summary}"
    else:
        source = library.imports[0].inspect_source()
        used = device_code(source, target.gpu).resources
        resources = max(used, key=lambda k: k.registers, default=None)
        lines = tuple(source[source.index(_KERNEL) :].rstrip().splitlines())
        summary = f"CUDA C, {_words(resources, target.gpu)}"
    return Side(
        name=choice.name, template=choice.template, config=choice.config.key,
        loops=tuple(loops), hot=lines, summary=summary, resources=resources,
    )  # fmt: skip


def _words(k: KernelResources | None, gpu: Gpu) -> str:
    """What a kernel uses, as `inspect --resources` says it."""
    if k is None:
        return "compiled for the emulator"
    return (
        f"{k.registers} registers, {k.spill_bytes} B spilled, {k.shared_bytes} B shared, "
        f"occupancy {k.occupancy:.0%} on {gpu.arch}"
    )


def _loops(func: object) -> list[str]:
    """The function's body after block lowering: loops, buffers and statements, nothing else."""
    import tvm
    from tvm.s_tir import transform as t

    passes = [
        t.LowerInitBlock(), t.PlanAndUpdateBufferAllocationLocation(), t.ConvertBlocksToOpaque(),
        t.CompactBufferAllocation(), t.LowerMatchBuffer(), t.LowerOpaqueBlock(), t.StmtSimplify(),
    ]  # fmt: skip
    lowered = tvm.transform.Sequential(passes)(tvm.IRModule({"main": func}))["main"]
    text = lowered.script(show_meta=False)
    lines = text[text.index("def main") :].splitlines()[1:]
    kept = [line[4:] for line in lines if "T.func_attr" not in line and line.strip()]
    return [re.sub(r", annotations=\{.*\}\)", ")", line) for line in kept]
