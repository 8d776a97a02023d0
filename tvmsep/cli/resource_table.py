"""`inspect BUNDLE --resources`: what each CUDA kernel in a bundle uses of its device."""

from __future__ import annotations

import json
from pathlib import Path

from tvmsep.contracts import InputError


def show_resources(path: Path, as_json: bool) -> None:
    """Print registers, spills, shared memory and occupancy, read from the machine code.

    Raises:
        InputError: the bundle is for a CPU.
        TvmsepError: it is damaged, or holds code that is not for the device itself.
    """
    import msgspec

    from tvmsep.bundle import Package
    from tvmsep.cli.table import print_table
    from tvmsep.codegen.cubin import kernel_resources
    from tvmsep.codegen.imports import cuda_modules, imports_of

    with Package(path) as package:
        manifest = package.manifest
        gpu = manifest.target.gpu
        if gpu is None:
            raise InputError(
                f"{path} is for {manifest.target.name}, a CPU: --resources is for CUDA targets; "
                "--cycles shows a CPU's hot loops"
            )
        found = []
        for one in manifest.specialisations:
            packed = imports_of(package.read(one.variants[0].library)) or b""
            for module in cuda_modules(packed) if packed else ():
                found += [(one.title, k) for k in kernel_resources(module.code, gpu)]
    if as_json:
        kernels = [{**msgspec.to_builtins(k), "inputs": title} for title, k in found]
        text = {"model": manifest.name, "target": manifest.target.name, "arch": gpu.arch}
        print(json.dumps({**text, "kernels": kernels}))
        return
    head = ["kernel", "threads", "registers", "spills", "stack", "shared", "occupancy"]
    rows = [
        [
            k.name.removesuffix("_kernel"), str(k.threads), str(k.registers), f"{k.spill_bytes} B",
            f"{k.stack_bytes} B", f"{k.shared_bytes} B", f"{k.occupancy:.0%}",
        ]
        for _, k in found
    ]  # fmt: skip
    if manifest.further:
        head.append("input")
        rows = [[*row, title] for row, (title, _) in zip(rows, found, strict=True)]
    print_table(head, rows, title=f"{manifest.name} for {manifest.target.name} ({gpu.arch})")
    spilling = sum(k.spill_bytes > 0 for _, k in found)
    print(
        f"{len(found)} kernels, {spilling} of them spill; registers are a thread's, shared memory "
        "a block's; occupancy is the share of a multiprocessor's threads that can be resident"
    )
