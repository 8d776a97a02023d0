"""Take a bundle apart: as a folder, as a tar of that folder, its library or a header alone."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from tvmsep.bundle.archive import cannot_write, write_file
from tvmsep.bundle.header import c_header
from tvmsep.bundle.manifest import MANIFEST
from tvmsep.bundle.package import Package
from tvmsep.bundle.runtime import allowed_cpus
from tvmsep.contracts import InputError
from tvmsep.contracts.words import counted

Format = Literal["so", "tar", "dir", "header"]


def export(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    format: Format,
    *,
    threads: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> list[str]:
    """Write a bundle's members where other programs find them, each checked before.

    Args:
        path: the bundle; it needn't fit this host.
        out: what to make: a folder for `dir`, else a file.
        format: `dir`: every member as a file. `tar`: the same in an uncompressed tar, under a
            folder named like `out`, equal bundles giving equal tars. `so`: the library alone, a
            Relax VM executable whose `main` takes the inputs and then the weights.
            `header`: names, shapes and preprocessing for C.
        threads: for `so`, whose library: the variant for this count; by default the one that
            `Bundle.load` would take.
        shapes: of the inputs by name. For `so`, whose library; for `header`, which come first. By
            default the bundle's first.

    Returns:
        Names of the members that were written.

    Raises:
        BundleError: damaged bundle, or `out` cannot be written; nothing is left behind then.
        InputError: `out` is a folder with something in it, or no name in C can begin with its
            stem, the bundle has no variant for `threads` or `shapes`, or these came with a format
            that takes all variants.
    """
    out = Path(out)
    if out.exists() and out.samefile(path):
        raise InputError(f"{out} is the bundle itself: name another place with -o")
    with Package(path) as package:
        which = package.manifest.find(shapes)
        if format == "so":
            variant = package.pick(threads, len(allowed_cpus()), which)
            if threads is not None and variant.threads != threads:
                has = counted("thread", *(v.threads for v in package.manifest.variants))
                raise InputError(f"{path} has libraries for {has}, none for {threads}")
            library = package.read(variant.library)
            write_file(out, lambda file: file.write(library))
            return [variant.library]
        if threads is not None:
            raise InputError(f"--format {format} holds every thread count; --threads is for so")
        if format == "header":
            text = c_header(package.manifest.led_by(which), out.stem)
            write_file(out, lambda file: file.write(text.encode()))
            return [MANIFEST]
        if shapes is not None:
            raise InputError(
                f"--format {format} holds every shape; --shape is for so, header and object"
            )
        contents = {name: package.read(name) for name in package.members()}
    if format == "dir":
        _write_folder(out, contents)
    else:
        write_file(out, lambda file: _write_tar(file, out.name.removesuffix(".tar"), contents))
    return list(contents)


def _write_folder(out: Path, contents: dict[str, bytes]) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is a folder with something in it; name one that isn't there")
    temporary = out.parent / f".tvmsep-{secrets.token_hex(8)}"
    try:
        temporary.mkdir()
        for name, data in contents.items():
            file = temporary / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)
        os.replace(temporary, out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # renamed, or never made


def _write_tar(file: BinaryIO, top: str, contents: dict[str, bytes]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in contents.items():
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
