"""What a config becomes: its lowered loops, and the assembly of its hot loop."""

from __future__ import annotations

import re

import msgspec

from tvmsep.compare.kernels import Choice
from tvmsep.contracts import InputError, Target


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One config."""

    name: str
    template: str
    config: str
    loops: tuple[str, ...]
    """Lines of the lowered loop nest."""
    hot: tuple[str, ...]
    """Lines of assembly: the innermost loop with the most multiply-adds."""
    summary: str


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
    import tvm

    from tvmsep.codegen import kernel
    from tvmsep.codegen.assembly import hot_loop
    from tvmsep.codegen.cuda import building

    try:
        func = kernel(choice.task.workload, target, choice.template, choice.config)
        with building(target):
            library = tvm.tirx.build(func, tvm.target.Target(target.tvm_dict()))
        loops = _loops(func)
    except Exception as error:  # TVM raises whatever it likes
        raise InputError(f"{choice.text}: TVM refuses this config: {error}") from error
    hot = hot_loop(library.inspect_source("s").splitlines())
    return Side(
        name=choice.name, template=choice.template, config=choice.config.key,
        loops=tuple(loops), hot=hot.lines, summary=hot.summary,
    )  # fmt: skip


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
