"""`export`: a bundle for who runs it without tvmsep."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from tvmsep.cli import options
from tvmsep.cli.options import BundlePath, BundleShape

if TYPE_CHECKING:
    from tvmsep.bundle.unpack import Format


class ExportFormat(enum.StrEnum):
    """What `export` makes."""

    so = "so"
    tar = "tar"
    dir = "dir"
    header = "header"
    object = "object"


def export(
    bundle: BundlePath,
    format: Annotated[ExportFormat, typer.Option(help="What to make; docs/deploy.md says more.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File or folder to make.")],
    threads: Annotated[
        int | None, typer.Option(min=1, help="For so and object: the network of this thread count.")
    ] = None,
    shape: BundleShape = None,
) -> None:
    """Take a bundle apart (so, tar, dir), or make a C header or an object to link of it."""
    from tvmsep.bundle import Package
    from tvmsep.bundle import export as unpack

    shapes = options.shapes(shape)
    if format is ExportFormat.object:
        from tvmsep.api import export_object

        export_object(bundle, output, threads=threads, shapes=shapes)
    else:
        written = unpack(bundle, output, cast("Format", format.value), threads=threads,
                         shapes=shapes)  # fmt: skip
    with Package(bundle, verify=False) as package:
        which = package.manifest.find(shapes)
        note = package.manifest.shape_note(which)
        also = f" {package.manifest.specialisations[which].options}" if shapes else ""
        count = len(package.manifest.specialisations)
        needs = "libtvm_runtime and libtvm_ffi"
        if package.manifest.target.gpu is not None:
            needs = f"libtvm_runtime_cuda, {needs}"
    of = f", for {note}" if note else ""
    if format is ExportFormat.object:
        print(
            f"{output}: kernels, weights and manifest{of}; link it with {needs}; its names: "
            f"tvmsep export {bundle} --format header{also} -o {output.with_suffix('')}.h"
        )
    elif format is ExportFormat.so:
        print(
            f"{output}: {written[0]}{of}; the weights that its main takes after the inputs are in "
            "weights.safetensors: see --format dir"
        )
    elif format is ExportFormat.header:
        first = f" of {count} shapes, first {note}" if note else ""
        print(f"{output}: inputs, outputs{first} and preprocessing")
    else:
        print(f"{output}: {len(written)} members")
