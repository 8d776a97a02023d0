"""Bundles against the models that they were made from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tvmsep.api.building import check_all
from tvmsep.api.planning import Prepared, prepare
from tvmsep.check import Check, Mismatch
from tvmsep.contracts import InputError, OpenShapeError


def verify(bundle: str | os.PathLike[str], model: Any, **how: Any) -> Check:
    """Compare a bundle's outputs with those of the model it was made from.

    Args:
        bundle: a `.tvmsep` file.
        model: as for `tune`.
        **how: `shapes`, `example_inputs` and `params` as for `tune`. Without `shapes`, a bundle of
            several is compared for all of them.

    Raises:
        TvmsepError: they differ, or do not fit each other.
    """
    from tvmsep.bundle import Package

    with Package(bundle) as package:
        manifest = package.manifest
    shapes = how.get("shapes")
    sets = range(len(manifest.specialisations)) if shapes is None else [manifest.find(shapes)]
    several = {n: prepare_for(bundle, model, which=n, **how) for n in sets}
    try:
        return check_all(Path(bundle), several)
    except Mismatch as problem:
        raise Mismatch(
            f"{bundle} was made from another model, or other weights: {problem}"
        ) from None


def prepare_for(
    bundle: str | os.PathLike[str], model: Any, *, which: int = 0, **how: Any
) -> Prepared:
    """Prepare a model as a bundle has it: for its target, at its first variant's thread count.

    Args:
        bundle: a `.tvmsep` file.
        model: as for `tune`.
        which: for which of its sets of input shapes.
        **how: as for `verify`. What the model leaves open is as the bundle has it.

    Raises:
        BundleError: the bundle is damaged or cannot run on this host.
        InputError: they take or give different tensors.
    """
    from tvmsep.bundle import Package

    with Package(bundle) as package:
        package.check_host()
        manifest = package.manifest
    one = manifest.specialisations[which]
    built = {t.name: t.shape for t in one.inputs}
    if manifest.further or how.get("shapes"):
        how["shapes"] = built
    how |= {
        "target": manifest.target, "threads": [one.variants[0].threads],
        "layout": manifest.layout or None, "dtype": manifest.precision,
    }  # fmt: skip
    try:
        prepared = prepare(model, **how)
    except OpenShapeError:
        prepared = prepare(model, **{**how, "shapes": built})
    for what, mine, others in (
        ("takes", one.inputs, prepared.imported.inputs),
        ("gives", one.outputs, prepared.imported.outputs),
    ):
        ours = [(t.name, t.shape, t.dtype) for t in mine]
        theirs = [(t.name, t.shape, t.dtype) for t in others]
        if ours != theirs:
            raise InputError(
                f"{bundle} {what} {ours}, the model {what} {theirs}: not the same network"
            )
    return prepared
