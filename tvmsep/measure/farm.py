"""The farm: builders on this host and one board, behind two calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tvmsep.codegen.reference import Array
from tvmsep.contracts import BoardError, Config, Failure, Target, Task, Workload
from tvmsep.measure import bandwidth, builder, peak, session
from tvmsep.measure.bandwidth import Bandwidth
from tvmsep.measure.local import LOCAL_KEY, LocalServer
from tvmsep.measure.lock import HostLock, Scratch
from tvmsep.measure.network import RUNS, WARM_RUNS, NetworkJob, NetworkTimes
from tvmsep.measure.results import Board, Built, Failed, Measured
from tvmsep.measure.worker import (
    Pool,
    Worker,
    WorkerDied,
    WorkerError,
    WorkerTimeout,
)
from tvmsep.targets import host_cores

if TYPE_CHECKING:
    from tvmsep.graph import Plan

NETWORK_TIMEOUT_S = 120.0
"""For compiling a whole network, and for a dozen runs of it."""
PREPARE_TIMEOUT_S = 120.0
"""For uploading a task's tensors and computing its reference, once a task."""
REMOTE_SESSION_S = 300.0
"""Asked of servers that are not ours: they would let a hung session block the board for ever."""
LOST_GIVE_UP = 2
"""Candidates in a row that found no board before the rest of a batch is given up."""


class Farm:
    """Builds candidates on this host and measures them on one board.

    Without `board` and `tracker` the board is this host: a server of our own on loopback.

    Args:
        target: what all candidates are compiled for.
        builders: worker processes that compile; None for one a core, 0 to measure only.
        board: a running RPC server, reached at its host and port under its key.
        tracker: host and port of a TVM RPC tracker that lends boards under `key`.
        key: the tracker's key for the board.
        build_timeout_s: limit on one build.
        run_timeout_s: limit on checking and timing one candidate.
        connect_timeout_s: limit on getting a session; None for 10 s, and for boards that are not
            ours longer than a hung session may last there.
        lock_timeout_s: how long to wait for another tvmsep that measures on this host.
        seed: of the random inputs on which candidates run.

    Raises:
        BoardError: the local server does not start, or both `board` and `tracker` are given.
    """

    def __init__(
        self,
        target: Target,
        *,
        builders: int | None = None,
        board: Board | None = None,
        tracker: tuple[str, int] | None = None,
        key: str = "",
        build_timeout_s: float = 30.0,
        run_timeout_s: float = 10.0,
        connect_timeout_s: float | None = None,
        lock_timeout_s: float = 600.0,
        seed: int = 0,
    ) -> None:
        if board is not None and tracker is not None:
            raise BoardError("give a board or a tracker, not both: a tracker lends its own boards")
        if tracker is not None and not key:
            raise BoardError("a tracker needs the board's key; its server was started with --key")
        self.target = target
        self._build_timeout_s, self._run_timeout_s = build_timeout_s, run_timeout_s
        self._seed = seed
        self._server: LocalServer | None = None
        self._runner: Worker | None = None
        self._pool: Pool | None = None
        self._connected = self._closed = False
        self._lock = HostLock(lock_timeout_s)
        self._scratch = Scratch("tvmsep-build-")
        try:
            # Workers import TVM while the server starts: nothing waits for them here.
            count = host_cores() if builders is None else builders
            self._pool = Pool(count, builder.warm, {"TVM_USE_RUNTIME_LIB": "0"})
            self._runner = self._start_runner()
            if board is None and tracker is None:
                self._server = LocalServer(max(target.cores, host_cores()))
                self._server.start()
                board = Board("local", "127.0.0.1", self._server.port, LOCAL_KEY, "", True)
            elif tracker is not None:
                board = Board(key, *tracker, key, "", False)
            assert board is not None
            self.board = board
            ours = self._server is not None
            session_s = 0.0 if ours else REMOTE_SESSION_S
            self._connect_timeout_s = connect_timeout_s or (10.0 if ours else session_s + 15.0)
            self._address = session.Address(
                board.host, board.port, board.key, tracker is not None, session_s
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process and remove every file. Safe to call again."""
        self._closed = True
        if self._pool is not None:
            self._pool.close()
        if self._runner is not None:
            self._runner.kill()
        if self._server is not None:
            self._server.stop()
        self._lock.close()
        self._scratch.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this farm is closed")

    @property
    def builders(self) -> int:
        """Worker processes that compile."""
        return len(self._pool.workers) if self._pool is not None else 0

    # Building

    def build(self, jobs: Sequence[tuple[Task, Config]]) -> list[Built | Failed]:
        """Compile candidates in parallel; answers in the order of `jobs`.

        A crash or an error is a `compile_error`, a build over the limit a `build_timeout`.

        Raises:
            TvmsepError: something that no candidate is to blame for: no linker, the host's
                lock was never free.
        """
        self._check_open()
        assert self._pool is not None
        if not self._pool.workers:
            raise RuntimeError("this farm was made without builders")
        calls = [(task, self.target, config, self._scratch.path) for task, config in jobs]
        with self._lock.hold(exclusive=False):
            answers = self._pool.map(builder.build_candidate, calls, self._build_timeout_s)
        return [self._built(answer) for answer in answers]

    @staticmethod
    def _built(answer: object) -> Built | Failed:
        if isinstance(answer, Built):
            return answer
        failure: Failure = "build_timeout" if isinstance(answer, WorkerTimeout) else "compile_error"
        return Failed(failure, str(answer))

    # Measuring

    def run(
        self, built: Sequence[tuple[Task, Config, Built]], *, repeats: int | None = None
    ) -> Iterator[Measured | Failed]:
        """Check and time candidates one after the other, in the order of `built`.

        Args:
            built: candidates as `build` returned them.
            repeats: how often to time each; None for as many as make a trial of some 20 ms.

        Raises:
            BoardError: the board cannot run as asked, or the host's lock was never free.
        """
        lost = 0
        for task, _, candidate in built:
            if lost >= LOST_GIVE_UP:
                yield Failed("board_lost", f"board {self.board.name} has not come back")
                continue
            if self.board.local:
                with self._lock.hold(exclusive=True):
                    outcome = self._run_one(task, candidate, repeats)
            else:
                outcome = self._run_one(task, candidate, repeats)
            gone = isinstance(outcome, Failed) and outcome.failure == "board_lost"
            lost = lost + 1 if gone else 0
            yield outcome

    def _run_one(self, task: Task, candidate: Built, repeats: int | None) -> Measured | Failed:
        why = self._connect()
        if why:
            return Failed("board_lost", why)
        assert self._runner is not None
        try:
            self._runner.call(session.prepare, task, self.target, limit_s=PREPARE_TIMEOUT_S)
            outcome = self._runner.call(
                session.measure, task, candidate, repeats, limit_s=self._run_timeout_s
            )
            assert isinstance(outcome, Measured | Failed)
            return outcome
        except WorkerTimeout as exc:
            self._connected = False
            return Failed("timeout", str(exc))
        except (WorkerDied, WorkerError) as exc:
            # The candidate or the board: only a board that answers clears itself.
            self._connected = False
            why = self._connect()
            if why:
                return Failed("board_lost", f"{why}; before that: {exc}")
            words = self._server.last_words() if self._server is not None else ""
            return Failed("runtime_error", words or str(exc))

    def run_networks(
        self,
        plan: Plan,
        choices: Sequence[Mapping[Workload, tuple[str, Config]]],
        *,
        rounds: int,
        whole: bool = False,
    ) -> NetworkTimes | Failed:
        """Time kernels where they run: inside their network, compiled once for each choice.

        The variants take turns, so that a slow spell of the board meets all of them.

        Args:
            plan: the network.
            choices: template and config of each workload, once for each variant.
            rounds: how often each variant has its turn.
            whole: also time the first variant as it will ship, without clock readings inside.

        Returns:
            The times, or `Failed` if the network cannot be compiled or run on the board.

        Raises:
            TvmsepError: as `build` and `run` do.
        """
        self._check_open()
        libraries = self._build_networks(plan, choices, whole)
        if isinstance(libraries, Failed):
            return libraries
        count = len(choices)
        job = NetworkJob.of(plan, libraries[:count], libraries[-1] if whole else None, self._seed)
        turns: list[int | None] = [*range(count), *([None] if whole else [])]
        found: dict[int | None, list[Array]] = {turn: [] for turn in turns}
        with self._lock.hold(exclusive=True) if self.board.local else nullcontext():
            why = self._connect()
            if why:
                return Failed("board_lost", why)
            assert self._runner is not None
            try:
                self._runner.call(session.open_network, job, self.target, limit_s=PREPARE_TIMEOUT_S)
                for turn in turns * rounds:
                    times = self._runner.call(session.time_network, turn, limit_s=NETWORK_TIMEOUT_S)
                    found[turn].append(times)
            except WorkerTimeout as exc:
                self._connected = False
                return Failed("timeout", str(exc))
            except (WorkerDied, WorkerError) as exc:
                self._connected = False
                return Failed("runtime_error", str(exc))
        whole_s = tuple(np.concatenate(found[None]).tolist()) if whole else ()
        steps = [np.concatenate(found[i]) for i in range(count)]
        return NetworkTimes([_by_workload(plan, times) for times in steps], whole_s, steps)

    def _build_networks(
        self, plan: Plan, choices: Sequence[Mapping[Workload, tuple[str, Config]]], whole: bool
    ) -> list[Path] | Failed:
        """The libraries of all variants, then the first one's without readings if asked for."""
        import tvm

        from tvmsep.compiler import emit

        assert self._pool is not None
        runs = WARM_RUNS + RUNS
        modules = [emit(plan, self.target, c, stamped_runs=runs) for c in choices]
        if whole:
            modules.append(emit(plan, self.target, choices[0]))
        calls = [(tvm.ir.save_json(m), self.target, self._scratch.path) for m in modules]
        with self._lock.hold(exclusive=False):
            answers = self._pool.map(builder.build_network, calls, NETWORK_TIMEOUT_S)
        for answer in answers:
            if not isinstance(answer, Path):
                return Failed("compile_error", str(answer))
        return answers

    def peak_flops_per_core(self) -> float:
        """The board's FMA peak of one core in FLOP/s, measured in about a second.

        Raises:
            BoardError: the board does not answer, or cannot run the target's code.
        """
        call = (self.target, self._scratch.path)
        return float(self._of_board(peak.build, call, session.peak_flops))

    def bandwidths(self, threads: int) -> list[Bandwidth]:
        """The measured bandwidth of each level of the board's memory, the fastest first.

        Takes about a second.

        Raises:
            BoardError: as `peak_flops_per_core`, or the board has not so many threads.
        """
        call = (self.target, threads, self._scratch.path)
        found = self._of_board(bandwidth.build, call, session.bandwidths, threads)
        assert isinstance(found, list)
        return found

    def _of_board(
        self,
        build: Callable[..., Path],
        call: tuple[Any, ...],
        measure: Callable[..., Any],
        *how: Any,
    ) -> Any:
        """Compile a kernel that measures the board, and run it there."""
        self.connect()
        assert self._pool is not None and self._runner is not None
        (library,) = self._pool.map(build, [call], self._build_timeout_s)
        if not isinstance(library, Path):
            raise BoardError(f"cannot compile for target {self.target.name}: {library}")
        with self._lock.hold(exclusive=True):
            try:
                return self._runner.call(
                    measure, library, self.target, *how, limit_s=self._run_timeout_s
                )
            except (WorkerDied, WorkerTimeout, WorkerError) as exc:
                self._connected = False
                raise BoardError(
                    f"board {self.board.name} does not run code for {self.target.name}: {exc}; "
                    "is it the right target?"
                ) from exc

    def connect(self) -> Board:
        """Open a session now, so that a wrong address shows before anything is built.

        Raises:
            BoardError: there is no session to be had.
        """
        why = self._connect()
        if why:
            raise BoardError(
                f"board {self.board.name} at {self.board.host}:{self.board.port} does not answer: "
                f"{why}; check that its RPC server runs and the key is right"
            )
        return self.board

    def _connect(self) -> str:
        """See that the runner holds a fresh session; why not, or ""."""
        self._check_open()
        try:
            if self._runner is None or not self._runner.alive:
                if self._runner is not None:
                    self._runner.kill()
                self._connected = False
                self._runner = self._start_runner()
            if self._connected:
                if not self._runner.call(session.stale, limit_s=self._run_timeout_s):
                    return ""
                self._connected = False
            if self._server is not None and not self._server.alive:
                self._server.start()
                self._address = replace(self._address, port=self._server.port)
                self.board = replace(self.board, port=self._server.port)
            cpu = self._runner.call(
                session.connect, self._address, self._seed, limit_s=self._connect_timeout_s
            )
        except (BoardError, WorkerDied, WorkerTimeout, WorkerError) as exc:
            return str(exc)
        self._connected = True
        if cpu and cpu != self.board.cpu:
            self.board = replace(self.board, cpu=cpu)
        return ""

    def _start_runner(self) -> Worker:
        return Worker(session.warm, {"TVM_USE_RUNTIME_LIB": "1"})


def _by_workload(plan: Plan, times: Array) -> dict[Workload, tuple[float, ...]]:
    """Seconds of each workload in each run, averaged over its steps, from seconds of each step."""
    at: dict[Workload, list[int]] = {}
    for i, step in enumerate(plan.steps):
        if step.workload is not None:
            at.setdefault(step.workload, []).append(i)
    return {w: tuple(times[:, places].mean(axis=1).tolist()) for w, places in at.items()}
