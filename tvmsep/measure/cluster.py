"""Builders on other machines: a Dask cluster compiles candidates by the code that compiles here.

Each thread of each Dask worker owns a warm process of ours, so that there, too, a build has a time
limit and may crash. A library comes back as bytes. Builds wait for timings that tvmsep makes from
the same machine, by the lock that all of it shares on a host. They know nothing of a board that
another machine times: a board is no place for a builder.

A Dask scheduler has no password: whoever reaches its port runs code on all its workers.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tvmsep.contracts import BoardError, Config, Target, Task
from tvmsep.measure import builder
from tvmsep.measure.lock import HostLock, Scratch
from tvmsep.measure.results import Built, Failed
from tvmsep.measure.worker import Worker, WorkerDied, WorkerError, WorkerTimeout

CONNECT_S = 8.0
"""For reaching the scheduler, and for a first worker to be there."""
POLL_S = CLOSE_S = 1.0
CHECK_S = 60.0
"""For all workers to say their versions: each imports tvmsep first."""
MAX_HELLO = 1 << 20
"""Bytes of a scheduler's greeting, at most; their number comes first."""
PACKAGES = ("tvmsep", "apache-tvm", "apache-tvm-ffi")


class BuildersLost(Exception):
    """The cluster does not answer any more."""


@dataclass(frozen=True)
class Compiled:
    """A candidate as it travels: name and bytes of its library and of its object file."""

    library: tuple[str, bytes]
    object: tuple[str, bytes] | None
    """None where there is none: a GPU's."""
    program: str


class Cluster:
    """A Dask cluster that builds.

    Args:
        address: of its scheduler, as `tcp://host:8786`.
        lock_timeout_s: how long a build waits there for another tvmsep that measures.

    Raises:
        BoardError: Dask is not installed here, nothing answers there, no worker is there, or one
            has another version of TVM or of tvmsep.
    """

    def __init__(self, address: str, lock_timeout_s: float) -> None:
        try:
            from distributed import Client
        except ImportError as exc:
            raise BoardError(
                f"--builders {address} needs Dask: pip install 'tvmsep[dask]'"
            ) from exc
        self.address, self._lock_timeout_s, self._count = address, lock_timeout_s, 1
        try:
            _probe(address)
            self._client = Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as exc:
            raise BoardError(
                f"--builders {address}: no Dask scheduler answers there; "
                "`dask scheduler --host ADDRESS` starts one"
            ) from exc
        try:
            self._check_workers()
        except BaseException:
            self.close()
            raise

    def _check_workers(self) -> None:
        where = f"--builders {self.address}"
        try:
            self._client.wait_for_workers(1, timeout=CONNECT_S)
        except TimeoutError as exc:
            raise BoardError(
                f"{where}: the scheduler has no worker; `dask worker {self.address}` starts one"
            ) from exc
        ours = versions()
        asked = {
            name: self._client.submit(versions, workers=[name], pure=False)
            for name in self._threads()
        }
        for name, future in asked.items():
            try:
                theirs = future.result(timeout=CHECK_S)
            except Exception as exc:  # whatever its Python says
                raise BoardError(
                    f"{where}: worker {name} cannot build ({type(exc).__name__}: {exc}); install "
                    "tvmsep[tune,dask] there"
                ) from exc
            for package, version in ours.items():
                if theirs[package] != version:
                    raise BoardError(
                        f"{where}: worker {name} has {package} {theirs[package]}, this machine "
                        f"{version}; install the same on both"
                    )

    def _threads(self) -> dict[str, int]:
        """Threads by worker; Dask's own `nthreads` waits for ever where the scheduler hangs."""
        found = self._client.sync(self._client.scheduler.ncores, callback_timeout=CONNECT_S)
        return {str(name): int(n) for name, n in found.items()}

    @property
    def count(self) -> int:
        """How many candidates it compiles at one time, at least one; the last known number."""
        if self._client.status == "running":
            with contextlib.suppress(Exception):  # `build` says what is wrong
                self._count = max(1, sum(self._threads().values()))
        return self._count

    def build(
        self,
        jobs: Sequence[tuple[Task, Config]],
        target: Target,
        outdir: Path,
        limit_s: float,
    ) -> list[Built | Failed]:
        """Compile candidates; answers in their order, libraries in `outdir`.

        Raises:
            BuildersLost: the scheduler, or every worker, has gone.
        """
        patience_s = self._lock_timeout_s + CONNECT_S + limit_s * -(-len(jobs) // self.count)
        futures: list[Any] = []
        try:
            done: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for task, config in jobs:
                future = self._client.submit(
                    compile_here, task, target, config, limit_s, self._lock_timeout_s, pure=False
                )
                futures.append(future)
                future.add_done_callback(done.put)
            self._wait(done, len(futures), time.monotonic() + patience_s)
            return [self._answer(f, outdir) for f in futures]
        except BuildersLost:
            raise
        except Exception as exc:  # Dask's many ways to say that its scheduler has gone
            raise BuildersLost(f"{type(exc).__name__}: {exc}") from exc
        finally:
            for future in futures:
                future.release()

    def _wait(self, done: queue.SimpleQueue[Any], count: int, deadline: float) -> None:
        while count:
            try:
                done.get(timeout=POLL_S)
                count -= 1
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise BuildersLost("no answer in time") from None
                if self._client.status != "running":
                    raise BuildersLost("its scheduler hung up") from None
                if not self._threads():
                    raise BuildersLost("it has no worker any more") from None

    @staticmethod
    def _answer(future: Any, outdir: Path) -> Built | Failed:
        from distributed import KilledWorker

        if future.status == "cancelled":
            raise BuildersLost("the scheduler dropped the work")
        error = future.exception(timeout=CONNECT_S)
        if isinstance(error, KilledWorker):
            return Failed("compile_error", f"its builders died: {error}")
        answer = future.result(timeout=CONNECT_S)
        if isinstance(answer, Failed):
            return answer
        kernel = answer.object
        for name, data in (answer.library, *([kernel] if kernel else [])):
            part = outdir / f"{name}.part"
            part.write_bytes(data)
            part.replace(outdir / name)
        alone = outdir / kernel[0] if kernel else None
        return Built(outdir / answer.library[0], answer.program, alone)

    def close(self) -> None:
        """Leave the cluster, which goes on."""
        self._client.close(timeout=CLOSE_S)


def _probe(address: str) -> None:
    """See that what listens speaks first, as Dask does: its client waits long where nothing does.

    Raises:
        OSError: nothing answers, or not in time.
        ValueError: it says something else.
    """
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S) as line:
        head = line.recv(8, socket.MSG_WAITALL)
    if len(head) < 8 or struct.unpack("<Q", head)[0] > MAX_HELLO:
        raise ValueError("not Dask")


# What follows runs on a Dask worker.


class _Place(threading.local):
    """What each of its threads owns."""

    worker: Worker | None = None
    lock: HostLock | None = None
    folder: Path | None = None


_place = _Place()
_scratch: list[Scratch] = []
_first = threading.Lock()


def versions() -> dict[str, str]:
    """Of what must be the same on both ends."""
    return {package: metadata.version(package) for package in PACKAGES}


def _folder() -> Path:
    with _first:
        if not _scratch:
            _scratch.append(Scratch("tvmsep-build-"))
            atexit.register(_scratch[0].close)
    return Path(tempfile.mkdtemp(dir=_scratch[0].path))


def _take(path: Path) -> tuple[str, bytes]:
    """A file's name and bytes; the file is gone then: a cluster builds for long."""
    data = path.read_bytes()
    path.unlink()
    return path.name, data


def compile_here(
    task: Task, target: Target, config: Config, limit_s: float, lock_timeout_s: float
) -> Compiled | Failed:
    """Build one candidate in this thread's own process."""
    if _place.folder is None or _place.lock is None:
        _place.folder, _place.lock = _folder(), HostLock(lock_timeout_s)
    if _place.worker is None or not _place.worker.alive:
        _place.worker = Worker(builder.warm, {"TVM_USE_RUNTIME_LIB": "0"})
    worker = _place.worker
    worker.ready()
    with _place.lock.hold(exclusive=False):
        try:
            built = worker.call(
                builder.build_candidate, task, target, config, _place.folder, limit_s=limit_s
            )
        except WorkerTimeout as exc:
            return Failed("build_timeout", str(exc))
        except (WorkerDied, WorkerError) as exc:
            return Failed("compile_error", str(exc))
    if isinstance(built, Failed):
        return built
    kernel = _take(built.object) if built.object is not None else None
    return Compiled(_take(built.so), kernel, built.program)
