"""One entrant's process: the functions that run in it, and the handle on it.

Between its turns an entrant is stopped (SIGSTOP): the threads of its engine spin for a while after
a call, each engine's for another while, and would take the cores of whoever comes next. It is
killed by the kernel when its owner dies, for a stopped process cannot notice that itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tvmsep.compare.engines import Adapter, Array, Job, make
from tvmsep.contracts import InputError
from tvmsep.measure.worker import Worker, WorkerDied, WorkerError, WorkerStartError, WorkerTimeout

LOAD_TIMEOUT_S = 120.0
CALL_TIMEOUT_S = 60.0
WARM_S, WARM_CALLS = 0.06, 3
_PR_SET_PDEATHSIG = 1

# What follows runs in the entrant's process, which holds one network.

_net: Adapter | None = None
_inputs: list[Array] = []


def _start() -> None:
    """Die with the owner, also while stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True)
class Loaded:
    """What an entrant's process says of itself."""

    version: str


def load(adapter: str, job: Job, inputs: Sequence[Array]) -> Loaded:
    """Load the network and warm it up."""
    global _net, _inputs
    _net, _inputs = make(adapter, job), list(inputs)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < WARM_CALLS or time.perf_counter() - begin < WARM_S:
        times += block(1, 0)
        if time.perf_counter() - begin > 20 * WARM_S and len(times) >= 2:
            break
    return Loaded(str(getattr(_net, "version", "")))


def run(inputs: Sequence[Array]) -> list[Array]:
    """The outputs for other inputs, copied: an engine may hand out its own buffers."""
    import numpy as np

    assert _net is not None
    return [np.array(a) for a in _net(list(inputs))]


def block(calls: int, warm: int) -> list[float]:
    """Seconds of each of `calls` calls after `warm` that do not count."""
    assert _net is not None
    for _ in range(warm):
        _net(_inputs)
    times = []
    for _ in range(calls):
        begin = time.perf_counter()
        _net(_inputs)
        times.append(time.perf_counter() - begin)
    return times


# The owner's end.


class Seat:
    """A fresh process with one network.

    Args:
        name: of the entrant, for messages.
        adapter: see `Engine`.
        job: what to load.
        inputs: what is timed.
    """

    def __init__(self, name: str, adapter: str, job: Job, inputs: Sequence[Array]) -> None:
        self.name = name
        count = str(job.threads)
        self._worker = Worker(_start, {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count})
        self._load = (adapter, job, inputs)
        self._asleep = False

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._worker.pid

    def begin(self, cpus: Collection[int] | None = None) -> None:
        """Start loading; `ready` waits for it.

        Args:
            cpus: where it stays, with all threads that it will start: engines that pin threads
                look where they may.
        """
        self._guard(self._worker.ready)
        if cpus is not None:
            with contextlib.suppress(FileNotFoundError):  # it ended: the next call says so
                for thread in os.listdir(f"/proc/{self.pid}/task"):
                    with contextlib.suppress(ProcessLookupError):  # this one did
                        os.sched_setaffinity(int(thread), cpus)
        self._guard(lambda: self._worker.submit(load, *self._load, limit_s=LOAD_TIMEOUT_S))

    def ready(self) -> Loaded:
        """Wait until it has loaded and is warm, then stop it."""
        loaded: Loaded = self._guard(self._worker.result)
        self._sleep()
        return loaded

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs for other inputs."""
        return self._call(run, inputs)  # type: ignore[no-any-return]

    def block(self, calls: int, warm: int) -> list[float]:
        """See the function of that name."""
        return self._call(block, calls, warm)  # type: ignore[no-any-return]

    def _call(self, fn: Callable[..., Any], *args: Any) -> Any:
        self._wake()
        answer = self._guard(lambda: self._worker.call(fn, *args, limit_s=CALL_TIMEOUT_S))
        self._sleep()
        return answer

    def _guard(self, what: Callable[[], Any]) -> Any:
        try:
            return what()
        except (WorkerDied, WorkerError, WorkerTimeout, WorkerStartError) as exc:
            raise InputError(
                f"{self.name} failed: {exc}; leave it out, or give a network that it can run"
            ) from exc

    def _wake(self) -> None:
        if self._asleep:
            os.killpg(self._worker.pid, signal.SIGCONT)
            self._asleep = False

    def _sleep(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._worker.pid, signal.SIGSTOP)
            self._asleep = True

    def close(self) -> None:
        """End the process. Safe to call again."""
        self._worker.kill()
