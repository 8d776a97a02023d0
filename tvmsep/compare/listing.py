"""What a config becomes: its lowered loops, and the assembly of its hot loop."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from tvmsep.compare.kernels import Choice
from tvmsep.contracts import InputError, Target

_FMA = re.compile(r"v?fn?madd|fmla|fmls|fmadd|vfmacc")
_JUMP = re.compile(r"\s+(?:j[a-z]+|b\.?[a-z]*|cbn?z|tbn?z|b[a-z]+)\s+.*?(\.L\w+)\s*$")
_NO_CODE = re.compile(r"^\.Ltmp|^\s+\.|^\s*#")
"""Directives, comments, and labels that nothing jumps to."""
_LABEL = re.compile(r"^(\.L\w+):")


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

    try:
        func = kernel(choice.task.workload, target, choice.template, choice.config)
        library = tvm.tirx.build(func, tvm.target.Target(target.tvm_dict()))
        loops = _loops(func)
    except Exception as error:  # TVM raises whatever it likes
        raise InputError(f"{choice.text}: TVM refuses this config: {error}") from error
    hot = hot_loop(library.inspect_source("s").splitlines())
    return Side(
        name=choice.name, template=choice.template, config=choice.config.key,
        loops=tuple(loops), hot=tuple(hot), summary=_summary(hot),
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


def hot_loop(assembly: Sequence[str]) -> list[str]:
    """The innermost loop with the most multiply-adds; where none has any, the longest one.

    A loop is what lies between a label and a later jump back to it. Where the multiply-adds
    stand in no loop (all was unrolled), the stretch from the first to the last of them.
    """
    at: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for i, line in enumerate(assembly):
        if found := _LABEL.match(line):
            at[found.group(1)] = i
        elif (jump := _JUMP.match(line)) and jump.group(1) in at:
            loops.append((at[jump.group(1)], i))
    inner = [
        (a, b) for a, b in loops if not any(a <= c and d <= b for c, d in loops if (c, d) != (a, b))
    ]
    fmas = [i for i, line in enumerate(assembly) if _is_fma(line)]

    def count(span: tuple[int, int]) -> tuple[int, int]:
        return sum(span[0] <= i <= span[1] for i in fmas), span[1] - span[0]

    best = max(inner, key=count, default=(0, -1))
    if fmas and (best[1] < 0 or count(best)[0] == 0):
        best = (fmas[0], fmas[-1])
    lines = assembly[best[0] : best[1] + 1]
    return [line.expandtabs(8).rstrip() for line in lines if not _NO_CODE.match(line)]


def _is_fma(line: str) -> bool:
    words = line.split()
    return bool(words) and _FMA.match(words[0]) is not None


def _summary(hot: Sequence[str]) -> str:
    code = [line for line in hot if line.strip() and not _LABEL.match(line)]
    fmas = sum(map(_is_fma, code))
    return f"{len(code)} instructions, {fmas} of them multiply-adds"
