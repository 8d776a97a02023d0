"""The page while a log grows, served on loopback: reads the log, never touches it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tvmsep.contracts import InputError, TvmsepError
from tvmsep.report.html import render, render_main
from tvmsep.report.page import Page

POLL_S = 5
"""How often an open page asks. Reading a log takes processor time from what is being timed."""
_CLIENT_S = 10.0
"""A client that is silent for so long is left."""


class LivePage:
    """The newest page, made anew when one of its files has changed and somebody asks.

    Args:
        compose: makes the page of what the files hold now.
        files: those that it reads.
    """

    def __init__(self, compose: Callable[[], Page], files: Sequence[Path]) -> None:
        self._compose, self._files = compose, files
        self._lock = threading.Lock()
        self._seen: tuple[object, ...] | None = None
        self._page: Page | None = None
        self._main, self._tag = "", ""

    def _state(self) -> tuple[object, ...]:
        found: list[object] = []
        for path in self._files:
            try:
                stat = path.stat()
                found.append((stat.st_size, stat.st_mtime_ns, stat.st_ino))
            except OSError:
                found.append(None)
        return tuple(found)

    def newest(self) -> tuple[Page, str, str]:
        """The page, the HTML of its `main`, and a tag that names its state.

        Raises:
            TvmsepError: a file cannot be read.
        """
        with self._lock:
            state = self._state()
            if self._page is None or state != self._seen:
                self._page, self._seen = self._compose(), state
                self._main = render_main(self._page)
                self._tag = f'"{hashlib.sha256(self._main.encode()).hexdigest()[:16]}"'
            return self._page, self._main, self._tag


def make_server(live: LivePage, port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1 that is ready to `serve_forever`.

    Args:
        live: what it serves.
        port: 0 for any that is free.

    Raises:
        InputError: the port cannot be bound.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_S

        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            if host not in ("127.0.0.1", "localhost"):  # a name that was pointed at this machine
                self._answer(403, "this page answers to 127.0.0.1 only", "text/plain")
                return
            if self.path not in ("/", "/main"):
                self._answer(404, "there is only /", "text/plain")
                return
            try:
                page, main, tag = live.newest()
            except TvmsepError as error:
                self._answer(503, str(error), "text/plain")
                return
            if self.path == "/":
                self._answer(200, render(page, poll_s=POLL_S), "text/html")
            elif self.headers.get("If-None-Match") == tag:
                self._answer(304, "", "text/html", tag)
            else:
                self._answer(200, main, "text/html", tag)

        def _answer(self, status: int, text: str, kind: str, tag: str = "") -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            if tag:
                self.send_header("ETag", tag)
            if status != 304:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if status != 304:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a reader that closes the page in the middle of an answer is no error

    try:
        return Server(("127.0.0.1", port), Handler)
    except OSError as error:
        raise InputError(
            f"cannot serve on 127.0.0.1:{port}: {(error.strerror or str(error)).lower()}; "
            "choose another --port"
        ) from error
