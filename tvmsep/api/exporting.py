"""A bundle's network as an object file for static linking."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tvmsep.contracts import InputError
from tvmsep.contracts.words import counted


def export_object(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    threads: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Write one object file with the network's kernels and program, its weights and its manifest.

    It is compiled again, from the Relax text in the bundle, which is what the bundle's library was
    compiled from. Where it is linked, its functions register themselves with TVM's runtime under
    the prefix that the C header names (`export` with the format `header`).

    Args:
        path: the bundle; it needn't fit this host.
        out: the object file; names in it begin with its stem.
        threads: the variant for this count; by default the one for the most threads.
        shapes: of the inputs by name; by default the bundle's first. Its manifest has them first,
            as the C header that is made with the same `shapes` has.

    Raises:
        BundleError: damaged bundle, made by another TVM, or `out` cannot be written.
        InputError: there is no variant for `threads` or `shapes`, or the stem cannot begin a name
            in C.
        LinkError: the target's objects cannot be made here.
    """
    from tvmsep.bundle import Package
    from tvmsep.bundle.archive import write_file
    from tvmsep.bundle.header import symbol
    from tvmsep.bundle.manifest import MANIFEST, WEIGHTS
    from tvmsep.compiler import SYSTEM_LIB, compile_object, lower, read_relax

    out = Path(out)
    name = symbol(out.stem)
    if out.exists() and out.samefile(path):
        raise InputError(f"{out} is the bundle itself: name another file with -o")
    with Package(path) as package:
        package.check_runtime()
        which = package.manifest.find(shapes)
        manifest = package.manifest.led_by(which)
        variant = package.pick(threads, max(v.threads for v in manifest.variants), which)
        if threads is not None and variant.threads != threads:
            has = counted("thread", *(v.threads for v in manifest.variants))
            raise InputError(f"{path} has variants for {has}, none for {threads}")
        text = package.read(variant.relax).decode()
        data = {
            f"{name}_manifest.json": manifest.to_json() if which else package.read(MANIFEST),
            f"{name}_weights.safetensors": package.read(WEIGHTS),
        }
    advice = f"build it again: tvmsep build MODEL --log {path}"
    module = read_relax(text, path, advice).with_attr(SYSTEM_LIB, f"{name}_")
    contents = compile_object(lower(module, manifest.target), manifest.target, data)
    write_file(out, lambda file: file.write(contents))
