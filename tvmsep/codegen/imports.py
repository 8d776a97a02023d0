"""The serialised imports of a module, as TVM's loader reads them out of a library.

Eight bytes of length, the import tree (two lists of numbers), then for each module its kind and,
but for the library itself, its bytes. Those of a CUDA module are the code's format, a table of
functions and the code. Numbers have eight bytes, little-endian; texts and lists have their length
before them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tvmsep.contracts import TvmsepError

SYMBOL = b"__tvm_ffi__library_bin"
"""Of the imports in a shared library."""
_U64 = struct.Struct("<Q")
_SELF, _CUDA = b"_lib", b"cuda"
_SOURCE = b"cuda"
_DYNAMIC_SHARED = b"tirx.use_dyn_shared_memory"


class ImportsError(TvmsepError):
    """A library does not hold what TVM's loader looks for."""


@dataclass(frozen=True)
class CudaModule:
    """One module of device code.

    Attributes:
        compiled: whether `code` is machine code, not CUDA C.
        code: one or the other.
        dynamic: names of the kernels that take shared memory whose size is given at each launch.
    """

    compiled: bool
    code: bytes
    dynamic: frozenset[str]


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def number(self) -> int:
        (value,) = _U64.unpack(self.take(8))
        return int(value)

    def text(self) -> bytes:
        return self.take(self.number())

    def take(self, size: int) -> bytes:
        if self.at + size > len(self._data):
            raise ImportsError("the device code in this library is cut short: build it again")
        self.at += size
        return self._data[self.at - size : self.at]

    def since(self, start: int) -> bytes:
        return self._data[start : self.at]


def _text(value: bytes) -> bytes:
    return _U64.pack(len(value)) + value


def _split(packed: bytes) -> tuple[bytes, list[tuple[bytes, bytes | None]]]:
    """The tree as it is, and each module's kind and bytes (None for the library itself)."""
    reader = _Reader(packed)
    reader.number()
    start = reader.at
    modules = reader.number() - 1
    reader.take(8 * (modules + 1))
    reader.take(8 * reader.number())
    tree = reader.since(start)
    found = []
    for _ in range(modules):
        kind = reader.text()
        found.append((kind, None if kind == _SELF else reader.text()))
    return tree, found


def _functions(reader: _Reader) -> frozenset[str]:
    """Pass over the table of functions: name, types, launch parameters, extra tags of each."""
    dynamic = set()
    for _ in range(reader.number()):
        name = reader.text()
        reader.text()
        reader.take(4 * reader.number())
        tags = [reader.text() for _ in range(reader.number())]
        reader.take(4 * reader.number())
        if _DYNAMIC_SHARED in tags:
            dynamic.add(name.decode())
    return frozenset(dynamic)


def cuda_modules(packed: bytes) -> Iterator[CudaModule]:
    """The modules of device code among packed imports.

    Raises:
        ImportsError: they are damaged.
    """
    for kind, contents in _split(packed)[1]:
        if kind == _CUDA and contents is not None:
            reader = _Reader(contents)
            form = reader.text()
            dynamic = _functions(reader)
            yield CudaModule(form != _SOURCE, reader.text(), dynamic)


def with_images(packed: bytes, image_of: Callable[[str], tuple[str, bytes]]) -> tuple[bytes, int]:
    """Packed imports with the source of each CUDA module compiled, and how many there were.

    Args:
        packed: as TVM makes them.
        image_of: what becomes of CUDA C: a format that TVM knows, `cubin` or `ptx`, and the code.

    Raises:
        ImportsError: they are not what TVM 0.27 writes.
    """
    tree, modules = _split(packed)
    parts, count = [tree], 0
    for kind, contents in modules:
        parts.append(_text(kind))
        if kind == _CUDA and contents is not None:
            reader = _Reader(contents)
            form = reader.text()
            start = reader.at
            _functions(reader)
            table = reader.since(start)
            if form == _SOURCE:
                form_now, image = image_of(reader.text().decode())
                contents = _text(form_now.encode()) + table + _text(image)
                count += 1
        if contents is not None:
            parts.append(_text(contents))
    body = b"".join(parts)
    return _U64.pack(len(body)) + body, count


_HEADER = struct.Struct("<16s2HI3QI6H")
_SECTION = struct.Struct("<2I4Q2I2Q")
_SYMBOL_ENTRY = struct.Struct("<I2BH2Q")
_DYNSYM = 11


def imports_of(library: bytes) -> bytes | None:
    """The packed imports in a 64-bit ELF shared library, or None where there are none.

    Raises:
        ImportsError: it is no such library, or cut short.
    """
    try:
        return _imports_of(library)
    except (struct.error, IndexError, ValueError) as error:
        raise ImportsError(f"the library is damaged ({error}): build it again") from error


def _imports_of(library: bytes) -> bytes | None:
    if library[:6] != b"\x7fELF\2\1":
        raise ImportsError("the library is no 64-bit ELF file")
    header = _HEADER.unpack_from(library)
    sections = [
        _SECTION.unpack_from(library, header[6] + i * header[11]) for i in range(header[12])
    ]
    for section in sections:
        if section[1] != _DYNSYM:
            continue
        names = sections[section[6]]
        texts = library[names[4] : names[4] + names[5]]
        for entry in _SYMBOL_ENTRY.iter_unpack(library[section[4] : section[4] + section[5]]):
            if texts[entry[0] : entry[0] + len(SYMBOL) + 1] == SYMBOL + b"\0":
                home = sections[entry[3]]
                start = home[4] + entry[4] - home[3]
                (size,) = _U64.unpack_from(library, start)
                return library[start : start + 8 + size]
    return None
