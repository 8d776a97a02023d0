"""Arrays as TVM stores them: `relay.save_param_dict` files, and constants in Relay's metadata.

All little-endian. A file is a magic number (uint64), a reserved one, the names (their count, then
length and bytes of each), the count of arrays, the arrays. An array is a magic number, a reserved
one, its device (two int32), its rank (int32), its dtype (code and bits as bytes, lanes as uint16),
its shape (int64 each), its size in bytes (int64), its data. Every size is compared with what is
left of the file before it is believed.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tvmsep.contracts import ModelError

_LIST_MAGIC = 0xF7E58D4F05049CB7
_ARRAY_MAGIC = 0xDD5E40F096B4A13F
_ARRAY = struct.Struct("<QQiiiBBH")
_MAX_RANK = 16
_KINDS = {0: "i", 1: "u", 2: "f"}
_MAX_NAME_BYTES = 4096

Array = np.ndarray[Any, Any]


class _Damaged(Exception):
    """What is wrong with the bytes."""


class _Reader:
    """Takes bytes off the front, never past the end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = memoryview(data), 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int, what: str) -> memoryview:
        if size < 0 or size > self.left:
            raise _Damaged(f"{what} takes {size} bytes at byte {self.at}, and {self.left} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def uint64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def count(self, what: str, least_bytes: int) -> int:
        """A number of things that take at least so many bytes each."""
        number = self.uint64(what)
        if number * least_bytes > self.left:
            raise _Damaged(f"{what} is {number}, more than the {self.left} bytes left can hold")
        return number


def _array(reader: _Reader, what: str) -> Array:
    header = reader.take(_ARRAY.size, what)
    magic, _, _, _, rank, kind, bits, lanes = _ARRAY.unpack(header)
    if magic != _ARRAY_MAGIC:
        raise _Damaged(f"{what} does not begin as an array does")
    if not 0 <= rank <= _MAX_RANK:
        raise _Damaged(f"{what} has {rank} dimensions (at most {_MAX_RANK})")
    if kind not in _KINDS or bits not in (8, 16, 32, 64) or (kind == 2 and bits == 8) or lanes != 1:
        raise _Damaged(f"{what} is of an unknown dtype (code {kind}, {bits} bits, {lanes} lanes)")
    dtype = np.dtype(f"<{_KINDS[kind]}{bits // 8}")
    shape = struct.unpack(f"<{rank}q", reader.take(8 * rank, f"the shape of {what}"))
    size = reader.uint64(f"the size of {what}")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise _Damaged(f"{what} has the shape {shape} of {dtype.name}, but {size} bytes")
    data = reader.take(size, what)
    return np.frombuffer(data, dtype).reshape(shape)


def decode_array(data: bytes, what: str) -> Array:
    """One array, as `b64ndarrays` of the metadata hold it.

    Raises:
        ModelError: the bytes are no array; `what` names it.
    """
    reader = _Reader(data)
    try:
        array = _array(reader, what)
        if reader.left:
            raise _Damaged(f"{what} has {reader.left} bytes too many")
    except _Damaged as error:
        raise ModelError(f"{error}: the metadata is damaged; save it again") from error
    return array


def read_params(path: Path) -> dict[str, Array]:
    """The arrays that `relay.save_param_dict` wrote, by name.

    Raises:
        ModelError: the file is missing, cut off, damaged, or of another format.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"cannot read the params file {path}: {error.strerror}; check --params"
        ) from error
    reader = _Reader(data)
    try:
        if reader.uint64("the magic number") != _LIST_MAGIC:
            raise _Damaged("it does not begin as relay.save_param_dict's files do")
        reader.take(8, "the header")
        names = []
        for n in range(reader.count("the number of names", 8)):
            size = reader.uint64(f"the length of name {n}")
            if size > _MAX_NAME_BYTES:
                raise _Damaged(f"name {n} has {size} bytes (at most {_MAX_NAME_BYTES})")
            names.append(str(reader.take(size, f"name {n}"), "utf-8"))
        count = reader.count("the number of arrays", _ARRAY.size)
        if count != len(names) or len(set(names)) != count:
            raise _Damaged(f"it holds {count} arrays under {len(set(names))} names")
        arrays = {name: _array(reader, f"array {name}") for name in names}
        if reader.left:
            raise _Damaged(f"{reader.left} bytes follow the last array")
    except (_Damaged, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path} is no params file, or is damaged: {error}; write it again with "
            "relay.save_param_dict(params)"
        ) from error
    return arrays
