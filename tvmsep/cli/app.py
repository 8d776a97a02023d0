"""The verbs and their order in `tvmsep --help`."""

from __future__ import annotations

from typing import Annotated

import typer

from tvmsep.cli import (
    board_cmds,
    bundle_cmds,
    compare_cmds,
    model_cmds,
    report_cmds,
    target_cmds,
)

# Without markup Typer writes plain help and doesn't import rich: 70 ms of a 300 ms budget.
app = typer.Typer(
    name="tvmsep",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from tvmsep import __version__

        print(f"tvmsep {__version__}")
        raise typer.Exit


@app.callback()
def tvmsep(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Autotune depthwise-separable CNNs with Apache TVM and ship them as bundles."""


model_cmds.register(app)
target_cmds.register(app)
bundle_cmds.register(app)
report_cmds.register(app)
compare_cmds.register(app)
board_cmds.register(app)
