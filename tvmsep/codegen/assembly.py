"""Reading the assembly that TVM prints: the hot loop, and what is in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_FMA = re.compile(r"v?fn?madd|fmla|fmls|fmadd|vfma|vmla")
_JUMP = re.compile(r"\s+(?:j[a-z]+|b\.?[a-z]*|cbn?z|tbn?z)\s+.*?(\.L\w+)\s*$")
_NO_CODE = re.compile(r"^\.Ltmp|^\s+\.|^\s*[#@]")
"""Directives, comments, and labels that nothing jumps to."""
_LABEL = re.compile(r"^(\.L\w+):")
_STACK = re.compile(r"\[sp\b|\(%[er]sp|\bsp\b")
_MOVE = re.compile(r"v?(ld|st|mov)[a-z0-9.]*\s")


@dataclass(frozen=True)
class Loop:
    """A loop's assembly, and counts of what bounds it."""

    lines: tuple[str, ...]
    """With labels, as printed."""

    @property
    def code(self) -> list[str]:
        """The instructions alone, stripped."""
        found = (line.strip() for line in self.lines if line.strip() and not _LABEL.match(line))
        return [re.sub(r"\s+", " ", line) for line in found]

    @property
    def fmas(self) -> int:
        """Multiply-add instructions."""
        return sum(map(_is_fma, self.code))

    @property
    def loads(self) -> int:
        """Registers loaded on Arm, a pair as two; a load through an operand is not counted."""
        return sum(map(_loaded, self.code))

    @property
    def spills(self) -> int:
        """Loads and stores of the stack."""
        return sum(bool(_STACK.search(x) and _MOVE.match(x)) for x in self.code)

    @property
    def summary(self) -> str:
        """In words."""
        return f"{len(self.code)} instructions, {self.fmas} of them multiply-adds"


def _is_fma(line: str) -> bool:
    words = line.split()
    return bool(words) and _FMA.match(words[0]) is not None


def _loaded(line: str) -> int:
    name, _, rest = line.partition(" ")
    if name.startswith(("ldp", "ldnp")):
        return 2
    if name.startswith(("ld1", "vld", "vldm")) and (listed := re.search(r"\{([^}]*)\}", rest)):
        # A list of d registers, two to a vector; a range as v0.4s-v3.4s is not printed by LLVM.
        count = listed.group(1).count(",") + 1
        return -(-count // 2) if name.startswith("v") else count
    return int(name.startswith(("ld", "vldr")))


def hot_loop(assembly: Sequence[str]) -> Loop:
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
    return Loop(tuple(line.expandtabs(8).rstrip() for line in lines if not _NO_CODE.match(line)))
