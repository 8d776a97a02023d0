"""`inspect --cycles`: a model of each kernel's hot loop, of a bundle or of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tvmsep.api import Prepared, choose_configs, read_trials
from tvmsep.bundle import Package
from tvmsep.cli.table import print_table
from tvmsep.compiler import emit
from tvmsep.graph import Plan
from tvmsep.logs import chosen_by
from tvmsep.profile import CycleModel, modelled, parse_relax
from tvmsep.tuner.choice import choose_plan


def show_cycles(prepared: Prepared, plan: Plan, log: Path | None, as_json: bool) -> None:
    """Model the kernels that `build` would make.

    Raises:
        InputError: the target has no model, or llvm-mca is missing.
    """
    target = prepared.target
    winners = chosen_by(read_trials(target, None if log is None else [log]))
    plan, _ = choose_plan(plan, target, winners)
    configs, _, _ = choose_configs(prepared, plan, winners)
    _print(modelled(emit(plan, target, configs), target, prepared.imported.name), as_json)


def show_bundle_cycles(
    path: Path, threads: int | None, shapes: Mapping[str, Sequence[int]] | None, as_json: bool
) -> None:
    """Model the kernels of a bundle's variant.

    Raises:
        BundleError: the bundle is damaged, or does not say what its kernels are.
        InputError: the target has no model, llvm-mca is missing, or the bundle lacks the shapes.
    """
    with Package(path) as package:
        manifest = package.manifest
        which = manifest.find(shapes)
        variant = package.pick(threads, manifest.target.cores, which)
        text = package.read(variant.relax).decode()
    note = f", {manifest.shape_note(which)}," if manifest.further else ""
    _print(modelled(parse_relax(text, path), manifest.target, f"{manifest.name}{note}"), as_json)


def _print(found: CycleModel, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"measured": False, **msgspec.to_builtins(found)}))
        return
    print_table(
        (
            "layer", "runs", "config", "cycles", "FMAs", "cycles/FMA", "of FMA ports", "loads/FMA",
            "spills",
        ),
        [
            [
                x.layer, str(x.runs), x.config, f"{x.cycles:.1f}", str(x.fmas or ""),
                f"{x.cycles / x.fmas:.2f}" if x.fmas else "",
                f"{x.fma_use:.0%}" if x.fmas else "",
                f"{x.loads / x.fmas:.2f}" if x.fmas else "", str(x.spills or ""),
            ]
            for x in found.loops
        ],
        title=f"{found.model} on {found.target}: modelled, not measured",
    )  # fmt: skip
    print(
        f"One iteration of each kernel's innermost loop on {found.core}, all loads from L1, both "
        "sides of every branch. A model: it ranks schedules, it does not predict times."
    )
