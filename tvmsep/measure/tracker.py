"""The client's half of TVM's tracker protocol, with a time limit on every wait.

TVM's own client waits without a limit for a tracker that accepts and says nothing, and tells
nobody which board it was lent. The protocol (`tvm/rpc/tracker.py`): both ends send the magic
number, then each message is a length (int32, little-endian) and JSON.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvmsep.contracts import BoardError

TIMEOUT_S = 5.0
MAX_MESSAGE = 1 << 20
_MAGIC = 0x2F271
_SUCCESS, _REQUEST, _SUMMARY = 0, 4, 6
_SLICE_S = 0.2


@dataclass(frozen=True)
class Ticket:
    """A board that the tracker lent: where it listens and what to name there."""

    host: str
    port: int
    key: str


def _receive(line: socket.socket, size: int, deadline: float, stop: Callable[[], bool]) -> bytes:
    data = b""
    while len(data) < size:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or stop():
            raise TimeoutError
        line.settimeout(min(_SLICE_S, left_s))
        try:
            part = line.recv(size - len(data))
        except TimeoutError:
            continue
        if not part:
            raise ConnectionResetError(0, "it closed the connection before the answer")
        data += part
    return data


def _ask(place: tuple[str, int], words: list[Any], limit_s: float, stop: Callable[[], bool]) -> Any:
    where = f"the tracker at {place[0]}:{place[1]}"
    deadline = time.monotonic() + limit_s
    try:
        with socket.create_connection(place, timeout=min(TIMEOUT_S, limit_s)) as line:
            line.sendall(struct.pack("<i", _MAGIC))
            soon = min(deadline, time.monotonic() + TIMEOUT_S)
            if struct.unpack("<i", _receive(line, 4, soon, stop))[0] != _MAGIC:
                raise BoardError(f"{where} is none: something else listens there")
            request = json.dumps(words).encode()
            line.sendall(struct.pack("<i", len(request)) + request)
            (size,) = struct.unpack("<i", _receive(line, 4, deadline, stop))
            if not 0 < size <= MAX_MESSAGE:
                raise ValueError(f"a message of {size} bytes")
            code, answer = json.loads(_receive(line, size, deadline, stop))
            if code != _SUCCESS:
                raise ValueError(f"code {code!r}")
            return answer
    except TimeoutError as exc:
        raise BoardError(f"{where} gave no answer within {limit_s:g} s") from exc
    except OSError as exc:
        raise BoardError(f"{where}: {exc.strerror or exc}") from exc
    except (ValueError, TypeError) as exc:
        raise BoardError(f"the answer of {where} makes no sense ({exc})") from exc


def boards(
    place: tuple[str, int], key: str, *, stop: Callable[[], bool] = lambda: False
) -> list[str]:
    """Addresses (`host:port`) of the boards registered under a key, lent ones included.

    Raises:
        BoardError: no sound answer within `TIMEOUT_S`.
    """
    answer = _ask(place, [_SUMMARY], TIMEOUT_S, stop)
    try:
        mine = [info for info in answer["server_info"] if info["key"] == f"server:{key}"]
        return [f"{info['addr'][0]}:{info['addr'][1]}" for info in mine]
    except (KeyError, TypeError, IndexError) as exc:
        raise BoardError(f"the tracker's summary makes no sense ({exc})") from exc


def request(
    place: tuple[str, int], key: str, limit_s: float, *, stop: Callable[[], bool] = lambda: False
) -> Ticket:
    """Wait for a board.

    Args:
        place: the tracker's host and port.
        key: which kind of board.
        limit_s: how long to wait for one that is free.
        stop: asked several times a second; True ends the wait.

    Raises:
        BoardError: none was lent in time, or the tracker does not answer.
    """
    try:
        host, port, ticket = _ask(place, [_REQUEST, key, "", 1], limit_s, stop)
        return Ticket(str(host), int(port), str(ticket))
    except BoardError as exc:
        raise BoardError(f"no board {key}: {exc}") from exc
    except (ValueError, TypeError) as exc:
        raise BoardError(f"the tracker's answer makes no sense ({exc})") from exc
