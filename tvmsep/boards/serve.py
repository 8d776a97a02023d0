"""A board's RPC server, kept running and kept registered: `tvmsep board serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tvmsep.boards.address import is_loopback, valid_host, valid_key, warn_if_open
from tvmsep.boards.background import State, program
from tvmsep.boards.registrar import Registrar
from tvmsep.boards.supervise import Supervisor, say
from tvmsep.contracts import BoardError
from tvmsep.measure import facts, server
from tvmsep.measure.worker import server_env
from tvmsep.rpc.protocol import Place, show

_WILDCARDS = ("0.0.0.0", "::", "")


def _about() -> dict[str, Any]:
    """What a registration says beside the address: enough to refuse a board that does not fit."""
    known = facts.collect()
    return {k: known[k] for k in ("machine", "cpu", "vendor", "features", "cores", "tvm", "tvmsep")}


def _advertised(
    host: str, tracker: Place | None, advertise: tuple[str, int] | None
) -> tuple[str | None, int | None]:
    """The address that the tracker shall hand out; None for what it sees or what the server has."""
    if advertise is not None:
        return advertise
    if isinstance(tracker, tuple) and is_loopback(host) and not is_loopback(tracker[0]):
        raise BoardError(
            f"the server listens on {host} only, which clients of the tracker at {show(tracker)} "
            "do not reach: add --host with this board's address, or use `tvmsep board deploy`, "
            "which tunnels through ssh"
        )
    return (None if host in _WILDCARDS or is_loopback(host) else host), None


def serve(
    key: str,
    *,
    host: str,
    port: int,
    threads: int | None,
    tracker: Place | None,
    advertise: tuple[str, int] | None,
    state: Path | None,
) -> None:
    """Serve until a signal says stop. Prints `board KEY at HOST:PORT` whenever it is ready.

    Args:
        key: what clients ask for.
        host: address to bind.
        port: port to bind; 0 picks a free one, which a restarted server keeps.
        threads: most threads that candidates can use; None for all cores.
        tracker: where to register; None for clients that know the address.
        advertise: what the tracker shall hand out, where that is not the server's own address.
        state: file that says how to reach the server while it runs.

    Raises:
        BoardError: the server does not start, or clients could not reach it.
    """
    valid_key(key)
    valid_host(host, "--host")
    given = _advertised(host, tracker, advertise)
    warn_if_open(host, "board's server")
    claim = State(state) if state else None
    registrar = (
        Registrar(tracker, key, advertise=given, about=_about(), say=say) if tracker else None
    )
    bound = port

    def command() -> list[str]:
        words = [sys.executable, "-P", "-m", "tvmsep.measure.server", "--watch-stdin", "--events"]
        words += ["--host", host, "--port", str(bound), "--key", key]
        return words + ["--threads", str(threads or 0)]

    def ready(line: str) -> None:
        nonlocal bound
        bound = int(line.rsplit(":", 1)[1])
        print(f"board {key} at {show((host, bound))}", flush=True)
        if claim:
            claim.write(host=host, port=bound, key=key, **program(sys.argv[1:]))
        if registrar:
            registrar.up(bound)

    def heard(line: str) -> None:
        event, _, rest = line.partition(" ")
        if registrar is None:
            return
        if event == server.SESSION:
            registrar.session(rest)
        elif event == server.LOADED:
            registrar.loaded()
        elif event == server.QUARANTINE:
            registrar.quarantine(rest)
        elif event == server.ENDED:
            registrar.ended()

    def gone() -> None:
        if registrar:
            registrar.down()

    try:
        if registrar:
            registrar.start()
        Supervisor(
            "the board's server", command, ready=ready, heard=heard, gone=gone, env=server_env()
        ).run()
    finally:
        if registrar:
            registrar.stop()
        if claim:
            claim.close()
    say("the board's server has ended")
