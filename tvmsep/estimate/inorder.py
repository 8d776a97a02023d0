"""A scoreboard of an in-order core that issues two instructions a cycle.

llvm-mca's own in-order pipeline lets no instruction finish before an earlier one, so that a load
waits for the multiply-adds before it; the cores modelled here (Cortex-A53) write loads back while
multiply-adds are under way. Rules: instructions issue in order, at most two a cycle, at most one
of them a multiply-add or other vector arithmetic, at most one a load or store, a pair of vectors
for two cycles; each waits for its operands; an accumulator is awaited where it is added to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_REGISTER = re.compile(r"\b([vqdsxw])(\d+)\b|\bsp\b")
_WARM, _COUNTED = 8, 32


def in_order_cycles(code: Sequence[str], latencies: Sequence[int], fma_latency: int) -> float:
    """Cycles of one iteration, in a steady state.

    Args:
        code: AArch64 instructions of the loop, stripped.
        latencies: of each, in cycles.
        fma_latency: from a multiply-add to the next one on the same accumulator.
    """
    ready: dict[str, int] = {}
    accumulator_ready: dict[str, int] = {}
    ports = {"vector": 0, "memory": 0}
    cycle, issued, start = 0, 0, 0
    steps = [_operands(line) for line in code]
    for repeat in range(_WARM + _COUNTED):
        if repeat == _WARM:
            start = cycle
        for line, (written, read), latency in zip(code, steps, latencies, strict=True):
            name = line.split(" ", 1)[0]
            fma = name in ("fmla", "fmls")
            port, busy = _port(name, line)
            at = max([cycle, ports[port] if port else 0, *(ready.get(r, 0) for r in read)])
            if fma:
                at = max(at, accumulator_ready.get(written[0], ready.get(written[0], 0)))
            if at == cycle and issued == 2:
                at += 1
            issued = issued + 1 if at == cycle else 1
            cycle = at
            if port:
                ports[port] = at + busy
            for register in written:
                ready[register] = at + latency
                accumulator_ready.pop(register, None)
            if fma:
                accumulator_ready[written[0]] = at + fma_latency
    return (cycle - start) / _COUNTED


def _port(name: str, line: str) -> tuple[str, int]:
    if name.startswith(("ld", "st")):
        return "memory", 2 if name.endswith("p") and re.search(r"\bq\d", line) else 1
    return ("vector", 1) if re.search(r"\bv\d+\.|\b[qds]\d", line) else ("", 1)


def _operands(line: str) -> tuple[list[str], list[str]]:
    """Registers that an instruction writes, and those that it reads; not the flags."""
    name, _, rest = line.partition(" ")
    registers = [_name(m) for m in _REGISTER.finditer(rest)]
    if name.startswith(("st", "b", "cb", "tb", "cmp", "tst", "fcmp")):
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


def _name(found: re.Match[str]) -> str:
    if found.group() == "sp":
        return "sp"
    kind, number = found.groups()
    return f"{'v' if kind in 'vqds' else 'x'}{number}"
