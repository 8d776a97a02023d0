"""Keeps a deployed board in reach, in the background: `python -m tvmsep.boards.tunnel FOLDER`.

One ssh connection forwards a port of this machine's loopback to the server on the board's, and a
Unix socket on the board to the tracker here, with which the server there registers itself. At
each (re)connection the server is started if it does not run, so that a board that was switched
off comes back by itself. The connection ends when the server's supervisor does, and when we do:
its remote command watches the one and reads from the other.
"""

from __future__ import annotations

import json
import shlex
import socket
import sys
from pathlib import Path

import msgspec

from tvmsep.boards import deploy_runtime
from tvmsep.boards.address import MAX_UNIX_PATH, host_port
from tvmsep.boards.background import State
from tvmsep.boards.deploy import SERVER_TIMEOUT_S, Deployment
from tvmsep.boards.remove import SERVE
from tvmsep.boards.ssh import Ssh
from tvmsep.boards.supervise import READY, Supervisor
from tvmsep.contracts import BoardError, TvmsepError
from tvmsep.rpc.protocol import is_server, show

LOOPBACK = "127.0.0.1"
_WATCH = """\
import os, select
print("{ready}", flush=True)
while not select.select([0], [], [], 3)[0]:
    os.kill({pid}, 0)
"""


def serve_words(plan: Deployment) -> list[str]:
    """The board's command that starts its server, or finds it running."""
    own = [plan.python, "-P", "-m", "tvmsep.cli", "board", "serve"]
    words = [*(own if plan.python else [deploy_runtime.program(plan.folder)]), "--detach"]
    words += ["--key", plan.key, "--port", "0", "--state", f"{plan.folder}/{SERVE}.json"]
    words += ["--tracker", f"unix:{_socket(plan)}", "--advertise", f"{LOOPBACK}:{plan.port}"]
    return words + (["--threads", str(plan.threads)] if plan.threads else [])


def _socket(plan: Deployment) -> str:
    return f"{plan.folder}/tracker.sock"


def connection(ssh: Ssh, plan: Deployment) -> list[str]:
    """Start the server if need be; answers the command line of the connection to it.

    Raises:
        BoardError: the board does not answer, or its server does not start.
    """
    # A socket that a dead connection has left would be in the way; the server reconnects.
    line = f"rm -f {shlex.quote(_socket(plan))}; {shlex.join(serve_words(plan))}"
    said = ssh.run(line, timeout_s=SERVER_TIMEOUT_S)
    try:
        state = json.loads(said.strip().splitlines()[-1])
        pid, port = int(state["pid"]), int(state["port"])
    except (ValueError, KeyError, IndexError) as error:
        raise BoardError(
            f"{plan.destination}: the server's answer makes no sense: {said}"
        ) from error
    watch = [plan.python, "-c", _WATCH.format(ready=READY, pid=pid)]
    if not plan.python:
        watch = [deploy_runtime.program(plan.folder), "watch", str(pid)]
    return [
        *ssh.words(
            "-o", "ExitOnForwardFailure=yes", "-o", "ControlMaster=no", "-o", "ControlPath=none",
            "-L", f"{LOOPBACK}:{plan.port}:{LOOPBACK}:{port}",
            "-R", f"{_socket(plan)}:{show(host_port(plan.tracker, '--tracker'))}",
        ),
        shlex.join(watch),
    ]  # fmt: skip


def keep(folder: Path) -> None:
    """Run until a signal says stop.

    Raises:
        BoardError: the first connection fails.
    """
    state = State(folder / "tunnel.json")
    try:
        plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=Deployment)
        if len(_socket(plan)) > MAX_UNIX_PATH:
            raise BoardError(f"--dir {plan.folder} is too long a path: choose a shorter one")
        ssh = Ssh(plan.destination, plan.options)

        def ready(_: str) -> None:
            try:
                reached = is_server((LOOPBACK, plan.port))
            except OSError:
                reached = False
            state.write(port=plan.port, key=plan.key, tracker=plan.tracker, reached=reached)

        Supervisor("the tunnel", lambda: connection(ssh, plan), ready=ready).run()
    finally:
        state.close()


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    try:
        keep(Path(sys.argv[1]))
    except TvmsepError as error:
        sys.exit(f"error: {error}")
