"""The board's end of measuring: one RPC session, run inside a worker that can be killed.

An RPC call has no time limit of its own and can block for ever (a candidate that loops, a board
that lost power, a tracker with nothing to lend), so everything here happens in a worker process
and the owner holds the clock. The session outlives many candidates; the tensors of a task are
created once and stay on the board.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmsep.codegen.reference import Array
from tvmsep.contracts import BoardError, Target, Task
from tvmsep.contracts.words import counted
from tvmsep.measure import bandwidth, harness, host, load, peak
from tvmsep.measure.bandwidth import Bandwidth
from tvmsep.measure.device import check, device_of
from tvmsep.measure.load import Load
from tvmsep.measure.network import NetworkJob, OnBoardNetwork
from tvmsep.measure.results import Built, Failed, Measured, shorten
from tvmsep.measure.tensors import TaskTensors, empty, nbytes

BOARD_BYTES = 256 << 20
"""Tensors kept on the board; the tasks that were used longest ago make room."""


@dataclass(frozen=True)
class Address:
    """Where a session comes from."""

    host: str
    port: int
    key: str
    """The board's, or the ticket that a tracker gave for it."""
    session_timeout_s: float
    """Told to the server, which ends the session then; 0 for no limit."""


@dataclass(frozen=True)
class Hello:
    """What a board says of itself, empty where its server is not ours."""

    cpu: str
    """The name of what runs kernels: for a GPU's target that of the GPU."""
    machine: str


class Session:
    """An open RPC session to one board.

    Args:
        address: where to connect.
        seed: of the random inputs.
    """

    def __init__(self, address: Address, seed: int) -> None:
        from tvm import rpc

        limit = address.session_timeout_s
        try:
            self._remote = rpc.connect(
                address.host, address.port, address.key, session_timeout=limit
            )
        except (RuntimeError, OSError) as exc:
            raise BoardError(
                f"no session from {address.host}:{address.port} (key {address.key}): "
                f"{shorten(str(exc), 200)}"
            ) from exc
        self._renew_at = time.monotonic() + limit / 2 if limit else float("inf")
        self._cpu = self._remote.cpu(0)
        self._threads = 0
        self._seed = seed
        self._tasks: OrderedDict[str, TaskTensors] = OrderedDict()
        self._sweeps: dict[tuple[int, int, int], Any] = {}
        self._names = itertools.count()
        self._network: OnBoardNetwork | None = None

    @property
    def stale(self) -> bool:
        """Whether so much of the session's time is spent that a new one should be opened."""
        return time.monotonic() > self._renew_at

    def hello(self, target: Target) -> Hello:
        """Ask the board what it is.

        Raises:
            BoardError: it does not have the device that the target's kernels need.
        """
        cpu, machine = self._ours("tvmsep.cpu"), self._ours(host.FUNCTION)
        gpu = check(self._remote, target)
        runs = gpu.label if gpu else str(cpu()) if cpu else ""
        return Hello(runs, str(machine()) if machine else "")

    def answers(self) -> None:
        """Return if the board still answers; any error says that it does not."""
        self._ours(host.FUNCTION)

    def quarantine(self, why: str) -> None:
        """Let the board tell others why a run leaves it out; "" that it is sound."""
        tell = self._ours("tvmsep.quarantine")
        if tell:
            tell(why)

    def reading(self) -> dict[str, Any] | None:
        """The board's counters, see `load.reading`; None where its server is not ours."""
        read = self._ours(load.FUNCTION)
        return json.loads(read()) if read else None

    def _ours(self, name: str) -> Any:
        """A function that only our own server has, else None."""
        try:
            return self._remote.get_function(name)
        except AttributeError:
            return None

    def _set_threads(self, threads: int) -> None:
        if threads == self._threads:
            return
        config = self._ours("tvmsep.config_threads")
        if config:
            have = int(config(threads))
        else:
            self._remote.get_function("runtime.config_threadpool")(1, threads)
            have = int(self._remote.get_function("runtime.NumThreads")())
        if have != threads:
            raise BoardError(
                f"the board runs {counted('thread', have)} where {threads} were asked for: "
                f"start its RPC server with TVM_NUM_THREADS={threads} or more"
            )
        self._threads = threads

    def prepare(self, task: Task, target: Target) -> None:
        """Put a task's tensors on the board and work out its reference, unless that is done.

        Raises:
            BoardError: the board cannot run the task's number of threads.
        """
        self._set_threads(task.threads)
        if task.key in self._tasks:
            self._tasks.move_to_end(task.key)
            return
        device = device_of(self._remote, target)
        shape = harness.sweep_shape(target, task.threads)
        if shape not in self._sweeps:
            # Any contents will do, and it is the largest tensor: nothing is sent.
            self._sweeps[shape] = empty(shape, "float32", device)
        room = BOARD_BYTES - nbytes(task.workload)
        while self._tasks and sum(t.nbytes for t in self._tasks.values()) > room:
            self._tasks.popitem(last=False)
        self._tasks[task.key] = TaskTensors(
            task, target, device, self._cpu, self._sweeps[shape], self._seed
        )

    def measure(self, task: Task, built: Built, repeats: int | None) -> Measured | Failed:
        """Load a candidate, check its output, time it. `prepare` comes first.

        Args:
            task: what the candidate computes.
            built: the candidate.
            repeats: how many; None chooses as many as make a trial of some 20 ms.
        """
        name = f"c{next(self._names)}.so"
        try:
            self._remote.upload(str(built.so), name)
        except RuntimeError as exc:
            self.answers()  # raises where the link is gone: that is no matter of the upload
            return Failed("upload_error", shorten(str(exc)))
        module = self._remote.load_module(name)
        self._remote.remove(name)
        return self._tasks[task.key].measure(module, repeats)

    def open_network(self, job: NetworkJob, target: Target) -> None:
        """Put a network's variants on the board, in place of those of another network."""
        self._set_threads(job.threads)
        self._network = None  # its memory first, and what candidates used: boards may be small
        self._tasks.clear()
        self._sweeps.clear()
        self._network = OnBoardNetwork(self._remote, job, target)

    def time_turns(
        self, jobs: list[NetworkJob], turns: list[int], target: Target
    ) -> tuple[list[Array], list[list[Array]], Load]:
        """Put several networks on the board and time them in turns, without clock readings inside.

        Returns:
            Seconds of each run of each turn, each network's outputs, and what else the board did.
        """
        self._set_threads(jobs[0].threads)
        self._network = None
        self._tasks.clear()
        self._sweeps.clear()
        there = [OnBoardNetwork(self._remote, j, target, f"net{i}-") for i, j in enumerate(jobs)]
        for network in there:
            network.time_whole()
        begin, before = time.monotonic(), self.reading()
        times = [there[i].time_whole() for i in turns]
        done = load.between(before, self.reading(), time.monotonic() - begin)
        return times, [n.outputs() for n in there], done

    @property
    def network(self) -> OnBoardNetwork:
        """What `open_network` put on the board."""
        assert self._network is not None
        return self._network

    def peak_flops(self, library: Path, target: Target) -> float:
        """FLOP/s of one core, with a library that `peak.build` made."""
        name = "peak.so"
        self._remote.upload(str(library), name)
        return peak.measure(self._remote, self._remote.load_module(name), target)

    def bandwidths(
        self, library: Path, target: Target, threads: int, network_bytes: int
    ) -> list[Bandwidth]:
        """Of each level of the memory, with a library that `bandwidth.build` made."""
        self._set_threads(threads)
        name = "bandwidth.so"
        self._remote.upload(str(library), name)
        module = self._remote.load_module(name)
        return bandwidth.measure(self._remote, module, target, threads, network_bytes)


# What follows runs in the worker, which holds one session at a time.

_open: Session | None = None


def warm() -> None:
    """Import TVM's runtime and its RPC client."""
    import tvm.rpc  # noqa: F401


def connect(address: Address, seed: int, target: Target) -> Hello:
    """Open the worker's session, closing any it had.

    Raises:
        BoardError: the board refuses, cannot be reached, or lacks the target's GPU.
    """
    disconnect()
    global _open
    _open = Session(address, seed)
    return _open.hello(target)


def disconnect() -> None:
    """Close the worker's session: the board is free for others."""
    global _open
    _open = None


def answers() -> bool:
    """Whether the board still answers in the worker's session."""
    assert _open is not None
    _open.answers()
    return True


def reading() -> dict[str, Any] | None:
    """`Session.reading` on the worker's session."""
    assert _open is not None
    return _open.reading()


def quarantine(why: str) -> None:
    """`Session.quarantine` on the worker's session."""
    assert _open is not None
    _open.quarantine(why)


def stale() -> bool:
    """Whether the worker's session should be renewed."""
    return _open is None or _open.stale


def prepare(task: Task, target: Target) -> None:
    """`Session.prepare` on the worker's session."""
    assert _open is not None
    _open.prepare(task, target)


def open_network(job: NetworkJob, target: Target) -> None:
    """`Session.open_network` on the worker's session."""
    assert _open is not None
    _open.open_network(job, target)


def time_network(variant: int | None) -> Array:
    """`OnBoardNetwork.time` on the worker's session, `time_whole` for None."""
    assert _open is not None
    return _open.network.time_whole() if variant is None else _open.network.time(variant)


def time_turns(
    jobs: list[NetworkJob], turns: list[int], target: Target
) -> tuple[list[Array], list[list[Array]], Load]:
    """`Session.time_turns` on the worker's session."""
    assert _open is not None
    return _open.time_turns(jobs, turns, target)


def peak_flops(library: Path, target: Target) -> float:
    """`Session.peak_flops` on the worker's session."""
    assert _open is not None
    return _open.peak_flops(library, target)


def bandwidths(library: Path, target: Target, threads: int, network_bytes: int) -> list[Bandwidth]:
    """`Session.bandwidths` on the worker's session."""
    assert _open is not None
    return _open.bandwidths(library, target, threads, network_bytes)


def measure(task: Task, built: Built, repeats: int | None) -> Measured | Failed:
    """`Session.measure` on the worker's session."""
    assert _open is not None
    return _open.measure(task, built, repeats)
