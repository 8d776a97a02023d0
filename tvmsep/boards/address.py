"""Addresses and keys as users write them, and what is said about open ports."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import sys
from pathlib import Path

from tvmsep.contracts import BoardError, InputError
from tvmsep.rpc.protocol import Place

_UNIX = "unix:"
MAX_UNIX_PATH = 100


def host_port(text: str, flag: str) -> tuple[str, int]:
    """`host:port`, or `[::1]:port`.

    Raises:
        InputError: anything else.
    """
    host, _, port = text.rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    if not host or not 0 < number < 65536:
        raise InputError(f"{flag} {text!r} is not an address: write host:9190")
    return valid_host(host.removeprefix("[").removesuffix("]"), flag), number


def valid_host(host: str, flag: str) -> str:
    """A host that a socket can be asked for; whether there is one is another question.

    Raises:
        InputError: no name of a host looks like this.
    """
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise InputError(
            f"{flag}: {host!r} is no host: the parts between its dots have 1 to 63 characters"
        ) from error
    return host


def place(text: str, flag: str) -> Place:
    """`host:port` or `unix:/path`.

    Raises:
        InputError: anything else.
    """
    if text.startswith(_UNIX):
        path = Path(text.removeprefix(_UNIX))
        if not path.is_absolute() or len(str(path)) > MAX_UNIX_PATH:
            raise InputError(
                f"{flag} {text!r}: write unix:/path, of at most {MAX_UNIX_PATH} characters"
            )
        return path
    return host_port(text, flag)


def valid_key(key: str, flag: str = "--key") -> str:
    """A key that TVM's protocol can carry.

    Raises:
        InputError: with what a key may hold.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.+-]{1,64}", key):
        raise InputError(
            f"{flag} {key!r}: a key is 1 to 64 letters, digits, '_', '.', '+' or '-', as rpi4"
        )
    return key


def is_loopback(host: str) -> bool:
    """Whether every address of `host` is this machine's own."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(f[4][0]).split("%")[0]).is_loopback for f in found)


def warn_if_open(host: str, what: str) -> None:
    """Say what it means to bind another interface than loopback."""
    if not is_loopback(host):
        print(
            f"warning: this {what} listens on {host}, and TVM's RPC has no password: whoever "
            "reaches the port runs code on this machine; use it only behind a firewall",
            file=sys.stderr,
            flush=True,
        )


def listen_error(host: str, port: int, error: OSError) -> BoardError:
    """Why a port cannot be bound, and what to do."""
    hint = {
        errno.EADDRINUSE: "something listens there already; end it, or choose another --port",
        errno.EACCES: "ports below 1024 are for root; choose another --port",
        errno.EADDRNOTAVAIL: "this machine has no such address; see `ip addr`, or leave --host out",
    }.get(error.errno or 0, "check --host and --port")
    why = (error.strerror or str(error)).lower()
    return BoardError(f"cannot listen on {host}:{port}: {why}; {hint}")
