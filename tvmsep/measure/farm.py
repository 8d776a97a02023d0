"""The farm: builders on this host and one or several boards, behind two calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tvmsep.codegen.reference import Array
from tvmsep.contracts import BoardError, Config, Target, Task, Workload
from tvmsep.measure import bandwidth, errands, harness, peak
from tvmsep.measure.bandwidth import Bandwidth
from tvmsep.measure.builders import Builders
from tvmsep.measure.dispatch import Dispatch, Job
from tvmsep.measure.load import Load
from tvmsep.measure.local import LOCAL_KEY, LocalServer
from tvmsep.measure.network import RUNS, WARM_RUNS, NetworkJob, NetworkTimes
from tvmsep.measure.results import Board, Built, Failed, Measured
from tvmsep.measure.slot import LONG_SESSION_S, REMOTE_SESSION_S, Limits, Slot, Source
from tvmsep.targets import host_cores

if TYPE_CHECKING:
    from tvm import IRModule

    from tvmsep.graph import Plan

SURVEY_S = 60.0
"""For all boards together to open a session and run the reference kernel."""
_ADVICE = "check that its RPC server runs and the key is right"
LOST_GIVE_UP = 2
"""Candidates in a row that found no board before the rest of a batch is given up."""


class Farm:
    """Builds candidates on this host and measures them on boards of one kind.

    Without `board` and `tracker` the board is this host: a server of our own on loopback. With a
    tracker all boards that it lends under the key share the work, and may come and go; those that
    share a machine are timed in turn.

    Args:
        target: what all candidates are compiled for.
        builders: worker processes that compile; None for one a core, 0 to measure only; or the
            address of a Dask scheduler, `tcp://host:8786`, whose workers compile candidates.
        board: a running RPC server, reached at its host and port under its key.
        tracker: host and port of a TVM RPC tracker that lends boards under `key`.
        key: the tracker's key for the boards.
        one_board: stay with the board that the tracker lends first, for all that is asked: what is
            compared must not meet two.
        build_timeout_s: limit on one build.
        run_timeout_s: limit on checking and timing one candidate.
        connect_timeout_s: seconds to wait for a session. None for 10 s on our own server, which is
            free; 315 s elsewhere, as another client's hung session may hold the board for 300 s.
        lock_timeout_s: how long to wait for another tvmsep that measures on this host.
        seed: of the random inputs on which candidates run.

    Raises:
        BoardError: the local server does not start, both `board` and `tracker` are given, or the
            Dask cluster does not answer or does not suit.
    """

    def __init__(
        self,
        target: Target,
        *,
        builders: int | str | None = None,
        board: Board | None = None,
        tracker: tuple[str, int] | None = None,
        key: str = "",
        one_board: bool = False,
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
        self.target, self._seed = target, seed
        self._server: LocalServer | None = None
        self._builders: Builders | None = None
        self._boards: Dispatch | None = None
        self._closed = False
        try:
            # Its processes import TVM while the server starts: nothing waits for them here.
            self._builders = Builders(target, builders, build_timeout_s, lock_timeout_s)
            if board is None and tracker is None:
                self._server = LocalServer(max(target.cores, host_cores()))
                board = Board("local", "127.0.0.1", 0, LOCAL_KEY, "", True)
            elif tracker is not None:
                board = Board(key, *tracker, key, "", False)
            assert board is not None
            connect_s = connect_timeout_s or (10.0 if self._server else REMOTE_SESSION_S + 15.0)
            self._limits = Limits(run_timeout_s, connect_s, lock_timeout_s)
            self._source = Source(board, tracker is not None, self._server, one_board)
            slot = partial(Slot, self._source, target, self._limits, seed)
            self._boards = Dispatch(slot, None if one_board else tracker, key)
            if self._server is not None:
                self._server.start()
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
        builders = self._builders
        try:
            if builders is not None:
                builders.pool.close()  # a build under way lets no board be timed
            if self._boards is not None:
                self._boards.close()
            if self._server is not None:
                self._server.stop()
        finally:
            if builders is not None:
                builders.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this farm is closed")

    @property
    def _dispatch(self) -> Dispatch:
        self._check_open()
        assert self._boards is not None
        return self._boards

    @property
    def _compile(self) -> Builders:
        self._check_open()
        assert self._builders is not None
        return self._builders

    @property
    def builders(self) -> int:
        """How many candidates are compiled at one time."""
        return self._builders.count if self._builders is not None else 0

    # Building

    def build(self, jobs: Sequence[tuple[Task, Config]]) -> list[Built | Failed]:
        """Compile candidates in parallel; answers in the order of `jobs`.

        A crash or an error is a `compile_error`, a library that does not link a `link_error`, a
        build over the limit a `build_timeout`.

        Raises:
            TvmsepError: something that no candidate is to blame for: no linker, the host's
                lock was never free.
        """
        return self._compile.build(jobs, self.notes.append)

    # Measuring

    @property
    def overlaps(self) -> bool:
        """Whether candidates can be built while others are timed: some board is another machine."""
        return not self._dispatch.alone

    @property
    def boards(self) -> int:
        """How many measure now, at least one."""
        return max(1, len(self._dispatch.boards()))

    @property
    def notes(self) -> list[str]:
        """What the user should know about the boards: those that were left out, and why."""
        return self._dispatch.roster.notes

    def known(self, task: Task) -> set[Config] | None:
        """Configs that can be measured; None for all."""
        return None

    def start(
        self, built: Sequence[tuple[Task, Config, Built]], *, repeats: int | None = None
    ) -> Iterator[tuple[int, Measured | Failed]]:
        """Check and time candidates; answers with their places in `built`, as boards are done.

        Where a board is another machine, measuring begins at once and goes on while the caller
        does something else; on this host each candidate begins when its answer is asked for, so
        that the caller does nothing meanwhile.

        Args:
            built: candidates as `build` returned them.
            repeats: how often to time each; None for as many as make a trial of some 20 ms.

        Raises:
            BoardError: a board cannot run as asked, or the host's lock was never free.
        """
        self._check_open()
        jobs = [
            Job(partial(errands.measure, task, b, repeats), index=i)
            for i, (task, _, b) in enumerate(built)
        ]
        if not self.overlaps:
            return self._one_by_one(jobs)
        self._dispatch.submit(jobs)
        return self._as_done(jobs)

    def _one_by_one(self, jobs: list[Job]) -> Iterator[tuple[int, Measured | Failed]]:
        lost = 0
        for job in jobs:
            if lost < LOST_GIVE_UP:
                self._dispatch.submit([job])
                (answer,) = (a for _, a in self._as_done([job]))
            else:
                answer = Failed("board_lost", f"board {self.board.name} has not come back")
            gone = isinstance(answer, Failed) and answer.failure in ("board_lost", "link_lost")
            lost = lost + 1 if gone else 0
            yield job.index, answer

    def _as_done(self, jobs: list[Job]) -> Iterator[tuple[int, Measured | Failed]]:
        left = list(jobs)
        try:
            while left:
                job = self._dispatch.wait(left)
                left.remove(job)
                if isinstance(job.answer, BaseException):
                    raise job.answer
                yield job.index, job.answer
        finally:
            self._dispatch.cancel(left)

    def run(
        self, built: Sequence[tuple[Task, Config, Built]], *, repeats: int | None = None
    ) -> Iterator[Measured | Failed]:
        """As `start`, with the answers in the order of `built`."""
        early: dict[int, Measured | Failed] = {}
        answers = self.start(built, repeats=repeats)
        for i in range(len(built)):
            while i not in early:
                at, answer = next(answers)
                early[at] = answer
            yield early.pop(i)

    def _ask(self, work: Callable[[Slot], Any], session_s: float = 0.0) -> Any:
        """Do something with one board; `Failed` if no board survives it."""
        job = Job(work, session_s)
        self._dispatch.submit([job])
        self._dispatch.wait([job])
        if isinstance(job.answer, BaseException):
            raise job.answer
        return job.answer

    def run_networks(
        self,
        plans: Sequence[Plan],
        choices: Sequence[Mapping[Workload, tuple[str, Config]]],
        *,
        rounds: int,
        whole: bool = False,
        kernels: Sequence[Mapping[Workload, Path]] = (),
    ) -> NetworkTimes | Failed:
        """Time kernels where they run: inside their network, compiled once for each choice.

        The variants take turns, so that a slow spell of the board meets all of them.

        Args:
            plans: the network as each variant runs it: its inputs and parameters are the same. Of
                a batch that is computed by its images one is timed, without the head.
            choices: template and config of each workload, once for each variant.
            rounds: how often each variant has its turn.
            whole: also time the first variant as it will ship, without clock readings inside.
            kernels: for each variant its candidates' object files, if `build` made them all: they
                are linked instead of being compiled again.

        Returns:
            The times, or `Failed` if the network cannot be compiled or run on the board.

        Raises:
            TvmsepError: as `build` and `run` do.
        """
        from tvmsep.compiler import emit, kernel_names

        plans = [plan.of_one_image for plan in plans]
        runs = WARM_RUNS + RUNS
        named = [dict(zip(k, harness.names(), strict=False)) for k in kernels or [{}] * len(plans)]
        objects = [
            {name: kernels[i][w] for w, name in names.items()} for i, names in enumerate(named)
        ]
        with self._compile.lock.hold(exclusive=False):
            modules = [
                emit(plan, self.target, choice, stamped_runs=runs, extern=names or None)
                for plan, choice, names in zip(plans, choices, named, strict=True)
            ]
            if whole:
                modules.append(emit(plans[0], self.target, choices[0]))
                objects.append({})
        libraries = self.build_networks(modules, objects)
        if isinstance(libraries, Failed):
            return libraries
        count = len(choices)
        functions = [kernel_names(m) for m in modules[:count]] if self.target.gpu else []
        job = NetworkJob.of(
            plans, libraries[:count], libraries[-1] if whole else None, self._seed, functions
        )
        times = self.time_networks(job, rounds)
        if isinstance(times, Failed):
            return times
        found = [errands.by_workload(p, steps) for p, steps in zip(plans, times.steps, strict=True)]
        return dataclasses.replace(times, kernels=found)

    def time_networks(self, job: NetworkJob, rounds: int) -> NetworkTimes | Failed:
        """Time what `build_networks` made: the variants, and the whole if there is one, in turn.

        Raises:
            TvmsepError: as `run` does.
        """
        self._check_open()
        count = len(job.libraries)
        turns: list[int | None] = [*range(count), *([None] if job.whole else [])]
        work = partial(errands.time_networks, job, self.target, turns, rounds)
        answer = self._ask(work, LONG_SESSION_S)
        if isinstance(answer, Failed):
            return answer
        board, found = answer
        whole_s = tuple(np.concatenate(found[None]).tolist()) if job.whole else ()
        return NetworkTimes([], whole_s, board, [np.concatenate(found[i]) for i in range(count)])

    def build_networks(
        self, modules: Sequence[IRModule], objects: Sequence[Mapping[str, Path]] = ()
    ) -> list[Path] | Failed:
        """Compile networks, as `tvmsep.compiler.emit` or `stamp` makes them, into libraries.

        Args:
            modules: the networks.
            objects: for each network the object files of kernels that it calls and does not hold.

        Raises:
            TvmsepError: as `build` does.
        """
        return self._compile.networks(modules, objects)

    def time_turns(
        self, jobs: Sequence[NetworkJob], turns: Sequence[int]
    ) -> tuple[list[Array], list[list[Array]], Load] | Failed:
        """Time whole networks in turns, all in one fresh session of one board.

        Args:
            jobs: at the same thread count, each with its library as `whole`.
            turns: which of them, one after the other.

        Returns:
            Seconds of each run of each turn, each network's outputs and what else the board did;
            or why not.

        Raises:
            BoardError: as `run`.
        """
        self._check_open()
        answer = self._ask(partial(errands.time_turns, list(jobs), list(turns), self.target))
        return answer  # type: ignore[no-any-return]

    def measure_turns(
        self, built: Sequence[tuple[Task, Config, Built]], turns: Sequence[int]
    ) -> tuple[list[Measured | Failed], Load] | Failed:
        """Check and time candidates in turns, all in one fresh session of one board.

        Args:
            built: candidates as `build` returned them.
            turns: which of them, one after the other.

        Returns:
            An answer a turn and what else the board did, or why there is none.

        Raises:
            BoardError: as `run`.
        """
        self._check_open()
        jobs = [(task, b) for task, _, b in built]
        answer = self._ask(partial(errands.measure_turns, jobs, list(turns)))
        return answer  # type: ignore[no-any-return]

    def peak_flops_per_core(self) -> float:
        """The FMA peak of one core in FLOP/s: the boards' median, measured in about a second each.

        It is also the boards' reference: those that differ by more than 10 % from the most are
        left out from here on, see `notes`.

        Raises:
            BoardError: no board answers, or it cannot run the target's code.
        """
        self.connect()
        library = self._compile.measuring(peak.build)
        reference = partial(errands.reference, library, self.target, self._limits.run_s)
        try:
            flops = self._dispatch.survey(reference, SURVEY_S)
        except BoardError as exc:
            raise BoardError(f"{exc}; is it the right target?") from exc
        return float(np.median(list(flops.values())))

    def bandwidths(self, threads: int, network_bytes: int = 0) -> list[Bandwidth]:
        """The measured bandwidth of each level of a board's memory, the fastest first.

        Takes about a second. With a network's bytes, on a CPU, also what its weights are read at.

        Raises:
            BoardError: as `peak_flops_per_core`, or the board has not so many threads.
        """
        self.connect()
        library = self._compile.measuring(bandwidth.build, threads, network_bytes)
        call = (library, self.target, threads, network_bytes, self._limits.run_s)
        answer = self._ask(partial(errands.bandwidths, *call))
        if isinstance(answer, Failed):
            raise BoardError(f"its bandwidth cannot be measured: {answer.detail}")
        return list(answer)

    def connect(self) -> Board:
        """Open a session now, so that a wrong address shows before anything is built.

        Raises:
            BoardError: there is no session to be had.
        """
        self._check_open()
        answer = self._ask(lambda slot: slot.board)
        if isinstance(answer, Failed):
            name, (host, port) = self.board.name, (self.board.host, self.board.port)
            raise BoardError(
                f"board {name} at {host}:{port} cannot be used: {answer.detail}; "
                f"{'`tvmsep board doctor` examines it' if self.target.gpu else _ADVICE}"
            )
        assert isinstance(answer, Board)
        return answer

    @property
    def board(self) -> Board:
        """One of those in use, or where it should be while none is."""
        return next(iter(self._dispatch.boards()), self._source.board)
