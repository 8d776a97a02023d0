"""What the tests of farms share: a tracker of a few lines, and boards that can be hurt.

The tracker follows TVM's rules (tickets, queue, summary) and knows from a board's `--events` when
its session is over. Each board is our real server in a process of its own; a relay in front of it
can make its answers slow.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from typing import Any

MAGIC = 0x2F271
REQUEST, SUMMARY = 4, 6
KEY = "board"


def _read(conn: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = conn.recv(size - len(data))
        if not part:
            raise ConnectionResetError
        data += part
    return data


class Tracker:
    """Lends the addresses of the boards that were added, each to one client at a time."""

    def __init__(self, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.place: tuple[str, int] = self._listener.getsockname()
        self._lock = threading.Lock()
        self._boards: dict[tuple[str, int], int] = {}
        self._free: deque[tuple[str, int]] = deque()
        self._waiting: deque[socket.socket] = deque()
        self._conns: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def add(self, place: tuple[str, int]) -> None:
        """A board registers, or offers itself again."""
        with self._lock:
            self._boards[place] = 1
            if place not in self._free:
                self._free.append(place)
            self._lend()

    def remove(self, place: tuple[str, int]) -> None:
        """A board's connection is gone."""
        with self._lock:
            self._boards.pop(place, None)
            if place in self._free:
                self._free.remove(place)

    def close(self) -> None:
        """Hang up on everybody."""
        for line in (self._listener, *self._conns):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)  # also wakes the thread that waits in it
            line.close()

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            self._conns.append(conn)
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn: socket.socket) -> None:
        with contextlib.suppress(OSError):
            conn.sendall(_read(conn, 4))
            while True:
                (size,) = struct.unpack("<i", _read(conn, 4))
                words = json.loads(_read(conn, size))
                with self._lock:
                    if words[0] == SUMMARY:
                        info = [{"key": f"server:{KEY}", "addr": b} for b in self._boards]
                        self._answer(conn, [0, {"server_info": info, "queue_info": {}}])
                    elif words[0] == REQUEST:
                        self._waiting.append(conn)
                        self._lend()

    def _lend(self) -> None:
        while self._free and self._waiting:
            conn = self._waiting.popleft()
            conn.setblocking(False)
            try:
                left = conn.recv(1, socket.MSG_PEEK) == b""
            except BlockingIOError:
                left = False
            except OSError:
                left = True
            if not left:
                conn.setblocking(True)
                host, port = self._free.popleft()
                self._answer(conn, [0, [host, port, f"{KEY}:{random.random()}"]])

    @staticmethod
    def _answer(conn: socket.socket, words: Any) -> None:
        data = json.dumps(words).encode()
        with contextlib.suppress(OSError):
            conn.sendall(struct.pack("<i", len(data)) + data)


class Relay:
    """Passes bytes on, each piece of a board's answers `delay_s` later."""

    def __init__(self, to: tuple[str, int], delay_s: float) -> None:
        self._to, self._delay_s = to, delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.place: tuple[str, int] = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._to)
            except OSError:
                return
            for one, other, delay_s in ((near, far, 0.0), (far, near, self._delay_s)):
                threading.Thread(target=self._pump, args=(one, other, delay_s), daemon=True).start()

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket, delay_s: float) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                time.sleep(delay_s)
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


class BoardServer:
    """Our server in a process, registered with a tracker while it lives."""

    def __init__(self, tracker: Tracker, threads: int, delay_s: float = 0.0) -> None:
        self.tracker, self._threads = tracker, threads
        self._delay_s = delay_s
        self._relay: Relay | None = None
        self.sessions = 0
        self.start()

    def start(self) -> None:
        """Start it, or start it again at its port."""
        port = getattr(self, "port", 0)
        words = ["--key", KEY, "--port", str(port), "--threads", str(self._threads), "--events"]
        self.proc = subprocess.Popen(
            [sys.executable, "-P", "-m", "tvmsep.measure.server", "--watch-stdin", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.proc.stdout is not None
        line = self.proc.stdout.readline()
        assert line.startswith("listening "), line
        self.port = int(line.rsplit(":", 1)[1])
        if self._delay_s and self._relay is None:
            self._relay = Relay(("127.0.0.1", self.port), self._delay_s)
        self.place = self._relay.place if self._relay else ("127.0.0.1", self.port)
        self.name = f"{KEY}@{self.place[0]}:{self.place[1]}"
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()
        self.tracker.add(self.place)

    def _hear(self) -> None:
        assert self.proc.stdout is not None
        for line in self.proc.stdout:
            self.sessions += line.startswith("session")
            if line.startswith("ended"):
                self.tracker.add(self.place)
        self.tracker.remove(self.place)

    def kill(self) -> None:
        """End it as a power cut does."""
        self.proc.kill()
        self.proc.wait(timeout=10)
        self._thread.join(timeout=10)

    def freeze(self) -> list[int]:
        """Stop it and its sessions; answers what to wake."""
        pids = [self.proc.pid, *children(self.proc.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        return pids

    def close(self) -> None:
        for pid in [*children(self.proc.pid), self.proc.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if self.proc.poll() is None:
            self.kill()
        assert self.proc.stdin is not None and self.proc.stdout is not None
        self.proc.stdin.close()
        self.proc.stdout.close()
        if self._relay:
            self._relay.close()


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(p) for p in file.read().split()]
    return []
