"""A scoreboard of an in-order core that issues two instructions a cycle: the Cortex-A53.

llvm-mca's own in-order pipeline lets no instruction finish before an earlier one, so that a load
waits for the multiply-adds before it; the core modelled here writes loads back while multiply-adds
are under way. LLVM's tables know nothing of which instructions a cycle has room for. Rules:

- Instructions issue in order, at most two a cycle, at most one of them in memory.
- At most one is vector arithmetic or a vector load. A load of 128 bits takes two cycles, one of up
  to 64 bits takes one.
- Two exceptions: a vector load of up to 64 bits and the insertion of an integer register into a
  vector share a cycle, and so do anything integer, loads included, and anything of a vector.
- No two of a cycle write one register.
- Each waits for its operands, with LLVM's latencies, and for an accumulator where it is added to.

The second and third are those that people found who write kernels for it: ncnn's notes
(`docs/developer-guide/arm-a53-a55-dual-issue.md`), and XNNPACK's kernels named `cortex-a53` are
built upon them. Arm publishes no such guide. What stores hinder is not known: one a cycle here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_REGISTER = re.compile(r"\b([vqdsxwbh])(\d+)\b|\bsp\b")
_INSERTION = re.compile(r"(mov|ins) v\d+\.[a-z]\[\d+\], [xw]")
_WARM, _COUNTED = 8, 32


class _Step(NamedTuple):
    """What an instruction needs: registers, and where it issues."""

    written: list[str]
    read: list[str]
    vector: bool
    memory: bool
    cycles: int
    """That it keeps others out for."""
    shares: str
    """`load` of up to 64 bits or `insertion`: these two share a cycle, nothing else of vectors."""
    adds: bool
    """To an accumulator, which it writes."""


def in_order_cycles(code: Sequence[str], latencies: Sequence[int], fma_latency: int) -> float:
    """Cycles of one iteration, in a steady state.

    Args:
        code: AArch64 instructions of the loop, stripped.
        latencies: of each, in cycles.
        fma_latency: from a multiply-add to the next one on the same accumulator.
    """
    ready: dict[str, int] = {}
    accumulator_ready: dict[str, int] = {}
    vector_free, memory_free, cycle, start = 0, 0, 0, 0
    issued: list[_Step] = []
    steps = [_step(line) for line in code]
    for repeat in range(_WARM + _COUNTED):
        if repeat == _WARM:
            start = cycle
        for step, latency in zip(steps, latencies, strict=True):
            at = max([cycle, *(ready.get(r, 0) for r in step.read)])
            at = max(at, vector_free if step.vector else 0, memory_free if step.memory else 0)
            if step.adds:
                added = step.written[0]
                at = max(at, accumulator_ready.get(added, ready.get(added, 0)))
            if at == cycle and (len(issued) == 2 or any(_collide(step, s) for s in issued)):
                at += 1
            issued = [*issued, step] if at == cycle else [step]
            cycle = at
            if step.memory:
                memory_free = at + step.cycles
            if step.vector and step.cycles > 1:
                vector_free = at + step.cycles
            for register in step.written:
                ready[register] = at + latency + step.cycles - 1
                accumulator_ready.pop(register, None)
            if step.adds:
                accumulator_ready[step.written[0]] = at + fma_latency
    return (cycle - start) / _COUNTED


def _collide(a: _Step, b: _Step) -> bool:
    """Whether two instructions cannot issue in one cycle."""
    if set(a.written) & set(b.written):
        return True
    return a.vector and b.vector and {a.shares, b.shares} != {"load", "insertion"}


def _step(line: str) -> _Step:
    name, _, rest = line.partition(" ")
    written, read = _operands(line)
    data = rest.split("[", 1)[0] if name.startswith(("ld", "st")) else ""
    moved = re.findall(r"\b([vqdsbh])\d+", data)
    wide = bool(moved) and moved[0] in "vq" and ".8b" not in data and ".2s" not in data
    if name.startswith("ld1r") or re.search(r"\}\[\d\]", rest):
        wide = False
    cycles, shares = 1, ""
    if name.startswith("st"):
        cycles = max(1, len(moved)) if wide else 1
    elif moved:
        cycles = (2 if wide else 1) * len(moved)
        shares = "" if wide else "load"
    if _INSERTION.match(line):
        shares, read = "insertion", written + read
    arithmetic = not data and bool(re.search(r"\bv\d+\.|\b[qdsbh]\d", rest))
    return _Step(
        written, read, vector=arithmetic or (bool(moved) and name.startswith("ld")),
        memory=bool(data), cycles=cycles, shares=shares, adds=name in ("fmla", "fmls"),
    )  # fmt: skip


def _operands(line: str) -> tuple[list[str], list[str]]:
    """Registers that an instruction writes, and those that it reads; not the flags."""
    name, _, rest = line.partition(" ")
    registers = [_name(m) for m in _REGISTER.finditer(rest)]
    reads = ("st", "b", "cb", "tb", "cmp", "tst", "fcmp", "prf")
    if name.startswith(reads) and name[:3] not in _WRITERS:
        return [], registers
    count = 2 if name in ("ldp", "ldnp") else 1
    if name.startswith("ld") and (based := re.search(r"\], |\]!", rest)) and based:
        # Written back, in an instruction that is done at once: not worth waiting for.
        return registers[:count], registers[count:]
    read = registers[count:]
    if name in ("fmla", "fmls"):
        return registers[:1], registers[1:]
    if name in ("ins", "bit", "bif", "bsl", "movk"):
        read = registers
    return registers[:count], read


_WRITERS = ("bit", "bif", "bsl", "bic")


def _name(found: re.Match[str]) -> str:
    if found.group() == "sp":
        return "sp"
    kind, number = found.groups()
    return f"{'x' if kind in 'xw' else 'v'}{number}"
