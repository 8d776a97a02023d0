"""A link between clients and one board that can be cut, stalled and slowed down."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

UPLOAD_BYTES = 12 << 10
"""So much from a client without a word from the board is the middle of an upload."""


class Link:
    """Listens on loopback and passes bytes on to the board's server, both ways.

    Args:
        to: the port of the board's server; asked at each connection.
    """

    def __init__(self, to: Callable[[], int]) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._flows = threading.Event()
        self._flows.set()
        self.on_upload: Callable[[Link], bool] | None = None
        """Asked in the middle of an upload; True cuts the link there."""
        threading.Thread(target=self._accept, daemon=True, name="link").start()

    @property
    def used(self) -> bool:
        """Whether a connection is open."""
        return bool(self._open)

    def cut(self) -> None:
        """Drop every connection, as a router that restarts does."""
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def stall(self, seconds: float) -> None:
        """Pass nothing on for a while; connections stay open."""
        self._flows.clear()
        threading.Timer(seconds, self._flows.set).start()

    def close(self) -> None:
        """Stop listening and drop everything."""
        self._listener.close()
        self._flows.set()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to()), timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.add(end)
            sent = [0]  # bytes from the client since the board's last word
            for one, other, up in ((near, far, True), (far, near, False)):
                threading.Thread(
                    target=self._pump, args=(one, other, up, sent), daemon=True, name="link"
                ).start()

    def _pump(self, one: socket.socket, other: socket.socket, up: bool, sent: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 13):
                self._flows.wait()
                sent[0] = sent[0] + len(data) if up else 0
                if up and sent[0] > UPLOAD_BYTES and self.on_upload and self.on_upload(self):
                    other.sendall(data[: len(data) // 2])
                    break
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.discard(one)
        time.sleep(0.1)  # the other direction may still be in `recv`
        one.close()
