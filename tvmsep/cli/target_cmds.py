"""`targets`, and `targets new`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvmsep.cli.options import AsJson
from tvmsep.contracts import InputError
from tvmsep.contracts.words import counted

if TYPE_CHECKING:
    from tvmsep.contracts import Target

targets = typer.Typer(invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.add_typer(targets, name="targets")


@targets.callback()
def listing(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the targets and say which fits this host; `new` writes one."""
    if ctx.invoked_subcommand is not None:
        return
    import msgspec

    from tvmsep.cli.table import print_table
    from tvmsep.contracts import TargetError
    from tvmsep.targets import load_target, local_target, target_names

    known = [load_target(n) for n in target_names()]
    try:
        local = local_target().name
    except TargetError:
        local = ""
    if as_json:
        print(json.dumps([{**msgspec.to_builtins(t), "local": t.name == local} for t in known]))
        return
    print_table(
        ("target", "description", "this host"),
        [[t.name, t.description, "local" if t.name == local else _here(t)] for t in known],
        left=3,
    )


def _here(t: Target) -> str:
    """What this host can do with a target's code."""
    from tvmsep.bundle.device import device_misfit
    from tvmsep.contracts.target import CUDA
    from tvmsep.targets import misfit

    if t.gpu is None:
        return misfit(t) or "runs it"
    if t.gpu.compile_only:
        return f"compile only: its CUDA is {t.gpu.newest_cuda}, TVM needs {CUDA}"
    why = misfit(t) or device_misfit(t.gpu)
    return f"compile only: {why.partition(':')[0]}" if why else "runs it"


@targets.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the target, as rpi4.")],
    from_board: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT/KEY", help="A tracker's or a server's board."),
    ] = None,
    rpc: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The same, with --key.")
    ] = None,
    key: Annotated[str, typer.Option(help="The board's key.")] = "",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="By default NAME.toml."),
    ] = None,
) -> None:
    """Write a target file from what a board, or this host, reports; read and edit it."""
    from tvmsep.boards import new_target
    from tvmsep.boards.examine import Examiner
    from tvmsep.boards.facts import here
    from tvmsep.boards.lookup import reach
    from tvmsep.cli.options import write_new

    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise InputError(f"{name!r} is no name of a target: use a-z, 0-9, '-', '_' and '.'")
    if from_board:
        if rpc or key:
            raise InputError("--from-board holds address and key: leave --rpc and --key out")
        rpc, _, key = from_board.partition("/")
    out = output or Path(f"{name}.toml")
    if out.exists():
        raise InputError(f"-o {out} exists: choose another name, or remove it")
    if key and rpc is None:
        raise InputError("--key names a board at a tracker: give --rpc HOST:PORT too")
    if rpc is None:
        facts, origin = here(), "this host"
    else:
        at = reach(rpc, key)
        with Examiner(at) as examiner:
            board = examiner.identify()
        if not board.ours:
            raise InputError(
                f"{at.name} runs a stock TVM server, which cannot describe its CPU: "
                "start ours there (`tvmsep board serve`)"
            )
        facts, origin = board.facts, at.name
    target, unknown = new_target.guess(facts, name, origin)
    write_new(out, new_target.as_toml(target, unknown, facts))
    print(f"wrote {out}: {target.description}, {counted('core', target.cores)}, {target.mcpu}")
    print(
        f"read it, then: tvmsep tune MODEL --target {out}"
        + (f" --rpc {rpc} --key {key}" * bool(rpc))
    )
