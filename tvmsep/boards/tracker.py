"""TVM's tracker, kept running: `tvmsep tracker`."""

from __future__ import annotations

import socket
import sys
from importlib import util

from tvmsep.boards.address import listen_error, valid_host, warn_if_open
from tvmsep.boards.supervise import Supervisor, say
from tvmsep.contracts import BoardError
from tvmsep.measure.worker import child_env
from tvmsep.rpc.protocol import PING, SUCCESS, NotATracker, TrackerLine, show

CHECK_TIMEOUT_S = 3.0


def _keep_alive(sock: socket.socket) -> None:
    """Boards that lost power must not stay on the list: accepted sockets inherit this on Linux."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def serve(host: str, port: int) -> None:
    """Run a tracker until a signal says stop. Prints `tracker at HOST:PORT` when it is ready.

    Args:
        host: address to bind.
        port: port to bind; 0 picks a free one.

    Raises:
        InputError: `host` is none.
        BoardError: the address cannot be bound, or TVM's tracker does not start.
    """
    if util.find_spec("tornado") is None:
        raise BoardError("TVM's tracker needs tornado: pip install 'tvmsep[tune]'")
    valid_host(host, "--host")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=64)
    except OSError as error:
        raise listen_error(host, port, error) from error
    with listener:
        _keep_alive(listener)
        address: tuple[str, int] = listener.getsockname()[:2]
        warn_if_open(address[0], "tracker")

        def healthy() -> bool:
            try:
                with TrackerLine(address, CHECK_TIMEOUT_S) as line:
                    return bool(line.call(PING) == SUCCESS)
            except (OSError, NotATracker):
                return False

        def ready(_: str) -> None:
            print(f"tracker at {show(address)}", flush=True)

        fd = listener.fileno()
        command = [sys.executable, "-P", "-m", "tvmsep.boards.tracker_child", str(fd)]
        supervisor = Supervisor(
            "the tracker",
            lambda: command,
            ready=ready,
            healthy=healthy,
            pass_fds=[fd],
            env=child_env({"TVM_USE_RUNTIME_LIB": "1"}),
        )
        supervisor.run()
        say("the tracker has ended")
