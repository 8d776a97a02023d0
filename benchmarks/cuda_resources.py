"""What the default configs use of each architecture: registers, spills, shared memory, occupancy.

    python benchmarks/cuda_resources.py mobilenet_v1
    python benchmarks/cuda_resources.py mobilenet_v1 --write docs/cuda.md
    python benchmarks/cuda_resources.py mobilenet_v2 --dtype float16 --layout nhwc --targets t4

Builds a bundle for each target, or takes MODEL-TARGET.tvmsep (with `-` for `:`) from a folder
(--bundles), and reads the cubins; needs no GPU and measures nothing. With --write the table, which
is that of the default form and targets, replaces what stands between the file's comments
`<!-- MODEL -->` and `<!-- /MODEL -->`. The exit status is 1 if a kernel spills.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tvmsep.api import build
from tvmsep.bundle import Package
from tvmsep.codegen.cubin import KernelResources, kernel_resources
from tvmsep.codegen.imports import cuda_modules, imports_of
from tvmsep.compiler.emit import WORKLOAD
from tvmsep.contracts import InputError, TvmsepError, Workload
from tvmsep.graph import LAYOUTS
from tvmsep.profile import parse_relax

TARGETS = ("jetson-nano", "t4", "a100", "rtx-30", "jetson-orin", "rtx-40", "h100")


def resources(
    path: Path, target: str, dtype: str, layout: str
) -> tuple[str, dict[str, KernelResources]]:
    """The architecture of a bundle, and what each of its device kernels uses, by its label.

    Raises:
        InputError: it is for another target or of another form, or its configs come from a log.
    """
    with Package(path) as package:
        m = package.manifest
        form = (m.target.name, m.precision, m.layout or LAYOUTS[0])
        if form != (target, dtype, layout) or m.log_lines:
            what = " ".join(form) + (" from a log" if m.log_lines else "")
            raise InputError(
                f"{path} is {what}, not the defaults of {target} {dtype} {layout}: build it with "
                "--no-logs"
            )
        gpu, variant = package.manifest.target.gpu, package.manifest.specialisations[0].variants[0]
        if gpu is None:
            raise InputError(f"{path} is for a CPU: give targets with a GPU")
        module = parse_relax(package.read(variant.relax).decode(), path)
        packed = imports_of(package.read(variant.library))
    labels = {}
    for var, func in module.functions.items():
        if WORKLOAD in (func.attrs or {}):
            workload = msgspec.json.decode(str(func.attrs[WORKLOAD]), type=Workload)
            labels[var.name_hint] = workload.label
    found = {}
    for held in cuda_modules(packed) if packed else ():
        for kernel in kernel_resources(held.code, gpu):
            of, part = re.fullmatch(r"(.*)_kernel(_\d+)?", kernel.name).groups()  # type: ignore[union-attr]
            if of in labels:  # the others are the fallback's
                found[labels[of] + (part or "").replace("_", ", kernel ")] = kernel
    return gpu.arch, found


def cell(kernel: KernelResources | None) -> str:
    """One kernel on one architecture, in a few characters."""
    if kernel is None:
        return ""
    shared = f" {kernel.shared_bytes / 1024:.1f}K" if kernel.shared_bytes else ""
    spills = f" **spills {kernel.spill_bytes}**" if kernel.spill_bytes else ""
    return f"{kernel.registers}{shared} {kernel.occupancy:.0%}{spills}"


def table(model: str, columns: dict[str, dict[str, KernelResources]]) -> list[str]:
    """Markdown: a kernel a row, an architecture a column, then medians and the count of spills."""
    rows = list(dict.fromkeys(label for column in columns.values() for label in column))
    lines = [
        f"| {model} | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        *(
            f"| {label} | " + " | ".join(cell(c.get(label)) for c in columns.values()) + " |"
            for label in rows
        ),
    ]
    summary = []
    for column in columns.values():
        kernels = column.values()
        half = statistics.median(k.occupancy for k in kernels)
        spilling = sum(k.spill_bytes > 0 for k in kernels)
        summary.append(f"{max(k.registers for k in kernels)}, {half:.0%}, {spilling}")
    return [
        *lines, "| most registers, median occupancy, kernels that spill | "
        + " | ".join(summary) + " |",
    ]  # fmt: skip


def replaced(text: str, model: str, lines: Sequence[str]) -> str:
    """A document with a model's table in its place."""
    begin, end = f"<!-- {model} -->", f"<!-- /{model} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise InputError(
            f"--write: the file has no {begin} and {end}: put them where the table goes"
        )
    before, _, rest = text.partition(begin)
    return before + "\n".join([begin, "", *lines, "", end]) + rest.partition(end)[2]


def main() -> int:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"))
    parser.add_argument("--layout", default="nchw4c", choices=LAYOUTS)
    parser.add_argument("--bundles", type=Path, help="a folder with bundles that were built before")
    parser.add_argument("--write", type=Path, help="a document to put the table into")
    args = parser.parse_args()
    try:
        if args.write:
            form = (args.dtype, args.layout, args.targets)
            if form != ("float32", LAYOUTS[0], ",".join(TARGETS)):
                raise InputError("--write: the document's table is that of the default form")
            replaced(args.write.read_text(), args.model, [])
        columns = {}
        for name in args.targets.split(","):
            file = f"{Path(args.model).name.replace(':', '-')}-{Path(name).stem}.tvmsep"
            with tempfile.TemporaryDirectory() as scratch:
                bundle = (args.bundles or Path(scratch)) / file
                if not args.bundles:
                    print(f"building {file}", file=sys.stderr, flush=True)
                    build(
                        args.model, target=name, out=bundle, logs=(), dtype=args.dtype,
                        layout=args.layout,
                    )  # fmt: skip
                arch, found = resources(bundle, Path(name).stem, args.dtype, args.layout)
            columns[arch] = found
        lines = table(args.model, columns)
        if args.write:
            from tvmsep.bundle.archive import write_file

            text = replaced(args.write.read_text(), args.model, lines).encode()
            write_file(args.write, lambda file: file.write(text))
        else:
            print("\n".join(lines))
    except (TvmsepError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(any(k.spill_bytes for column in columns.values() for k in column.values()))


if __name__ == "__main__":
    sys.exit(main())
