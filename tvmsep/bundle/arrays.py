"""Arrays from users' files: `.npy`, and `.npz` of which only what is asked for is read."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tvmsep.bundle.manifest import TensorInfo
from tvmsep.contracts import InputError

_HEADER_BYTES = 1 << 16
_MOST_BYTES = 2 << 30
_DAMAGE = (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) + (
    MemoryError,  # a header that claims more than there is
)
"""What reading a damaged or encrypted archive raises, besides ValueError."""


class _Tensor(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


def noise(tensors: Sequence[_Tensor], seed: int = 0) -> list[NDArray[Any]]:
    """Seeded inputs: standard normal where the dtype is floating, zeros and ones otherwise."""
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal(t.shape).astype(t.dtype)
        if t.dtype.startswith("float")
        else rng.integers(0, 2, t.shape).astype(t.dtype)
        for t in tensors
    ]


def read_npy(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array that `numpy.save` wrote; nothing is unpickled.

    Raises:
        InputError: the file cannot be read or holds no array.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is no array that numpy.save wrote: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} holds several arrays; save one with numpy.save")
    return array


def names_in_npz(path: str | os.PathLike[str]) -> list[str]:
    """The names of a `.npz` file's arrays.

    Raises:
        InputError: the file cannot be read or is no `.npz`.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return [n.removesuffix(".npy") for n in file.namelist()]
    except (*_DAMAGE, ValueError) as error:
        raise InputError(f"{path} is no .npz file that can be read: {error}") from error


def read_npz(
    path: str | os.PathLike[str], wanted: Mapping[str, TensorInfo]
) -> dict[str, NDArray[Any]]:
    """Arrays of a `.npz` file, each of exactly the shape and dtype that is wanted.

    A member that is larger than its array can be is refused before it is unpacked, so that a small
    file cannot fill the memory.

    Args:
        path: what `numpy.savez` wrote.
        wanted: by the name in the file.

    Raises:
        InputError: the file cannot be read, or lacks one, or one does not fit.
    """
    found, names = {}, names_in_npz(path)
    for name in wanted:
        if name not in names:
            there = ", ".join(names[:8]) or "nothing"
            raise InputError(f"{path} has no array {name}: it holds {there}")
    try:
        with zipfile.ZipFile(path) as file:
            for name, tensor in wanted.items():
                found[name] = _member(file, name, tensor, path)
    except _DAMAGE as error:
        raise InputError(f"{path} is damaged: {error}; record it again") from error
    return found


def _member(file: zipfile.ZipFile, name: str, tensor: TensorInfo, path: object) -> NDArray[Any]:
    size = file.getinfo(f"{name}.npy").file_size
    most = int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize + _HEADER_BYTES
    if size > most:
        raise InputError(f"{name} in {path} takes {size} bytes, {tensor} takes {most} at most")
    try:
        with file.open(f"{name}.npy") as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{name} in {path} is no array: {error}; record it again") from error
    if array.shape != tensor.shape or str(array.dtype) != tensor.dtype:
        raise InputError(f"{name} in {path} is {array.dtype} {array.shape}; needed is {tensor}")
    return np.asarray(array)


def read_any(path: str | os.PathLike[str], names: list[str]) -> list[NDArray[Any]]:
    """Arrays of a `.npz` file of whatever shapes.

    Raises:
        InputError: the file cannot be read, or would unpack to over 2 GiB.
    """
    try:
        with zipfile.ZipFile(path) as file:
            size = sum(file.getinfo(f"{n}.npy").file_size for n in names)
            if size > _MOST_BYTES:
                raise InputError(
                    f"{path} unpacks to {size} bytes (at most {_MOST_BYTES}): split it"
                )
            arrays = []
            for name in names:
                with file.open(f"{name}.npy") as member:
                    arrays.append(np.lib.format.read_array(member, allow_pickle=False))
    except (*_DAMAGE, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}; write it again") from error
    return arrays
