"""`verify`: a bundle against its model, against a recording, on the user's own data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmsep.cli import options
from tvmsep.cli.options import AsJson, ParamsOption, ShapesOption
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
        float,
        typer.Option(help="For --expected and --data: largest error, as a share of the output."),
    ] = 1e-4,
    shape: ShapesOption = None,
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
    if model is None and (data or shape or params):
        flag = "--data" if data else "--shape" if shape else "--params"
        raise InputError(f"{flag} belongs to a model: give MODEL after the bundle")
    how: dict[str, Any] = {"shapes": options.shapes(shape), "params": params}
    found: dict[str, Any] = {}
    lines: list[str] = []
    if signature is not None:
        with Package(bundle, trust=signature) as package:
            package.check_members()
        found["signed"] = True
        lines.append(f"{bundle} is signed with the key of {signature}")
    if expected is not None:
        recorded = check_expected(bundle, expected, tolerance)
        found["expected"] = msgspec.to_builtins(recorded)
        lines += [*recorded.lines(), f"{bundle} computes what {expected} recorded"]
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
        lines += [*check.lines(), f"{bundle} computes what {model} computes"]
    print(json.dumps(found) if as_json else "\n".join(lines))


def _print_accuracy(report: Accuracy, data: Path) -> None:
    from tvmsep.cli.table import print_table

    rows = []
    for o in report.outputs:
        agree = "" if o.scored == 0 else f"{o.agreed} of {o.scored}"
        rows.append([o.name, f"{o.worst:.1e}", o.worst_sample, f"{o.mean:.1e}", agree])
    head = ("output", "largest error", "in", "mean error", "top-1 agreement")
    title = f"{report.samples} samples of {data} against {report.reference}"
    print_table(head, rows, title=title)
    print(report.layer_line())
