"""Verbs about boards: `tracker`, `boards`, `board serve|deploy|undeploy|doctor`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tvmsep.cli.options import AsJson
from tvmsep.contracts import InputError

LOOPBACK = "127.0.0.1"
DEFAULT_TRACKER = "127.0.0.1:9190"

Host = Annotated[
    str, typer.Option(help="Address to listen on. Whoever reaches the port runs code here.")
]
Rpc = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="A tracker, or a board's server."),
]
Key = Annotated[str, typer.Option(help="The board's key.")]
SshOption = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help='Passed to ssh, as "-p 2222" or "-i key"; repeatable.'),
]
Folder = Annotated[str, typer.Option("--dir", metavar="DIR", help="Folder on the board.")]
Destination = Annotated[
    str, typer.Argument(metavar="USER@HOST", help="As ssh takes it; your ssh config counts.")
]

board = typer.Typer(no_args_is_help=True, help="Serve, deploy and examine a board.")


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(tracker)
    app.command()(boards)
    app.add_typer(board, name="board")


def tracker(
    host: Host = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 9190,
) -> None:
    """Run TVM's RPC tracker, which lends boards, and start it again when it dies."""
    from tvmsep.boards import tracker as it

    it.serve(host, port)


@board.command()
def serve(
    key: Annotated[str, typer.Option(help="Name of this kind of board, as rpi4.")],
    tracker: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Tracker to register with, also unix:/path."),
    ] = None,
    host: Host = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 9090,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Most threads of a candidate; by default all cores.")
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="What the tracker hands out, behind a tunnel."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Written when ready, removed at the end."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="With --state: run in the background.")
    ] = False,
) -> None:
    """Run an RPC server that survives what it measures, and keep it registered.

    It needs nobody: a server that dies is started again, a tracker that comes back gets its
    board back. SIGTERM or Ctrl-C ends all of it.
    """
    from tvmsep.boards import background
    from tvmsep.boards import serve as it
    from tvmsep.boards.address import host_port, place, valid_key

    valid_key(key)
    at = place(tracker, "--tracker") if tracker else None
    shown = host_port(advertise, "--advertise") if advertise else None
    if state is not None and state.suffix != ".json":
        raise InputError(f"--state {state}: give a name that ends with .json")
    if detach:
        if state is None:
            raise InputError("--detach needs --state FILE.json, to find the process again")
        words = [w for w in sys.argv[1:] if w != "--detach"]
        state = state.absolute()
        words += ["--state", str(state)]  # the last one counts: the child has its own folder
        running = background.running(state)
        if running is None or running.get("words") != words:
            background.stop(state)
            command = [sys.executable, "-m", "tvmsep.cli", *words]
            running = background.start(command, state)
        print(json.dumps(running))
        return
    it.serve(
        key, host=host, port=port, threads=threads, tracker=at, advertise=shown, state=state
    )  # fmt: skip


@board.command()
def doctor(
    rpc: Rpc = None,
    key: Key = "",
    target: Annotated[
        str | None, typer.Option(help="A target's name or TOML file, to compare with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a board, or this machine, can be tuned; exit status 1 if not."""
    import msgspec

    from tvmsep.boards import doctor as it
    from tvmsep.boards.lookup import reach
    from tvmsep.targets import load_target

    if key and rpc is None:
        raise InputError("--key names a board at a tracker: give --rpc HOST:PORT too")
    wanted = load_target(target) if target else None
    found = it.examine_host(wanted) if rpc is None else it.examine_board(reach(rpc, key), wanted)
    bad = any(f.level == "bad" for f in found)
    if as_json:
        print(json.dumps({"ready": not bad, "findings": msgspec.to_builtins(found)}))
    else:
        for f in found:
            print(f"{f.level:<8}{f.check:<11}{f.says}")
            if f.advice:
                print(f"{'':<19}-> {f.advice}")
        warned = sum(f.level == "warn" for f in found)
        worse = f", {warned} thing(s) could be better" if warned else ""
        print("cannot be tuned" if bad else f"can be tuned{worse}")
    if bad:
        raise typer.Exit(1)


def boards(
    rpc: Annotated[str, typer.Option(metavar="HOST:PORT", help="The tracker.")] = DEFAULT_TRACKER,
    key: Annotated[str, typer.Option(help="Only boards of this key.")] = "",
    as_json: AsJson = False,
) -> None:
    """List a tracker's boards: which are free, which are busy and how they get on."""
    import msgspec

    from tvmsep.boards import lookup
    from tvmsep.boards.address import host_port
    from tvmsep.cli.table import print_table

    found = lookup.summary(host_port(rpc, "--rpc"))
    rows = lookup.known(found, rpc, key) if key else list(found.boards)
    waiting = {k: q.pending for k, q in found.queues.items() if q.pending and (not key or k == key)}
    if as_json:
        print(json.dumps({"boards": msgspec.to_builtins(rows), "waiting": waiting}))
        return
    if not rows:
        print(f"no board has registered with the tracker at {rpc}")
        return
    print_table(
        ("key", "address", "state", "CPU", "TVM", "busy for", "trials", "trials/min"),
        [
            [
                b.key, b.address, b.state, b.facts.cpu or "unknown", b.facts.tvm or "unknown",
                "" if b.busy_s is None else f"{b.busy_s:.0f} s",
                "" if b.trials is None else str(b.trials),
                "" if b.trials_per_min is None else f"{b.trials_per_min:.1f}",
            ]
            for b in rows
        ],
        left=5,
    )  # fmt: skip
    for name, count in sorted(waiting.items()):
        print(f"{count} client(s) wait for a board {name}")
