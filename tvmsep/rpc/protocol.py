"""TVM's wire protocol as far as we need it, with a time limit on every wait.

TVM's own client waits without a limit for a peer that accepts and says nothing, and importing it
takes a second. The protocol (`tvm/rpc/tracker.py`): both ends send the magic number, then each
message is a length (int32, little-endian) and JSON; the client asks, the tracker answers.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tvmsep.contracts import BoardError

TIMEOUT_S = 5.0
MAX_MESSAGE = 1 << 20
STOP_POLL_S = 0.2

TRACKER_MAGIC = 0x2F271
SERVER_MAGIC = 0xFF271
SERVER_MISMATCH = SERVER_MAGIC + 2

SUCCESS, PING, PUT, REQUEST, UPDATE_INFO, SUMMARY, PENDING_KEYS = 0, 1, 3, 4, 5, 6, 7

Place = tuple[str, int] | Path
"""Host and port, or a Unix socket: what a tunnel leads to."""


class NotATracker(BoardError):
    """Something listens, but it does not speak the tracker's protocol."""


def never() -> bool:
    """For who waits until the time is over."""
    return False


def show(place: Place) -> str:
    """A place as a user writes it."""
    if isinstance(place, Path):
        return f"unix:{place}"
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def why_not(error: OSError, timeout_s: float = TIMEOUT_S) -> str:
    """An error of a socket in a few words."""
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    return (error.strerror or str(error)).lower()


class _Line:
    """A connection whose every exchange ends within its time limit, or when `stop` says so."""

    def __init__(self, place: Place, timeout_s: float, stop: Callable[[], bool] = never) -> None:
        self._timeout_s, self._stop = timeout_s, stop
        if isinstance(place, Path):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout_s)
            try:
                self.sock.connect(str(place))
            except BaseException:
                self.sock.close()
                raise
        else:
            try:
                self.sock = socket.create_connection(place, timeout=timeout_s)
            except UnicodeError as error:  # a tracker names any address
                raise OSError(0, f"{show(place)} is no address") from error
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.sock.close()

    def receive(self, size: int, limit_s: float = 0.0) -> bytes:
        """Exactly `size` bytes, within `limit_s` where one message may take longer than others."""
        data, deadline = b"", time.monotonic() + (limit_s or self._timeout_s)
        while len(data) < size:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or self._stop():
                raise TimeoutError
            self.sock.settimeout(min(left_s, STOP_POLL_S))
            try:
                part = self.sock.recv(size - len(data))
            except TimeoutError:
                continue
            if not part:
                raise ConnectionResetError(0, "the connection was closed before the answer")
            data += part
        return data

    def send(self, data: bytes) -> None:
        """All of `data`."""
        self.sock.settimeout(self._timeout_s)
        self.sock.sendall(data)

    def number(self, limit_s: float = 0.0) -> int:
        """An int32."""
        (value,) = struct.unpack("<i", self.receive(4, limit_s))
        return int(value)


class TrackerLine(_Line):
    """A connection to a tracker; boards that were offered on it are withdrawn when it closes.

    Args:
        place: where it listens.
        timeout_s: limit on each wait.
        stop: asked several times a second; True ends a wait as its limit does.

    Raises:
        OSError: nothing answers, or not in time.
        NotATracker: what answers is no tracker.
    """

    def __init__(
        self, place: Place, timeout_s: float = TIMEOUT_S, stop: Callable[[], bool] = never
    ) -> None:
        super().__init__(place, timeout_s, stop)
        try:
            self.send(struct.pack("<i", TRACKER_MAGIC))
            if self.number() != TRACKER_MAGIC:
                raise NotATracker("what listens there is not a TVM RPC tracker")
        except ConnectionResetError as error:
            self.sock.close()
            raise NotATracker(
                "what listens there hung up; is it not a tracker but a board's server?"
            ) from error
        except BaseException:
            self.sock.close()
            raise

    def call(self, code: int, *args: Any, limit_s: float = 0.0) -> Any:
        """Ask, and the answer: within `limit_s` where the tracker may let us wait."""
        data = json.dumps([code, *args]).encode()
        self.send(struct.pack("<i", len(data)) + data)
        size = self.number(limit_s)
        if not 0 < size <= MAX_MESSAGE:
            raise NotATracker(f"the tracker's answer makes no sense (a message of {size} bytes)")
        try:
            return json.loads(self.receive(size))
        except ValueError as error:
            raise NotATracker(f"the tracker's answer makes no sense ({error})") from error


def is_server(place: tuple[str, int], timeout_s: float = TIMEOUT_S) -> bool:
    """Whether a board's server listens somewhere.

    It is asked for a key that none has: a stock server that accepts a key, and whose client then
    leaves without a word, stops listening for good. A server that is busy answers after its
    session.

    Raises:
        OSError: nothing answers, or not in time.
    """
    with _Line(place, timeout_s) as line:
        words = b"client:no-such-key"
        line.send(struct.pack("<ii", SERVER_MAGIC, len(words)) + words)
        try:
            return line.number() == SERVER_MISMATCH
        except ConnectionResetError:
            return False
