"""A TVM RPC server that survives what it measures: `python -m tvmsep.measure.server`.

It speaks TVM's own protocol, so that stock `tvm.rpc.connect` works against it, and mends what the
stock server does not do:

- it is a *fork server*: the parent imports TVM's runtime once and forks a child per session, so a
  session starts in milliseconds, and a candidate that crashes takes only its child along;
- it notices that a client has gone while a candidate still computes, and kills the child;
- it leaves no process and no temporary folder behind, however its owner ended;
- it binds the loopback interface unless told otherwise, for the protocol has **no authentication:
  whoever reaches the port runs code**.

One session runs at a time; other clients wait in the listening queue. The parent never calls into
TVM beyond the import: its thread pool belongs to the children.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import ipaddress
import json
import os
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tvmsep.measure import facts, host
from tvmsep.measure import load as machine_load
from tvmsep.measure.lock import Scratch

MAGIC = 0xFF271
MISMATCH = MAGIC + 2
HANDSHAKE_TIMEOUT_S = 5.0
MAX_KEY_BYTES = 4096
_HANGUP = getattr(select, "POLLRDHUP", 0)
_PR_SET_PDEATHSIG = 1
CRASH_WORDS = "the session's process was ended by"
LIMIT_WORDS = "the session reached its time limit"


SESSION, LOADED, QUARANTINE, ENDED = "session", "loaded", "quarantine", "ended"
"""Events on standard output with `--events`: `session KEY`, `loaded` and `quarantine WHY` by a
session's child, and `ended` by the parent, whatever became of the client."""
MAX_WHY = 300


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _event(*words: str) -> None:
    with contextlib.suppress(OSError):  # our owner has gone: standard input will say so
        os.write(1, (" ".join(words) + "\n").encode())


def _receive(conn: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = conn.recv(count - len(data))
        if not part:
            raise ConnectionError("the client closed the connection during the handshake")
        data += part
    return data


def _handshake(conn: socket.socket, key: str) -> tuple[str, float] | None:
    """Answer a client: (the key it named, its own session limit in seconds, 0 for none).

    A client that a tracker has sent names `KEY:NUMBER`, where the number is the tracker's ticket.
    None if it is refused.
    """
    (magic,) = struct.unpack("<i", _receive(conn, 4))
    if magic != MAGIC:
        return None
    (size,) = struct.unpack("<i", _receive(conn, 4))
    if not 0 <= size <= MAX_KEY_BYTES:
        return None
    words = _receive(conn, size).decode().split(" ")
    named = words[0].removeprefix("client:")
    if words[0] == named or (named != key and named.rpartition(":")[0] != key):
        conn.sendall(struct.pack("<i", MISMATCH))
        return None
    ours = f"server:{key}".encode()
    conn.sendall(struct.pack("<ii", MAGIC, len(ours)) + ours)
    limits = [float(w.removeprefix("-timeout=")) for w in words[1:] if w.startswith("-timeout=")]
    return named, limits[0] if limits else 0.0


def _config_threads(threads: int) -> int:
    """Set the thread count of this session's pool; answers the count it really has.

    TVM pins its workers to a CPU each and lets the main thread, which works too, float over all of
    them. On a loaded host it can come to rest on a worker's CPU: everything then takes twice as
    long, trial after trial. So it gets the CPU that no worker is pinned to.
    """
    import tvm_ffi

    tvm_ffi.get_global_func("runtime.config_threadpool")(1, threads)
    if sys.platform == "linux":
        workers = [os.sched_getaffinity(int(tid)) for tid in os.listdir("/proc/self/task")]
        taken = {cpu for pins in workers if len(pins) == 1 for cpu in pins}
        free = os.sched_getaffinity(0) - taken
        if free:
            os.sched_setaffinity(0, {min(free)})
    return int(tvm_ffi.get_global_func("runtime.NumThreads")())


def _load_cuda() -> None:
    """Load TVM's CUDA runtime if the machine has what it needs; doctor says what it lacks.

    With the runtime alone TVM does not do it. Nothing is initialised before a session uses the
    device, and each session has a process of its own: CUDA does not survive a fork.
    """
    import tvm

    library = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"
    if all(facts.cuda_libraries()):
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(library))


def _register(folder: Path, cpu: str, events: bool) -> None:
    """Register the functions that TVM's RPC clients expect of a server, working in `folder`."""
    import tvm_ffi

    def path_of(name: str) -> Path:
        return folder / name

    def load(name: str) -> object:
        if events:
            _event(LOADED)
        return tvm_ffi.load_module(str(path_of(name)), keep_module_alive=False)

    def download(name: str) -> bytearray:
        if Path(name).suffix not in (".so", ".dylib"):
            raise ValueError(f"{name}: this server has no linker; upload a linked .so")
        return bytearray(path_of(name).read_bytes())

    def quarantine(why: str) -> None:
        if events:
            _event(QUARANTINE, " ".join(why.split())[:MAX_WHY])

    register = tvm_ffi.register_global_func
    register("tvm.rpc.server.workpath", lambda name: str(path_of(name)), override=True)
    register("tvm.rpc.server.load_module", load, override=True)
    register("tvm.rpc.server.download_linked_module", download, override=True)
    register("tvmsep.cpu", lambda: cpu, override=True)
    register("tvmsep.config_threads", _config_threads, override=True)
    register(host.FUNCTION, host.host_id, override=True)
    register("tvmsep.quarantine", quarantine, override=True)
    register(machine_load.FUNCTION, lambda: json.dumps(machine_load.reading()), override=True)
    register("tvmsep.facts", lambda: json.dumps(facts.collect()), override=True)


def _session(
    conn: socket.socket,
    key: str,
    limit_s: float,
    folder: Path,
    cpu: str,
    events: bool,
    parent: int,
) -> NoReturn:
    """The forked child: handshake, then TVM's server loop until the client leaves."""
    code = 0
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # it ended before the line above
                os._exit(1)
        os.chdir(folder)
        conn.settimeout(HANDSHAKE_TIMEOUT_S)
        answered = _handshake(conn, key)
        if answered is not None:
            named, asked = answered
            if events:
                _event(SESSION, named)
            conn.settimeout(None)  # a limit on the session, not on each wait, is what bounds it
            limits = [s for s in (asked, limit_s) if s > 0]
            if limits:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, min(limits))
            # TVM's handler would print a page of its own frames.
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            _register(folder, cpu, events)
            from tvm.rpc import _ffi_api

            # TVM's loop closes the descriptor itself.
            _ffi_api.ServerLoop(conn.detach())
    except (OSError, ValueError) as exc:
        _say(f"session refused: {exc}")
        code = 1
    except BaseException as exc:
        _say(f"session ended: {type(exc).__name__}: {exc}")
        code = 1
    finally:
        os._exit(code)


@dataclass
class _Child:
    pid: int
    conn: socket.socket
    folder: Path
    kill_at: float = float("inf")


class Server:
    """The listening parent.

    Args:
        host: address to bind.
        port: port to bind; 0 picks a free one.
        key: what a client must name.
        session_timeout_s: longest session, 0 for no limit.
        grace_s: how long a child may go on after its client has gone.
        watch_stdin: end when standard input reaches its end.
        cpu: the CPU's model name, told to clients that ask.
        events: print sessions and what they load on standard output.
    """

    def __init__(
        self,
        host: str,
        port: int,
        key: str,
        *,
        session_timeout_s: float,
        grace_s: float,
        watch_stdin: bool,
        cpu: str,
        events: bool = False,
    ) -> None:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self._listener = socket.create_server((host, port), family=family, backlog=16)
        self._listener.setblocking(False)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._key, self._limit_s, self._grace_s = key, session_timeout_s, grace_s
        self._cpu, self._events = cpu, events
        self._child: _Child | None = None
        self._stdin = sys.stdin.fileno() if watch_stdin else -1
        self._scratch = Scratch("tvmsep-server-")
        self._wake, self._wake_write = os.pipe()
        for fd in (self._wake, self._wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._stop = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_stop)

    def _on_stop(self, *_: object) -> None:
        self._stop = True

    def serve(self) -> None:
        """Run until a signal, or the end of standard input, says stop."""
        try:
            while not self._stop:
                self._step()
        finally:
            if self._child is not None:
                self._end_child()
            self._listener.close()
            self._scratch.close()

    def _step(self) -> None:
        watch = select.poll()
        watch.register(self._wake, select.POLLIN)
        if self._stdin >= 0:
            watch.register(self._stdin, select.POLLIN)
        child = self._child
        wait_ms: float | None = None
        if child is None:
            watch.register(self._listener, select.POLLIN)
        elif child.kill_at == float("inf"):
            watch.register(child.conn, _HANGUP)
        else:
            wait_ms = max(0.0, child.kill_at - time.monotonic()) * 1e3
        ready = dict(watch.poll(wait_ms))
        if self._wake in ready:
            os.read(self._wake, 4096)
        if self._stdin in ready and not os.read(self._stdin, 4096):
            self._stop = True
        if child is None:
            if self._listener.fileno() in ready:
                self._accept()
            return
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        if pid:
            if os.WIFSIGNALED(status):
                name = signal.Signals(os.WTERMSIG(status)).name
                _say(f"{LIMIT_WORDS} ({name})" if name == "SIGALRM" else f"{CRASH_WORDS} {name}")
            self._forget()
        elif time.monotonic() >= child.kill_at:
            _say("the client left in mid-computation; its session was killed")
            self._end_child()
        elif child.conn.fileno() in ready and child.kill_at == float("inf"):
            child.kill_at = time.monotonic() + self._grace_s

    def _accept(self) -> None:
        try:
            conn, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # the client changed its mind
        conn.setblocking(True)
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        folder = Path(tempfile.mkdtemp(dir=self._scratch.path))
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._listener.close()
            _session(conn, self._key, self._limit_s, folder, self._cpu, self._events, parent)
        self._child = _Child(pid, conn, folder)

    def _end_child(self) -> None:
        assert self._child is not None
        os.kill(self._child.pid, signal.SIGKILL)
        os.waitpid(self._child.pid, 0)
        self._forget()

    def _forget(self) -> None:
        """The child has been reaped: hang up on its client and remove its folder."""
        assert self._child is not None
        self._child.conn.close()
        shutil.rmtree(self._child.folder, ignore_errors=True)
        self._child = None
        if self._events:
            _event(ENDED)


def main(argv: list[str] | None = None) -> None:
    """Parse arguments, import TVM's runtime, serve. Prints `listening HOST:PORT` when ready."""
    parser = argparse.ArgumentParser(
        prog="python -m tvmsep.measure.server",
        description="TVM RPC server. No authentication: whoever reaches the port runs code.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (loopback)")
    parser.add_argument("--port", type=int, default=0, help="port to bind (0: a free one)")
    parser.add_argument("--key", default="tvmsep", help="key that clients must name")
    parser.add_argument("--threads", type=int, default=0, help="largest thread count (all cores)")
    parser.add_argument("--session-timeout", type=float, default=0.0, help="seconds (0: no limit)")
    parser.add_argument(
        "--grace", type=float, default=1.0, help="seconds a session may outlive its client"
    )
    parser.add_argument("--watch-stdin", action="store_true", help="end when stdin does")
    parser.add_argument("--events", action="store_true", help="print sessions and what they load")
    args = parser.parse_args(argv)

    from tvmsep.targets import host_cores, host_cpu

    # All of this must be set before TVM is imported; the pool never grows past its first size.
    os.environ["TVM_NUM_THREADS"] = str(args.threads or host_cores())
    os.environ["TVM_USE_RUNTIME_LIB"] = "1"
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # no other pool may exist when a session is forked
    sys.modules["torch"] = None  # type: ignore[assignment]
    import tvm.rpc  # noqa: F401

    _load_cuda()
    try:
        server = Server(
            args.host,
            args.port,
            args.key,
            session_timeout_s=args.session_timeout,
            grace_s=args.grace,
            watch_stdin=args.watch_stdin,
            cpu=host_cpu()[0],
            events=args.events,
        )
    except OSError as exc:
        sys.exit(f"cannot listen on {args.host}:{args.port}: {exc.strerror}; choose another --port")
    if not ipaddress.ip_address(server.address[0]).is_loopback:
        _say("this port has no authentication: whoever reaches it runs code on this machine")
    print("listening {}:{}".format(*server.address), flush=True)
    server.serve()


if __name__ == "__main__":
    main()
