"""A look at a shared library before the system's loader maps it.

The loader trusts an ELF file's own lengths: of a library that was cut short it maps pages that
aren't there, and the process dies of SIGBUS when it touches them.
"""

from __future__ import annotations

import struct

_HEADER = struct.Struct("<16s2HI3QI6H")
_SEGMENT = struct.Struct("<2I6Q")
_SHARED_OBJECT, _PT_LOAD = 3, 1


def elf_fault(data: bytes) -> str | None:
    """Why `data` is no whole 64-bit little-endian ELF shared library, or None if it is."""
    if len(data) < _HEADER.size or data[:6] != b"\x7fELF\2\1":
        return "it is no 64-bit ELF file"
    fields = _HEADER.unpack_from(data)
    kind, table, size, count = fields[1], fields[5], fields[9], fields[10]
    if kind != _SHARED_OBJECT or size != _SEGMENT.size:
        return "it is no shared library"
    if table + size * count > len(data):
        return "it is cut short"
    segments = [_SEGMENT.unpack_from(data, table + i * size) for i in range(count)]
    ends = [s[2] + s[5] for s in segments if s[0] == _PT_LOAD]
    if not ends:
        return "it has nothing to load"
    return "it is cut short" if max(ends) > len(data) else None
