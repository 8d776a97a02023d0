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

import numpy as np

from tvmsep.codegen import example_inputs, reference, relative_error
from tvmsep.codegen.reference import Array, unblock
from tvmsep.compiler import stamps_dtype
from tvmsep.contracts import BoardError, Target, Task
from tvmsep.contracts.words import counted
from tvmsep.measure import bandwidth, harness, host, load, peak
from tvmsep.measure.bandwidth import Bandwidth
from tvmsep.measure.load import Load
from tvmsep.measure.network import NetworkJob, OnBoardNetwork
from tvmsep.measure.results import Built, Failed, Measured, shorten

TOLERANCE = 1e-4
"""Largest accepted error, relative to the largest magnitude of the reference."""
TRIAL_S = 0.02
"""Time one trial should spend in repeats, sweeps and producers included."""
MIN_REPEATS = 8
SLOW_TRIAL_S = 1.0
"""A candidate so slow that `MIN_REPEATS` take longer gets fewer, but at least `SLOW_REPEATS`."""
SLOW_REPEATS = 3
WARM_REPEATS = 2
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
    machine: str


@dataclass
class _OnBoard:
    """One task's tensors on the board, and what its output must be."""

    source: Any
    params: list[Any]
    sweep: Any
    stamps: Any
    want: Array
    nbytes: int


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
        self._tasks: OrderedDict[str, _OnBoard] = OrderedDict()
        self._sweeps: dict[tuple[int, int, int], Any] = {}
        self._names = itertools.count()
        self._network: OnBoardNetwork | None = None

    @property
    def stale(self) -> bool:
        """Whether so much of the session's time is spent that a new one should be opened."""
        return time.monotonic() > self._renew_at

    def hello(self) -> Hello:
        """Ask the board what it is."""
        cpu, machine = self._ours("tvmsep.cpu"), self._ours(host.FUNCTION)
        return Hello(str(cpu()) if cpu else "", str(machine()) if machine else "")

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

    def _tensor(self, shape: tuple[int, ...], dtype: str, fill: Array | None = None) -> Any:
        from tvm import runtime

        tensor = runtime.empty(shape, dtype, self._cpu)
        return tensor if fill is None else tensor.copyfrom(fill)

    def prepare(self, task: Task, target: Target) -> None:
        """Put a task's tensors on the board and work out its reference, unless that is done.

        Raises:
            BoardError: the board cannot run the task's number of threads.
        """
        self._set_threads(task.threads)
        if task.key in self._tasks:
            self._tasks.move_to_end(task.key)
            return
        w = task.workload
        inputs = example_inputs(w, self._seed)
        # fp32: some 1e-6 off, far below the tolerance, and several times sooner there.
        want = reference(w, inputs, "float32")
        sweep = harness.sweep_shape(target, task.threads)
        if sweep not in self._sweeps:
            # Any contents will do, and it is the largest tensor: nothing is sent.
            self._sweeps[sweep] = self._tensor(sweep, "float32")
        nbytes = sum(a.nbytes for a in inputs) + inputs[0].nbytes + 4 * want.size
        while self._tasks and sum(t.nbytes for t in self._tasks.values()) + nbytes > BOARD_BYTES:
            self._tasks.popitem(last=False)
        made = [self._tensor(a.shape, str(a.dtype), a) for a in inputs]
        source = self._tensor(inputs[0].shape, str(inputs[0].dtype))
        made[0].copyto(source)  # on the board: RPC moves some 60 MB/s
        out = self._tensor(want.shape, w.dtype)
        self._tasks[task.key] = _OnBoard(
            source=source,
            params=[*made, out],
            sweep=self._sweeps[sweep],
            stamps=self._tensor((harness.MAX_REPEATS, 4), stamps_dtype(target)),
            want=want,
            nbytes=nbytes,
        )

    def measure(self, task: Task, built: Built, repeats: int | None) -> Measured | Failed:
        """Load a candidate, check its output, time it. `prepare` comes first.

        Args:
            task: what the candidate computes.
            built: the candidate.
            repeats: how many; None chooses as many as fit `TRIAL_S`.
        """
        on = self._tasks[task.key]
        name = f"c{next(self._names)}.so"
        try:
            self._remote.upload(str(built.so), name)
        except RuntimeError as exc:
            self.hello()  # raises where the link is gone: that is no matter of the upload
            return Failed("upload_error", shorten(str(exc)))
        module = self._remote.load_module(name)
        self._remote.remove(name)
        module[harness.POISON](on.params[-1])
        module[harness.KERNEL](*on.params)
        got = on.params[-1].numpy()
        error = relative_error(got, on.want, task.workload.oc)
        if not error <= TOLERANCE:
            return Failed("wrong_output", _difference(got, on.want, error, task.workload.oc))
        timer = module[harness.TIMER]

        def run(count: int) -> Array:
            timer(on.source, *on.params, on.sweep, on.stamps, count)
            words = on.stamps.numpy()[:count].astype(np.int64)
            ns: Array = words[:, ::2] * 1_000_000_000 + words[:, 1::2]
            return ns  # [count, (before, after)]

        first = run(WARM_REPEATS)
        count = repeats or _repeats(int(first[-1, 1] - first[0, 1]) * 1e-9 / (WARM_REPEATS - 1))
        stamps = run(min(count, harness.MAX_REPEATS))
        return Measured(tuple(int(ns) / 1e9 for ns in stamps[:, 1] - stamps[:, 0]), error)

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

    def bandwidths(self, library: Path, target: Target, threads: int) -> list[Bandwidth]:
        """Of each level of the memory, with a library that `bandwidth.build` made."""
        self._set_threads(threads)
        name = "bandwidth.so"
        self._remote.upload(str(library), name)
        return bandwidth.measure(self._remote, self._remote.load_module(name), target, threads)


def _repeats(each_s: float) -> int:
    """How many repeats of `each_s` seconds make a trial."""
    if each_s * MIN_REPEATS > SLOW_TRIAL_S:
        return max(SLOW_REPEATS, int(SLOW_TRIAL_S / each_s))
    return max(MIN_REPEATS, min(harness.MAX_REPEATS, int(TRIAL_S / max(each_s, 1e-9))))


def _difference(got: Array, want: Array, error: float, channels: int) -> str:
    """Where (image, channel, pixel) and by how much an output is wrong."""
    if got.ndim == 4:
        got, want = unblock(got, channels), unblock(want, channels)
    bad = ~np.isfinite(got)
    if np.isinf(error):
        at = np.unravel_index(int(bad.argmax()), got.shape)
        return (
            f"{int(bad.sum())} of {got.size} output elements are NaN or infinite, "
            f"or were never written; the first at {[int(i) for i in at]}"
        )
    gap = np.abs(got - want)
    at = np.unravel_index(int(np.where(bad, 0, gap).argmax()), got.shape)
    where = [int(i) for i in at]
    return (
        f"relative error {error:.2g} (limit {TOLERANCE:g}); "
        f"at {where}: {got[at]:.6g} instead of {want[at]:.6g}"
    )


# What follows runs in the worker, which holds one session at a time.

_open: Session | None = None


def warm() -> None:
    """Import TVM's runtime and its RPC client."""
    import tvm.rpc  # noqa: F401


def connect(address: Address, seed: int) -> Hello:
    """Open the worker's session, closing any it had.

    Raises:
        BoardError: the board refuses or cannot be reached.
    """
    disconnect()
    global _open
    _open = Session(address, seed)
    return _open.hello()


def disconnect() -> None:
    """Close the worker's session: the board is free for others."""
    global _open
    _open = None


def answers() -> bool:
    """Whether the board still answers in the worker's session."""
    assert _open is not None
    _open.hello()
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


def bandwidths(library: Path, target: Target, threads: int) -> list[Bandwidth]:
    """`Session.bandwidths` on the worker's session."""
    assert _open is not None
    return _open.bandwidths(library, target, threads)


def measure(task: Task, built: Built, repeats: int | None) -> Measured | Failed:
    """`Session.measure` on the worker's session."""
    assert _open is not None
    return _open.measure(task, built, repeats)
