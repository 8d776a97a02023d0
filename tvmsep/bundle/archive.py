"""The container: a zip whose every byte is determined by its members.

Members are stored uncompressed, sorted by name, without dates or attributes, one behind the other.
So equal contents make equal files, any zip tool lists and unpacks one, and a reader can check
every byte: headers against what they must be, contents against the checksums of the manifest.
Python's `zipfile` isn't used because what it writes differs between versions, and what it accepts
is far wider.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from tvmsep.contracts import BundleError, InputError

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_VERSION, _STORED, _DATE = 20, 0, 0x21  # 1980-01-01, the earliest date a zip can hold
_LIMIT = 2**32 - 1
_MAX_DIRECTORY = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")


class Member(NamedTuple):
    """Where one member lies in the file, in bytes."""

    name: str
    crc: int
    size: int
    offset: int

    def local_header(self) -> bytes:
        """The header in front of the contents."""
        return (
            _LOCAL.pack(
                b"PK\3\4",
                *(_VERSION, 0, _STORED, 0, _DATE),
                *(self.crc, self.size, self.size, len(self.name), 0),
            )
            + self.name.encode()
        )

    def central_header(self) -> bytes:
        """The entry in the directory at the end of the file."""
        return (
            _CENTRAL.pack(
                b"PK\1\2",
                *(_VERSION, _VERSION, 0, _STORED, 0, _DATE),
                *(self.crc, self.size, self.size, len(self.name), 0, 0, 0, 0, 0, self.offset),
            )
            + self.name.encode()
        )

    @property
    def data_offset(self) -> int:
        """Where the contents begin."""
        return self.offset + _LOCAL.size + len(self.name)

    @property
    def end(self) -> int:
        """Where the next member begins."""
        return self.data_offset + self.size


def _end_record(members: Sequence[Member], directory: bytes, at: int) -> bytes:
    return _END.pack(b"PK\5\6", 0, 0, len(members), len(members), len(directory), at, 0)


def write_archive(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write the members to `path`: a temporary file beside it, synced, then renamed.

    Raises:
        BundleError: the folder cannot be written, the disk is full, or the whole passes 4 GiB.
            Nothing is left behind, and a file that was there before stays as it was.
    """
    members, offset = [], 0
    for name in sorted(contents):
        if not _NAME.fullmatch(name):
            raise BundleError(f"{name!r} cannot name a bundle's member")
        members.append(Member(name, zlib.crc32(contents[name]), len(contents[name]), offset))
        offset = members[-1].end
    directory = b"".join(m.central_header() for m in members)
    if offset + len(directory) + _END.size > _LIMIT:
        raise BundleError(f"{path} would hold {offset} bytes; a bundle holds at most {_LIMIT}")

    def fill(file: BinaryIO) -> None:
        for member in members:
            file.write(member.local_header())
            file.write(contents[member.name])
        file.write(directory + _end_record(members, directory, offset))

    write_file(path, fill)


def check_replaceable(path: Path, *inputs: str | os.PathLike[str]) -> None:
    """See that an output replaces neither a device or a pipe, nor what is read.

    Args:
        path: the output.
        *inputs: what the same command reads; those that are no files are passed over.

    Raises:
        InputError: it would.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # not there, or writing says why not
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"cannot write {path}: it is a device or a pipe; name a file")
    for name in inputs:
        if os.path.exists(name) and path.samefile(name):
            raise InputError(f"cannot write {path}: it is what is read; name another output")


def write_file(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file so that it is there whole or not at all.

    Args:
        path: the file to make or replace.
        fill: called with a binary file open for writing.

    Raises:
        BundleError: the operating system refused; nothing is left behind.
    """
    check_replaceable(path)
    temporary = path.parent / f".tvmsep-{secrets.token_hex(8)}"
    try:
        with open(temporary, "xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # renamed, or never made
            os.unlink(temporary)


def cannot_write(path: Path, error: OSError) -> BundleError:
    """The message for a file or folder that the operating system refused."""
    return BundleError(
        f"cannot write {path}: {error.strerror or error}; "
        "choose a place with write permission and room"
    )


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Archive:
    """An open bundle file whose structure has been checked. Use as a context manager.

    Raises:
        BundleError: the file cannot be read, or isn't exactly what `write_archive` makes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise BundleError(f"cannot read {self.path}: {error.strerror or error}") from error
        try:
            self.members = {m.name: m for m in self._read_directory()}
        except BaseException:
            self._file.close()
            raise

    def _read_directory(self) -> list[Member]:
        size = os.fstat(self._file.fileno()).st_size
        if size == 0:
            raise BundleError(f"{self.path} is empty, not a tvmsep bundle")
        if self._read_at(0, min(4, size)) != b"PK\3\4":
            raise BundleError(f"{self.path} is not a tvmsep bundle (bundles are zip files)")
        if size < _END.size:
            raise self._damaged("it is cut short")
        end = self._read_at(size - _END.size, _END.size)
        magic, _, _, _, count, length, start, _ = _END.unpack(end)
        if magic != b"PK\5\6" or start + length + _END.size != size:
            raise self._damaged("it is cut short, or something was added to it")
        if length > _MAX_DIRECTORY:
            raise self._damaged(f"its directory takes {length} bytes")
        directory = self._read_at(start, length)
        members = list(self._parse(directory))
        if end != _end_record(members, directory, start) or count != len(members):
            raise self._damaged("its directory does not add up")
        position = 0
        for member in members:
            if member.offset != position:
                raise self._damaged(f"{member.name} is not where it should be")
            position = member.end
        names = [m.name for m in members]
        if position != start or names != sorted(set(names)):
            raise self._damaged("its members are out of order")
        for member in members:
            header = member.local_header()
            if self._read_at(member.offset, len(header)) != header:
                raise self._damaged(f"the header of {member.name} was changed")
        return members

    def _parse(self, directory: bytes) -> Iterable[Member]:
        at = 0
        while at < len(directory):
            fixed = directory[at : at + _CENTRAL.size]
            if len(fixed) < _CENTRAL.size:
                raise self._damaged("its directory is cut short")
            fields = _CENTRAL.unpack(fixed)
            crc, size, length, offset = fields[7], fields[8], fields[10], fields[16]
            raw = directory[at + _CENTRAL.size : at + _CENTRAL.size + length]
            name = raw.decode("ascii", errors="replace")
            if not _NAME.fullmatch(name):
                raise self._damaged(f"it has a member named {name!r}")
            member = Member(name, crc, size, offset)
            header = member.central_header()
            if directory[at : at + len(header)] != header:
                raise self._damaged(f"the directory entry of {name} was changed")
            at += len(header)
            yield member

    def _damaged(self, why: str) -> BundleError:
        return BundleError(
            f"{self.path} is damaged or was repacked: {why}; copy it again, or build it again"
        )

    def _read_at(self, offset: int, size: int) -> bytes:
        buffer = bytearray(size)
        self._fill(offset, memoryview(buffer))
        return bytes(buffer)

    def _fill(self, offset: int, buffer: memoryview) -> None:
        try:
            self._file.seek(offset)
            while len(buffer):
                got = self._file.readinto(buffer)
                if not got:
                    raise self._damaged("it is cut short")
                buffer = buffer[got:]
        except OSError as error:
            raise BundleError(f"cannot read {self.path}: {error.strerror or error}") from error

    def _find(self, name: str) -> Member:
        if name not in self.members:
            raise self._damaged(f"it has no {name}")
        return self.members[name]

    def size(self, name: str) -> int:
        """Bytes in a member."""
        return self._find(name).size

    def read(self, name: str) -> bytes:
        """The contents of a member, checked against the directory's CRC-32."""
        member = self._find(name)
        contents = self._read_at(member.data_offset, member.size)
        if zlib.crc32(contents) != member.crc:
            raise self._damaged(f"the contents of {name} were changed")
        return contents

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Fill `buffer`, as long as the member, with its contents; no checksum is compared."""
        member = self._find(name)
        if len(buffer) != member.size:
            raise ValueError(f"{name} has {member.size} bytes, the buffer {len(buffer)}")
        self._fill(member.data_offset, buffer)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
