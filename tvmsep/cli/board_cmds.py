"""Verbs about boards: `tracker`, `boards`, `board serve|deploy|build-runtime|undeploy|doctor`."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from tvmsep.cli.options import AsJson
from tvmsep.contracts import BoardError, InputError
from tvmsep.contracts.words import counted

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
        running, wanted = background.running(state), background.program(words)
        if running is None or any(running.get(k) != v for k, v in wanted.items()):
            background.stop(state)
            command = [sys.executable, "-P", "-m", "tvmsep.cli", *words]
            running = background.start(command, state)
        print(json.dumps(running))
        return
    it.serve(
        key, host=host, port=port, threads=threads, tracker=at, advertise=shown, state=state
    )  # fmt: skip


@board.command()
def deploy(
    destination: Destination,
    target: Annotated[str, typer.Option(help="What the board is: a target's name or TOML file.")],
    key: Annotated[str, typer.Option(help="By default the target's name.")] = "",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Here, leading to the board; 0: a free one.")
    ] = 0,
    tracker: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The tracker on this machine.")
    ] = DEFAULT_TRACKER,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Most threads of a candidate; by default all cores.")
    ] = None,
    folder: Folder = "~/.tvmsep",
    wheels: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Wheels to copy, for a board without a network."),
    ] = None,
    python: Annotated[str | None, typer.Option(metavar="PATH", help="Python on the board.")] = None,
    install: Annotated[
        bool, typer.Option("--install/--no-install", help="Or use --python's own packages.")
    ] = True,
    runtime: Annotated[
        bool, typer.Option("--runtime", help="For a board without Python: `board build-runtime`'s.")
    ] = False,
    ssh_option: SshOption = None,
) -> None:
    """Bring a board up over ssh: install tvmsep there, start its server, and tunnel to it.

    Server and tunnel stay, and come back by themselves, until `tvmsep board undeploy`.
    """
    from tvmsep.boards import deploy as it
    from tvmsep.boards import ssh, tunnel
    from tvmsep.boards.address import host_port, is_loopback, valid_key
    from tvmsep.targets import load_target

    wanted = load_target(target)
    key = valid_key(key or wanted.name)
    if not is_loopback(host_port(tracker, "--tracker")[0]):
        raise InputError(
            f"--tracker {tracker}: the tunnel ends on this machine's loopback, so the tracker "
            "must run here; for a shared one, run `tvmsep board serve` on the board itself"
        )
    if not install and wheels:
        raise InputError("--wheels and --no-install contradict each other: give one of them")
    if runtime and (wheels or python or not install):
        raise InputError("--runtime needs no Python: leave --python, --wheels, --no-install out")
    if wheels is not None and not wheels.is_dir():
        raise InputError(f"--wheels {wheels} is no folder")
    asked = it.Asked(
        target=wanted, key=key, folder=folder, port=port or tunnel.free_port(), tracker=tracker,
        threads=threads, python=python, install=install, wheels=wheels,
        runtime=runtime,
    )  # fmt: skip
    state = it.deploy(ssh.make(destination, ssh_option or []), asked, _say)
    if not state["reached"]:
        raise BoardError(
            f"the board's server does not answer at 127.0.0.1:{state['port']}: does its sshd "
            "allow forwarding (AllowTcpForwarding, AllowStreamLocalForwarding)?"
        )
    print(f"board {key} at 127.0.0.1:{state['port']}")
    print("next:")
    if not _tracker_runs(tracker):
        print(f"  tvmsep tracker --port {host_port(tracker, '')[1]}   # in another terminal")
    at = f"--rpc {tracker} --key {key}"
    print(f"  tvmsep board doctor {at} --target {target}")
    print(f"  tvmsep tune MODEL --target {target} {at}")
    print(f"  tvmsep board undeploy {destination}" + "".join(
        f" --ssh-option {shlex.quote(o)}" for o in ssh_option or []
    ))  # fmt: skip


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _tracker_runs(text: str) -> bool:
    from tvmsep.boards.address import host_port
    from tvmsep.boards.lookup import summary

    try:
        summary(host_port(text, "--tracker"))
    except BoardError:
        return False
    return True


@board.command("build-runtime")
def build_runtime(
    target: Annotated[str, typer.Option(help="A Linux target's name or TOML file.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write; must not exist.")
    ],
) -> None:
    """Compile TVM's runtime and an RPC server for boards without Python: a folder to copy there.

    The sources are those in TVM's wheel, the compiler is zig's. The first build for a target takes
    minutes; it is kept in the cache.
    """
    from tvmsep.boards.build_runtime import build
    from tvmsep.targets import load_target

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the compilers end too
    compiled = build(load_target(target), output, _say)
    print(f"{output}: {'compiled' if compiled else 'from the cache'}")
    print(f"next: copy it to the board, and see {output / 'README.md'}")


@board.command()
def undeploy(
    destination: Destination,
    folder: Annotated[
        str | None,
        typer.Option("--dir", metavar="DIR", help="On the board; by default what was deployed."),
    ] = None,
    ssh_option: SshOption = None,
) -> None:
    """End a deployed board's server and tunnel, and remove everything they left."""
    from tvmsep.boards import deploy as it
    from tvmsep.boards import ssh

    it.undeploy(ssh.make(destination, ssh_option or []), folder, _say)


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
        worse = f", {counted('thing', warned)} could be better" if warned else ""
        print("cannot be tuned" if bad else f"can be tuned{worse}")
    if bad:
        raise typer.Exit(1)


def boards(
    rpc: Annotated[str, typer.Option(metavar="HOST:PORT", help="The tracker.")] = DEFAULT_TRACKER,
    key: Annotated[str, typer.Option(help="Only boards of this key.")] = "",
    log: Annotated[
        Path | None, typer.Option(help="List the configs that took boards down in this log, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List a tracker's boards: which are free, busy or quarantined, since when, and how fast.

    A board is quarantined by the tuning run that left it out: it is of another kind than the rest,
    or sessions keep ending under it. With --log, configs that crashed or hung are listed too.
    """
    import msgspec

    from tvmsep.boards import lookup
    from tvmsep.boards.address import host_port
    from tvmsep.cli.table import print_table
    from tvmsep.logs import read_log

    bad = [t for t in read_log(log) if t.quarantined] if log else []
    found = lookup.summary(host_port(rpc, "--rpc"))
    rows = lookup.known(found, rpc, key) if key else list(found.boards)
    waiting = {k: q.pending for k, q in found.queues.items() if q.pending and (not key or k == key)}
    if as_json:
        configs = [
            {"task": t.workload.label, "threads": t.threads, "config": t.config, "since": t.date,
             "failure": t.failure, "board": t.board, "detail": t.detail}
            for t in bad
        ]  # fmt: skip
        print(json.dumps({"boards": msgspec.to_builtins(rows), "waiting": waiting,
                          "quarantined": configs}))  # fmt: skip
        return
    if rows:
        print_table(
            ("key", "address", "state", "CPU", "TVM", "for", "trials", "trials/min"),
            [
                [
                    b.key, b.address, b.state, b.facts.cpu or "unknown", b.facts.tvm or "unknown",
                    "" if b.state_s is None else _ago(b.state_s),
                    "" if b.trials is None else str(b.trials),
                    "" if b.trials_per_min is None else f"{b.trials_per_min:.1f}",
                ]
                for b in rows
            ],
            left=5,
        )  # fmt: skip
    else:
        print(f"no board has registered with the tracker at {rpc}")
    for b in rows:
        if b.why:
            print(f"{b.key} {b.address} is quarantined: {b.why}")
    for name, count in sorted(waiting.items()):
        wait = "waits" if count == 1 else "wait"
        print(f"{counted('client', count)} {wait} for a board {name}")
    if bad:
        print()
        print_table(
            ("quarantined config", "threads", "of", "failure", "board", "since"),
            [[", ".join(f"{k}={v}" for k, v in t.config.items()), str(t.threads),
              t.workload.label, str(t.failure), t.board, t.date] for t in bad],
            left=6,
        )  # fmt: skip
    elif log:
        print(f"no config in {log} took a board down")


def _ago(seconds: float) -> str:
    """A duration in its largest sensible unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
