"""What the default configs use of each architecture: registers, spills, shared memory, occupancy.

    python benchmarks/cuda_resources.py mobilenet_v1
    python benchmarks/cuda_resources.py mobilenet_v1 --write docs/cuda.md
    python benchmarks/cuda_resources.py mobilenet_v2 --dtype float16 --layout nhwc --targets t4

Compiles the network for each target by NVRTC and reads the cubins; needs no GPU and measures
nothing. With --write the table replaces what stands between the file's comments
`<!-- MODEL -->` and `<!-- /MODEL -->`. The exit status is 1 if a kernel spills.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tvmsep.api import prepare
from tvmsep.codegen.cubin import KernelResources, kernel_resources
from tvmsep.codegen.imports import cuda_modules, imports_of
from tvmsep.compiler import compile_library, emit, lower
from tvmsep.compiler.emit import WORKLOAD
from tvmsep.contracts import Config, InputError, TvmsepError, Workload
from tvmsep.graph import LAYOUTS
from tvmsep.schedules import TEMPLATES
from tvmsep.tuner.fusion import choose_plan

TARGETS = ("jetson-nano", "t4", "a100", "rtx-30", "jetson-orin", "rtx-40", "h100")


def resources(
    model: str, name: str, dtype: str = "float32", layout: str = "nchw4c"
) -> tuple[str, dict[str, KernelResources]]:
    """The architecture of a target, and what each device kernel of a model uses, by its label."""
    prepared = prepare(model, target=name, threads=[1], dtype=dtype, layout=layout)
    target = prepared.target
    if target.gpu is None:
        raise InputError(f"--targets: {name} is a CPU")
    (separate,) = prepared.plans.values()
    plan, _ = choose_plan(separate, target, {})
    configs: dict[Workload, tuple[str, Config]] = {}
    for task in plan.tasks(target):
        default = TEMPLATES[task.template].default(task.workload, target, task.threads)
        configs[task.workload] = task.template, default
    module = emit(plan, target, configs)
    labels = {}
    for var, func in module.functions.items():
        if WORKLOAD in (func.attrs or {}):
            workload = msgspec.json.decode(str(func.attrs[WORKLOAD]), type=Workload)
            labels[var.name_hint] = workload.label
    packed = imports_of(compile_library(lower(module, target), target))
    found = {}
    for held in cuda_modules(packed) if packed else ():
        for kernel in kernel_resources(held.code, target.gpu):
            of, part = re.fullmatch(r"(.*)_kernel(_\d+)?", kernel.name).groups()  # type: ignore[union-attr]
            if of in labels:  # the others are the fallback's
                found[labels[of] + (part or "").replace("_", ", kernel ")] = kernel
    return target.gpu.arch, found


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
    parser.add_argument("--write", type=Path, help="a document to put the table into")
    args = parser.parse_args()
    try:
        if args.write:
            replaced(args.write.read_text(), args.model, [])
        columns = {}
        for name in args.targets.split(","):
            print(f"compiling for {name}", file=sys.stderr, flush=True)
            arch, found = resources(args.model, name, args.dtype, args.layout)
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
