"""One session with a board, to see what it is and how steadily it computes.

An RPC call has no time limit of its own, so `Examiner` makes the session in a worker process that
can be killed, as measuring does.
"""

from __future__ import annotations

import contextlib
import gc
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tvmsep.boards.facts import Facts, parse
from tvmsep.boards.lookup import Reached
from tvmsep.contracts import BoardError, Target
from tvmsep.measure import builder, peak
from tvmsep.measure.device import Device, find
from tvmsep.measure.lock import Scratch
from tvmsep.measure.results import shorten
from tvmsep.measure.worker import Worker, WorkerDied, WorkerError, WorkerTimeout

CONNECT_TIMEOUT_S = 6.0
LEAVE_TIMEOUT_S = 3.0
BUILD_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 30.0
SESSION_S = 60.0
"""Asked of the server, so that a hung examination ends there too."""
MIN_BURST_S = 1e-3
BURSTS = 300
BURSTS_S = 1.0
"""Of all bursts together; an emulated device takes long for one, and gets `FEW_BURSTS` at least."""
FEW_BURSTS = 9


@dataclass(frozen=True)
class Identity:
    """What a board's server tells: all of it, or a little where it is a stock TVM server."""

    facts: Facts
    ours: bool
    threads: int
    """Of TVM's pool, 0 if unknown."""


@dataclass(frozen=True)
class Steadiness:
    """Times of one fixed piece of work, again and again."""

    times_s: tuple[float, ...]
    flops: float
    """FLOP/s of one core in the best of them."""


class WrongKey(BoardError):
    """The server has another key than was asked for."""


class Examiner:
    """Opens sessions to one board.

    Args:
        at: the board.
    """

    def __init__(self, at: Reached) -> None:
        self._at = at
        self._scratch = Scratch("tvmsep-doctor-")
        self._runner = Worker(_warm, {"TVM_USE_RUNTIME_LIB": "1"})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A stock server whose client is cut off stops listening: leave as the protocol wants.
        with contextlib.suppress(WorkerDied, WorkerTimeout, WorkerError):
            self._runner.call(_leave, limit_s=LEAVE_TIMEOUT_S)
        self._runner.kill()
        self._scratch.close()

    def identify(self) -> Identity:
        """Connect, and ask the board what it is.

        Raises:
            WrongKey: the server has another key.
            BoardError: no session within `CONNECT_TIMEOUT_S`.
        """
        self._runner.ready()
        try:
            answer = self._runner.call(_identify, self._at, limit_s=CONNECT_TIMEOUT_S)
        except WorkerTimeout as error:
            raise BoardError(
                f"{self._at.name}: no session within {CONNECT_TIMEOUT_S:g} s: it is in use or "
                "hangs; `tvmsep boards` shows who is busy"
            ) from error
        except (WorkerDied, WorkerError) as error:
            raise BoardError(f"{self._at.name}: no session: {error}") from error
        assert isinstance(answer, Identity)
        return answer

    def device(self) -> Device:
        """Ask the board for its CUDA device, in the session of `identify`.

        Raises:
            BoardError: it has none that TVM can use, or does not answer.
        """
        try:
            answer = self._runner.call(_device, limit_s=RUN_TIMEOUT_S)
        except (WorkerDied, WorkerTimeout, WorkerError) as error:
            raise BoardError(f"the board's CUDA does not answer: {error}") from error
        assert isinstance(answer, Device)
        return answer

    def steadiness(self, target: Target) -> Steadiness:
        """Compile the reference kernel for a target, and run it on the board for half a second.

        Raises:
            BoardError: it does not compile here, or the board does not run it.
        """
        compiler = Worker(builder.warm, {"TVM_USE_RUNTIME_LIB": "0"})
        try:
            library = compiler.call(peak.build, target, self._scratch.path, limit_s=BUILD_TIMEOUT_S)
        except (WorkerDied, WorkerTimeout, WorkerError) as error:
            raise BoardError(f"cannot compile for target {target.name}: {error}") from error
        finally:
            compiler.kill()
        try:
            answer = self._runner.call(_run, library, target, limit_s=RUN_TIMEOUT_S)
        except (WorkerDied, WorkerTimeout, WorkerError) as error:
            raise BoardError(f"the board does not run code for {target.name}: {error}") from error
        assert isinstance(answer, Steadiness)
        return answer


# What follows runs in the worker, which holds one session.

_remote: Any = None


def _warm() -> None:
    import tvm.rpc  # noqa: F401


def _identify(at: Reached) -> Identity:
    global _remote
    from tvm import rpc

    try:
        if at.tracker:
            tracker = rpc.connect_tracker(at.host, at.port)
            _remote = tracker.request(at.key, session_timeout=SESSION_S, max_retry=1)
            tracker.close()
        else:
            _remote = rpc.connect(at.host, at.port, at.key, session_timeout=SESSION_S)
    except (RuntimeError, OSError) as error:
        if "matches key" in str(error):
            raise WrongKey(f"{at.name}: the server there has another key") from error
        raise BoardError(f"{at.name}: no session: {shorten(str(error), 200)}") from error

    def ask(name: str) -> Any:
        try:
            return _remote.get_function(name)()
        except Exception:  # TVM raises several types for a function that the board does not have
            return None

    threads = int(ask("runtime.NumThreads") or 0)
    text = ask("tvmsep.facts")
    if text:
        return Identity(parse(str(text)), True, threads)
    # A stock server that has TVM's compiler loaded can at least tell what LLVM sees.
    triple = str(ask("target.llvm_get_system_triple") or "")
    facts = Facts(machine=triple.split("-")[0], cpu=str(ask("target.llvm_get_system_cpu") or ""))
    return Identity(facts, False, threads)


def _device() -> Device:
    return find(_remote)


def _leave() -> None:
    global _remote
    _remote = None
    gc.collect()


def _run(library: Path, target: Target) -> Steadiness:
    _remote.upload(str(library), "peak.so")
    module = _remote.load_module("peak.so")
    flops = peak.measure(_remote, module, target)
    burst_s = max(MIN_BURST_S, peak.flop(target) / flops)
    count = max(FEW_BURSTS, min(BURSTS, int(BURSTS_S / burst_s)))
    return Steadiness(peak.bursts(_remote, module, target, flops, burst_s, count), flops)
