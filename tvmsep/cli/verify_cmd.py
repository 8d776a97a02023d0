"""`verify`: a bundle against its model, against a recording, on the user's own data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmsep.cli import options
from tvmsep.cli.options import AsJson, ParamsOption, shape_option
from tvmsep.contracts import InputError

if TYPE_CHECKING:
    from tvmsep.accuracy import Accuracy


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A .tvmsep file.")],
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="What it was made from; as for build.")
    ] = None,
    expected: Annotated[
        Path | None,
        typer.Option(metavar="NPZ", help="Recorded input_NAME and output_0, ... to compare with."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Report on own data too: a folder of .npy, .npz or pictures."
        ),
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="Check that this public key's owner signed the bundle."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="For --expected and --data: largest error, as a share of the output; "
            "by default 1e-4, in float16 2e-3 on GPUs and 1e-2 on CPUs."
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        shape_option("Which of the bundle's input shapes; by default all, or those of the data."),
    ] = None,
    params: ParamsOption = None,
    as_json: AsJson = False,
) -> None:
    """Compare a bundle's outputs with those of its model, or with recorded ones."""
    import msgspec

    from tvmsep import api
    from tvmsep.bundle import Package
    from tvmsep.check import check_expected

    if model is None and expected is None and signature is None:
        raise InputError(
            "verify compares with something: give MODEL, --expected FILE.npz or --signature KEY"
        )
    if model is None and (data or params):
        flag = "--data" if data else "--params"
        raise InputError(f"{flag} belongs to a model: give MODEL after the bundle")
    if model is None and expected is None and shape:
        raise InputError("--shape belongs to a model or to --expected: give one of them")
    how: dict[str, Any] = {"shapes": options.shapes(shape), "params": params}
    found: dict[str, Any] = {}
    lines: list[str] = []
    if signature is not None:
        with Package(bundle, trust=signature) as package:
            package.check_members()
        found["signed"] = True
        lines.append(f"{bundle} is signed with the key of {signature}")
    if expected is not None:
        recorded = check_expected(bundle, expected, tolerance, shapes=how["shapes"])
        found["expected"] = msgspec.to_builtins(recorded)
        at = f" at {recorded.shapes}" if recorded.shapes else ""
        lines += [*recorded.lines(), f"{bundle} computes what {expected} recorded{at}"]
    if data is not None:
        from tvmsep.accuracy import compare_data

        report = compare_data(bundle, model, data, tolerance=tolerance, **how)
        found["data"] = msgspec.to_builtins(report)
        if as_json:
            print(json.dumps(found))
        else:
            print("\n".join(lines), end="\n" if lines else "")
            _print_accuracy(report, data)
        report.check()
        return
    if model is not None:
        check = api.verify(bundle, model, **how)
        found |= msgspec.to_builtins(check)
        at = _shapes_checked(bundle, how["shapes"])
        lines += [*check.lines(), f"{bundle} computes what {model} computes{at}"]
    print(json.dumps(found) if as_json else "\n".join(lines))


def _shapes_checked(bundle: Path, shapes: dict[str, tuple[int, ...]] | None) -> str:
    """At which of a bundle's shapes it was compared; nothing where it has one."""
    from tvmsep.bundle import Package

    with Package(bundle, verify=False) as package:
        manifest = package.manifest
    if shapes is not None and manifest.further:
        return f" at {manifest.shape_note(manifest.find(shapes))}"
    several = [manifest.shape_note(n) for n in range(len(manifest.specialisations))]
    return f" at {' and '.join(several)}" if len(several) > 1 else ""


def _print_accuracy(report: Accuracy, data: Path) -> None:
    from tvmsep.cli.table import print_table

    rows = []
    for o in report.outputs:
        agree = "" if o.scored == 0 else f"{o.agreed} of {o.scored}"
        rows.append([o.name, f"{o.worst:.1e}", o.worst_sample, f"{o.mean:.1e}", agree])
    head = ("output", "largest error", "in", "mean error", "top-1 agreement")
    title = f"{report.samples} samples of {data} against {report.reference}"
    print_table(head, rows, title=title)
    if len(report.shapes) > 1:
        print("samples by shape: " + "; ".join(f"{s}: {n}" for s, n in report.shapes.items()))
    elif report.several:
        print(f"all samples are of {next(iter(report.shapes))}")
    print(report.layer_line())
