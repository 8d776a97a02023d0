"""CUDA C, as TVM writes it, into C++ for this CPU: kernels are found and their memory is placed."""

from __future__ import annotations

import re
from typing import NamedTuple

from tvmsep.contracts import TvmsepError

_KERNEL = re.compile(
    r'extern "C" __global__ void\s*(?:__launch_bounds__\((\d+)[^)]*\)\s*)?(\w+)\s*\('
)
_DYNAMIC = re.compile(r"extern __shared__\s+(?:__align__\(\d+\)\s*)?(\w[\w ]*?)\s+(\w+)\s*\[\s*\]")
_SHARED = re.compile(r"__shared__\s+(?:alignas\(\d+\)\s*)?(\w[\w ]*?)\s+(\w+)\s*\[(\d+)\]\s*;")
_NARROW = re.compile(r"\b(?:signed char|unsigned char|uchar|char|bool|u?int8_t)\s*\*")
_HALF = re.compile(r"\b(?:half|__half|u?short)\b")
_ASSEMBLY = re.compile(
    r'\b(?:asm volatile|__asm__ __volatile__)\s*(\((?:[^;"]|"(?:[^"\\]|\\.)*")*\)\s*;)'
)
_OPERAND = re.compile(r'"[rln]"\(([^()]*)\)')


class EmulatorError(TvmsepError):
    """The emulator cannot take this source, or is itself not to be had here."""


class Kernel(NamedTuple):
    """A kernel of a source."""

    name: str
    max_threads: int
    """Of its launch bounds; 0 where it has none."""
    granule: int
    """Bytes of the smallest type that it accesses."""


def kernels(source: str) -> tuple[Kernel, ...]:
    """The kernels that a source defines, in its order."""
    return tuple(k for k, _, _ in _bodies(source))


def translate(source: str) -> str:
    """C++ that includes our header in place of NVIDIA's, with a table of the kernels at its end.

    Static shared memory of a kernel goes into a section of its own, so that its bounds are known;
    dynamic shared memory is asked from the runtime.

    Raises:
        EmulatorError: the source defines no kernel, or has assembly that is not known here.
    """
    source = _ASSEMBLY.sub(lambda m: _call(m[1]), source)
    found = _bodies(source)
    if not found:
        raise EmulatorError('no kernel in the CUDA source: `extern "C" __global__` is missing')
    parts, end = ['#include "tvmsep_cuda.h"\n'], 0
    for kernel, start, stop in found:
        # Bytes, because constructors of shared variables are not run on a device either.
        place = f'static __attribute__((used, section("emu_shared_{kernel.name}"), aligned(64)))'
        room = rf"{place} char \2_room[sizeof(\1) * \3]; \1* const \2 = (\1*)\2_room;"
        body = _DYNAMIC.sub(r"\1* const \2 = (\1*)emu_dynamic_shared()", source[start:stop])
        parts += [source[end:start], _SHARED.sub(room, body)]
        end = stop
    parts += [source[end:], _table([k for k, _, _ in found])]
    return "".join(parts)


def _call(assembly: str) -> str:
    """What stands for a statement of assembly: of PTX, only asynchronous copies are known."""
    wait = re.search(r"cp\.async\.wait_group (\d+)", assembly)
    if wait:
        return f"emu_async_wait({wait[1]});"
    if "cp.async.commit_group" in assembly:
        return "emu_async_commit();"
    operands = _OPERAND.findall(assembly)
    if "cp.async.c" in assembly and len(operands) >= 3:
        predicate = operands[3] if len(operands) > 3 else "1"
        return f"emu_async_copy({', '.join(operands[:3])}, {predicate});"
    raise EmulatorError(f"the emulator does not know this assembly: {assembly.strip()[:200]}")


def _bodies(source: str) -> list[tuple[Kernel, int, int]]:
    """Kernels, and where each begins and ends; declarations count to the one before."""
    starts = [m for m in _KERNEL.finditer(source) if _defines(source, m.end())]
    ends = [*(m.start() for m in starts), len(source)][1:]
    found = []
    for match, end in zip(starts, ends, strict=True):
        text = source[match.start() : end]
        granule = 1 if _NARROW.search(text) else 2 if _HALF.search(text) else 4
        kernel = Kernel(match[2], int(match[1] or 0), granule)
        found.append((kernel, match.start(), end))
    return found


def _defines(source: str, at: int) -> bool:
    """Whether a body, not a semicolon, follows the parameters that begin at `at`."""
    brace, semicolon = source.find("{", at), source.find(";", at)
    return brace >= 0 and (semicolon < 0 or brace < semicolon)


def _table(found: list[Kernel]) -> str:
    lines, rows = [], []
    for k in found:
        start, stop = f"__start_emu_shared_{k.name}", f"__stop_emu_shared_{k.name}"
        hidden = '__attribute__((weak, visibility("hidden")))'
        lines.append(f'extern "C" {hidden} char {start}[], {stop}[];')
        call = f"&emu_call<{k.name}>::by_number::call"
        rows.append(f'  {{"{k.name}", {call}, {k.max_threads}, {k.granule}, {start}, {stop}}},')
    table = 'extern "C" __attribute__((visibility("hidden"))) extern const emu_kernel '
    return "\n".join(
        [*lines, f"{table}tvmsep_emulator_kernels[] = {{", *rows, "  {nullptr},", "};", ""]
    )
