"""What compiled CUDA kernels use of a device, read from the machine code itself.

A cubin is an ELF file. Registers, stack frames and the largest block stand in its `.nv.info`
sections, one attribute after another (a format byte, an attribute byte, then two bytes that are
the value or the payload's length); shared memory is the size of `.nv.shared.<kernel>`. Spills are
counted in the code: what its loads and stores of local memory move. The numbers of attributes are
those that cuobjdump prints; the opcodes are those that nvdisasm prints as LDL and STL. Tests
compare all of this with what ptxas says of the same kernels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tvmsep.contracts import Gpu, TvmsepError
from tvmsep.schedules.cuda.common import resident_blocks

_HEADER = struct.Struct("<16s2HI3QI6H")
_SECTION = struct.Struct("<2I4Q2I2Q")
_SYMBOL = struct.Struct("<I2BH2Q")
_CUDA_MACHINE = 190

_REGISTERS, _FRAME, _MAX_THREADS = 0x2F, 0x11, 0x05
_PAYLOAD = 4
"""Format of an attribute that has a payload behind it."""
_RESERVED = 1024
"""Bytes of shared memory that a block's driver takes, from compute capability 8.0."""

_VOLTA_LOCAL = {0x983: "LDL", 0x387: "STL"}
"""Twelve low bits of a 128-bit instruction, from compute capability 7.0."""
_MAXWELL_LOCAL = {0x1DE8: "LDL", 0x1DEA: "STL"}
"""Thirteen high bits of a 64-bit instruction, compute capabilities 5.0 to 6.2."""
_WIDTHS = (1, 1, 2, 2, 4, 8, 16, 16)
"""Bytes that a load or store moves, by the three bits of its size field."""


class CubinError(TvmsepError):
    """A device image is not what a compiler of NVIDIA's writes."""


@dataclass(frozen=True)
class KernelResources:
    """What a kernel uses; sizes are bytes."""

    name: str
    threads: int
    """Of a block, the most that it was compiled for."""
    registers: int
    """32-bit, of a thread."""
    spill_bytes: int
    """Moved by the loads and stores of local memory in a thread's code, each counted once: spilled
    registers, and arrays whose index is not known at compile time."""
    stack_bytes: int
    """Local memory of a thread."""
    shared_bytes: int
    """Static shared memory of a block."""
    occupancy: float
    """Share of a multiprocessor's threads that can be resident, 0 where no block fits."""


def kernel_resources(image: bytes, gpu: Gpu) -> tuple[KernelResources, ...]:
    """The kernels of a cubin, in the order of their names.

    Raises:
        CubinError: it is no cubin, or damaged.
    """
    try:
        return _read(image, gpu)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise CubinError(f"the device code is damaged: {error}; build it again") from error


def _read(image: bytes, gpu: Gpu) -> tuple[KernelResources, ...]:
    if image[:4] != b"\x7fELF":
        raise CubinError(
            "the device code is PTX, which a driver compiles for its device: build for a target "
            "with machine code, as t4, to see what it uses"
        )
    fields = _HEADER.unpack_from(image)
    if fields[2] != _CUDA_MACHINE:
        raise CubinError("the device code is no cubin: it was compiled for the emulator")
    sections = _sections(image, fields[6], fields[12], fields[13])
    symbols = _symbols(sections)
    threads: dict[str, int] = {}
    of_symbol: dict[int, dict[int, int]] = {_REGISTERS: {}, _FRAME: {}}
    for attribute, payload in _attributes(sections[".nv.info"][1]):
        if attribute in of_symbol:
            index, value = struct.unpack("<2I", payload)
            of_symbol[attribute][index] = value
    found = []
    for index, name in symbols.items():
        if f".nv.info.{name}" not in sections:
            continue  # a device function, not a kernel
        for attribute, payload in _attributes(sections[f".nv.info.{name}"][1]):
            if attribute == _MAX_THREADS:
                x, y, z = struct.unpack("<3I", payload)
                threads[name] = x * y * z
        shared = sections.get(f".nv.shared.{name}", (0, b""))[0]
        if shared and gpu.compute_capability >= 90:
            shared -= _RESERVED  # their compilers count it in
        block = threads.get(name, gpu.threads_per_block)
        registers = of_symbol[_REGISTERS].get(index, 0)
        code = sections[f".text.{name}"][1]
        found.append(
            KernelResources(
                name=name,
                threads=block,
                registers=registers,
                spill_bytes=_spills(code, gpu.compute_capability),
                stack_bytes=of_symbol[_FRAME].get(index, 0),
                shared_bytes=shared,
                occupancy=occupancy(gpu, block, registers, shared),
            )
        )
    return tuple(sorted(found, key=lambda k: k.name))


def _sections(image: bytes, at: int, count: int, names: int) -> dict[str, tuple[int, bytes]]:
    """Size and contents by name; the contents of a section that takes no room are empty."""
    headers = [_SECTION.unpack_from(image, at + i * _SECTION.size) for i in range(count)]
    table = headers[names]
    texts = image[table[4] : table[4] + table[5]]
    found = {}
    for header in headers:
        name = texts[header[0] : texts.index(0, header[0])].decode()
        start, size = header[4], header[5]
        nobits = header[1] == 8
        if not nobits and start + size > len(image):
            raise CubinError("the device code is cut short: build it again")
        found[name] = size, b"" if nobits else image[start : start + size]
    return found


def _symbols(sections: dict[str, tuple[int, bytes]]) -> dict[int, str]:
    """Names of the functions by their index in the symbol table."""
    texts, table = sections[".strtab"][1], sections[".symtab"][1]
    found = {}
    for i, entry in enumerate(_SYMBOL.iter_unpack(table)):
        if entry[1] & 15 == 2:
            found[i] = texts[entry[0] : texts.index(0, entry[0])].decode()
    return found


def _attributes(info: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(info):
        form, attribute, size = struct.unpack_from("<2BH", info, at)
        at += 4
        if form == _PAYLOAD:
            yield attribute, info[at : at + size]
            at += size


def _spills(code: bytes, capability: int) -> int:
    total = 0
    if capability >= 70:
        for low, high in struct.iter_unpack("<2Q", code):
            if low & 0xFFF in _VOLTA_LOCAL:
                total += _WIDTHS[high >> 9 & 7]
        return total
    for words in struct.iter_unpack("<4Q", code):  # the first one schedules the other three
        total += sum(_WIDTHS[w >> 48 & 7] for w in words[1:] if w >> 51 in _MAXWELL_LOCAL)
    return total


def occupancy(gpu: Gpu, threads: int, registers: int, shared: int) -> float:
    """Share of a multiprocessor's threads that blocks of one kernel keep resident, 0 to 1.

    Args:
        gpu: the device.
        threads: of a block.
        registers: of a thread.
        shared: bytes of shared memory of a block.
    """
    warps = -(-threads // gpu.warp)
    blocks = resident_blocks(gpu, threads, registers, shared)
    return blocks * warps * gpu.warp / gpu.threads_per_sm
