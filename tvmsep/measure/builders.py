"""What compiles for a farm: processes on this host, or a Dask cluster until that goes away."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import BoardError, Config, Failure, Target, Task
from tvmsep.measure import builder, errands
from tvmsep.measure.cluster import BuildersLost, Cluster
from tvmsep.measure.lock import HostLock, Scratch
from tvmsep.measure.results import Built, Failed
from tvmsep.measure.worker import Pool, WorkerTimeout
from tvmsep.targets import host_cores

if TYPE_CHECKING:
    from tvm import IRModule

DEVICE_NETWORK_TIMEOUT_S = 900.0
"""For compiling one for a GPU: its kernels take a second each, one after the other."""


class Builders:
    """Compiles candidates and networks, while nothing is timed on this host.

    Args:
        target: what all is compiled for.
        where: as `Farm`'s `builders`.
        timeout_s: limit on one build.
        lock_timeout_s: how long to wait for another tvmsep that measures on this host.

    Raises:
        BoardError: the Dask cluster does not answer or does not suit.
    """

    def __init__(
        self, target: Target, where: int | str | None, timeout_s: float, lock_timeout_s: float
    ) -> None:
        self._target, self._timeout_s = target, timeout_s
        count = where if isinstance(where, int) else host_cores()
        with contextlib.ExitStack() as ends:
            self.lock = HostLock(lock_timeout_s)
            ends.callback(self.lock.close)
            self.scratch = Scratch("tvmsep-build-")
            ends.callback(self.scratch.close)
            self.pool = Pool(count, builder.warm, {"TVM_USE_RUNTIME_LIB": "0"})
            ends.callback(self.pool.close)
            self._cluster = Cluster(where, lock_timeout_s) if isinstance(where, str) else None
            self._ends = ends.pop_all()

    def close(self) -> None:
        """End every process and remove every file. Safe to call again."""
        try:
            if self._cluster is not None:
                self._cluster.close()
        finally:
            self._ends.close()

    @property
    def count(self) -> int:
        """How many candidates are compiled at one time."""
        return self._cluster.count if self._cluster is not None else len(self.pool.workers)

    def build(
        self, jobs: Sequence[tuple[Task, Config]], note: Callable[[str], None]
    ) -> list[Built | Failed]:
        """As `Farm.build`; `note` hears of a cluster that went away."""
        if not self.pool.workers:
            raise RuntimeError("this farm was made without builders")
        if self._cluster is not None and jobs:
            try:
                return self._cluster.build(jobs, self._target, self.scratch.path, self._timeout_s)
            except BuildersLost as exc:
                note(f"the builders at {self._cluster.address} have gone ({exc}): building here")
                self._cluster.close()
                self._cluster = None
        calls = [(task, self._target, config, self.scratch.path) for task, config in jobs]
        with self.lock.hold(exclusive=False):
            answers = self.pool.map(builder.build_candidate, calls, self._timeout_s)
        return [_built(answer) for answer in answers]

    def networks(
        self, modules: Sequence[IRModule], objects: Sequence[Mapping[str, Path]]
    ) -> list[Path] | Failed:
        """As `Farm.build_networks`."""
        import tvm

        with self.lock.hold(exclusive=False):
            calls = [
                (tvm.ir.save_json(m), self._target, dict(linked), self.scratch.path)
                for m, linked in zip(modules, objects or [{}] * len(modules), strict=True)
            ]
            gpu = self._target.gpu is not None
            limit_s = DEVICE_NETWORK_TIMEOUT_S if gpu else errands.NETWORK_TIMEOUT_S
            answers = self.pool.map(builder.build_network, calls, limit_s)
        for answer in answers:
            if not isinstance(answer, Path):
                return Failed("compile_error", str(answer))
        return answers

    def measuring(self, build: Callable[..., Path], *call: Any) -> Path:
        """A kernel that measures a board itself: `build` of the target, `call` and a folder.

        Raises:
            BoardError: it cannot be compiled.
        """
        (library,) = self.pool.map(
            build, [(self._target, self.scratch.path, *call)], self._timeout_s
        )
        if not isinstance(library, Path):
            raise BoardError(f"cannot compile for target {self._target.name}: {library}")
        return library


def _built(answer: object) -> Built | Failed:
    if isinstance(answer, Built | Failed):
        return answer
    failure: Failure = "build_timeout" if isinstance(answer, WorkerTimeout) else "compile_error"
    return Failed(failure, str(answer))
