"""Work for several boards: one queue, one thread a board, and what happens when boards go.

Each board takes the next job when it is done with its last one, so a slow board gets fewer. Boards
come and go: the tracker is asked every few seconds how many it has, and a slot is started for each.

A job whose board went away is tried again, elsewhere where there is another board. The second time
a board goes away under it the job is to blame and fails for good: `crash` or `timeout`. Where no
board is left the job fails as `link_lost` if it was on a board, else as `board_lost`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tvmsep.contracts import BoardError, TvmsepError
from tvmsep.contracts.trial import BLAMELESS
from tvmsep.measure.results import Board, Failed
from tvmsep.measure.roster import Roster
from tvmsep.measure.slot import Lost, Slot
from tvmsep.measure.worker import WorkerError
from tvmsep.rpc import client

POLL_S = 3.0
"""How often the tracker is asked for its boards."""
RETRY_S = 1.0
"""Between two attempts to get a session."""
COMEBACK_S = 120.0
"""How long a tracker's boards may all be gone before a batch is given up: a reboot takes less."""
DIRECT_TRIES = 2
"""Attempts to reach a board that no tracker lends before a batch is given up."""
KILLS = 2
"""Boards that a job may take down."""
LOSSES = 5
"""Boards that may go away under a job without its doing."""


@dataclass(eq=False)
class Job:
    """Something to do with a board: `work` gets the slot, `answer` is what it gave back."""

    work: Callable[[Slot], Any]
    session_s: float = 0.0
    """How long its session has to last at least, where sessions have a limit."""
    answer: Any = None
    """A value, or the `TvmsepError` that the caller has to see."""
    done: bool = False
    index: int = 0
    """Where its batch has it."""
    kills: list[str] = field(default_factory=list)
    """Boards that went away under it and may have been taken down by it."""
    losses: list[str] = field(default_factory=list)


@dataclass(eq=False)
class _Lane:
    slot: Slot
    thread: threading.Thread | None = None
    job: Job | None = None
    tries: int = 0
    """Failed attempts in a row to get a session."""
    why: str = ""
    error: Exception | None = None
    over: bool = False

    @property
    def thread_lives(self) -> bool:
        """Whether its thread has not ended yet."""
        return self.thread is not None and self.thread.is_alive()


class Dispatch:
    """The queue and its threads.

    Args:
        start: makes a slot.
        place: the tracker's host and port; None for a single board.
        key: of the boards, at the tracker.
    """

    def __init__(
        self, start: Callable[[], Slot], place: tuple[str, int] | None = None, key: str = ""
    ) -> None:
        self._start, self._place, self._key = start, place, key
        self._cond = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._lanes: list[_Lane] = []
        self._closed = self._met = False
        self._polled = place is None
        self._up_at = time.monotonic()
        self._told: set[str] = set()
        """Boards that may believe they are left out."""
        self._reference: Callable[[Slot], float] | None = None
        self.roster = Roster()
        self._add()
        self._watcher: threading.Thread | None = None
        if place is not None:
            self._watcher = threading.Thread(target=self._watch, daemon=True, name="boards")
            self._watcher.start()

    # For the owner

    def submit(self, jobs: list[Job]) -> None:
        """Queue jobs in their order."""
        with self._cond:
            if not any(lane.job for lane in self._lanes):
                self._up_at = time.monotonic()
                for lane in self._lanes:
                    lane.tries = 0
            self._jobs.extend(jobs)
            self._none_left()
            self._cond.notify_all()

    def wait(self, jobs: list[Job]) -> Job:
        """The first of `jobs` that is done."""
        with self._cond:
            while not (ready := next((j for j in jobs if j.done), None)):
                if self._closed:
                    raise RuntimeError("this farm is closed")
                # A limit, so that Ctrl-C is seen while this thread waits.
                self._cond.wait(0.5)
            return ready

    def cancel(self, jobs: list[Job]) -> None:
        """Drop those that have not begun."""
        with self._cond:
            for job in jobs:
                if job in self._jobs:
                    self._jobs.remove(job)

    def boards(self) -> list[Board]:
        """Those with an open session that are used."""
        with self._cond:
            return [x.slot.board for x in self._lanes if x.slot.connected and not self._out(x)]

    @property
    def alone(self) -> bool:
        """Whether every board that was met so far is this host."""
        with self._cond:
            slots = [x.slot for x in self._lanes]
            return all(s.board.local for s in slots if s.board.machine) and any(
                s.board.local for s in slots
            )

    def survey(self, reference: Callable[[Slot], float], limit_s: float) -> dict[str, float]:
        """Measure every board's FLOP/s, and choose the group of boards that are of one kind.

        The largest group counts, the fastest of equally large ones. Boards that come later are
        measured before their first job.

        Raises:
            TvmsepError: what the last board raised, if none could be measured.
        """
        deadline = time.monotonic() + limit_s
        with self._cond:
            self._reference = reference
            self.roster.ungroup()
            self._cond.notify_all()
            while not self._polled or any(not self._surveyed(x) for x in self._lanes):
                if time.monotonic() > deadline or self._closed:
                    break
                self._cond.wait(0.2)
            if not self.roster.flops:
                raise BoardError(next((x.why for x in self._lanes if x.why), "no board answers"))
            self._cond.notify_all()
            return self.roster.group()

    def close(self) -> None:
        """End every thread and every slot."""
        with self._cond:
            self._closed = True
            self._cond.notify_all()
            lanes = list(self._lanes)
        for lane in lanes:
            lane.slot.stop()
        for thread in [self._watcher, *(x.thread for x in lanes)]:
            if thread is not None and thread is not threading.current_thread():
                thread.join(timeout=10.0)
        for lane in lanes:
            lane.slot.close()

    # Which boards

    def _surveyed(self, lane: _Lane) -> bool:
        return lane.over or lane.slot.board.name in self.roster.flops or lane.tries > 0

    def _out(self, lane: _Lane) -> str:
        others = any(x is not lane and x.slot.connected and not x.over for x in self._lanes)
        return self.roster.why_out(lane.slot.board.name, last=not others)

    def _add(self) -> None:
        lane = _Lane(self._start())
        lane.thread = threading.Thread(target=self._serve, args=(lane,), daemon=True, name="slot")
        self._lanes.append(lane)
        lane.thread.start()

    def _watch(self) -> None:
        assert self._place is not None
        while True:
            try:
                there = client.boards(self._place, self._key, stop=lambda: self._closed)
            except BoardError:
                there = []  # it may come back; what is connected goes on meanwhile
            with self._cond:
                if self._closed:
                    return
                out = self.roster.out()
                wanted = max(1, sum(f"{self._key}@{at}" not in out for at in there))
                # An ended slot stays on the list until its thread has closed it.
                self._lanes = [x for x in self._lanes if not x.over or x.thread_lives]
                used = [x for x in self._lanes if not x.over]
                surplus = len(used) - wanted
                for _ in range(-surplus):
                    self._add()
                for lane in used:
                    if surplus > 0 and not lane.slot.connected and lane.tries > 0:
                        lane.over, surplus = True, surplus - 1
                        lane.slot.stop()
                self._polled = True
                self._give_up()
                self._cond.notify_all()
                self._cond.wait(POLL_S)

    # One board's thread

    def _serve(self, lane: _Lane) -> None:
        try:
            while self._wait_for_work(lane):
                with self._cond:
                    job = self._job_for(lane)
                why = lane.slot.connect(job.session_s if job else 0.0)
                why = why or self._measure_reference(lane)
                if why:
                    self._no_session(lane, why)
                    continue
                with self._cond:
                    if self._out(lane):
                        continue  # the boards of its kind were chosen meanwhile
                    self._met, lane.tries, lane.why = True, 0, ""
                    self._up_at = time.monotonic()
                    job = self._take(lane)
                if job is not None:
                    self._do(lane, job)
        except Exception as exc:  # a bug of ours, or a worker that does not start
            with self._cond:
                lane.over = True
                lane.error, lane.why = exc, str(exc)
                if lane.job is not None:
                    self._finish(lane.job, exc)
                self._none_left()
        finally:
            if lane.over and not self._closed:
                lane.slot.stop()
                lane.slot.close()

    def _wait_for_work(self, lane: _Lane) -> bool:
        with self._cond:
            while not (self._closed or lane.over):
                unknown = (
                    self._reference is not None and lane.slot.board.name not in self.roster.flops
                )
                if self._jobs and (self._job_for(lane) or not lane.slot.connected):
                    return True
                if unknown and not self.roster.grouped and not lane.tries:
                    return True
                self._cond.wait(1.0)
            return False

    def _job_for(self, lane: _Lane) -> Job | None:
        """The first that this board may do: one that took it down only if there is no other."""
        name = lane.slot.board.name
        others = any(x is not lane and x.slot.connected and not x.over for x in self._lanes)
        return next((j for j in self._jobs if not others or name not in j.kills + j.losses), None)

    def _take(self, lane: _Lane) -> Job | None:
        job = self._job_for(lane)
        if job is not None and job.session_s > lane.slot.session_s:
            return None
        if job is not None:
            self._jobs.remove(job)
            lane.job = job
        return job

    def _measure_reference(self, lane: _Lane) -> str:
        """Measure a board that is new here; why it cannot be used, or ""."""
        slot, name = lane.slot, lane.slot.board.name
        if self._reference is not None and name not in self.roster.flops:
            try:
                flops = self._reference(slot)
            except (Lost, WorkerError, TvmsepError) as exc:
                slot.drop()
                return f"board {name} does not run the target's code: {exc}"
            with self._cond:
                self.roster.measured(name, slot.board.cpu, flops)
                self._cond.notify_all()
            self._told.add(name)  # by an earlier run, perhaps
        with self._cond:
            why = self._out(lane)
        if why:
            self._told.add(name)
            slot.quarantine(why)
            slot.drop()
            return f"board {name} is left out: {why}"
        if name in self._told:
            self._told.discard(name)
            slot.quarantine("")
        return "" if slot.connected else f"board {name} went away"

    def _no_session(self, lane: _Lane, why: str) -> None:
        with self._cond:
            lane.tries += 1
            lane.why = why
            self._give_up()
            self._cond.notify_all()
            if not self._closed and not lane.over:
                self._cond.wait(RETRY_S if self._place is not None else 0.05)

    def _give_up(self) -> None:
        """Answer what is queued if no board is in sight."""
        lanes = [x for x in self._lanes if not x.over]
        if any(x.slot.connected for x in lanes) or not self._jobs:
            return
        if self._place is None:
            hopeless = all(x.tries >= (DIRECT_TRIES if self._met else 1) for x in lanes)
        elif self._met:
            hopeless = time.monotonic() - self._up_at > COMEBACK_S
        else:
            hopeless = all(x.tries > 0 for x in lanes)
        if hopeless:
            why = next((x.why for x in lanes if x.why), "no board answers")
            for job in self._jobs:
                on = ", ".join(job.kills + job.losses)
                lost = Failed("link_lost", f"lost with board {on}, and no other came: {why}", on)
                self._finish(job, lost if on else Failed("board_lost", why))
            self._jobs.clear()

    def _none_left(self) -> None:
        """Answer what is queued if every slot has ended by an error."""
        errors = [x.error for x in self._lanes if x.error is not None]
        if errors and all(x.over for x in self._lanes):
            for job in self._jobs:
                self._finish(job, errors[0])
            self._jobs.clear()

    def _do(self, lane: _Lane, job: Job) -> None:
        slot = lane.slot
        try:
            answer = job.work(slot)
        except TvmsepError as exc:
            answer = exc
        except Lost as exc:
            with self._cond:
                lane.job = None
                if not self._closed:
                    self.roster.lost(slot.board.name)
                    self._again(job, slot.board.name, exc)
                    self._cond.wait(RETRY_S)  # others first: this board may fail at once again
            return
        with self._cond:
            lane.job, self._up_at = None, time.monotonic()
            self.roster.served(slot.board.name)
            self._finish(job, answer)

    def _again(self, job: Job, board: str, lost: Lost) -> None:
        (job.losses if lost.failure in BLAMELESS else job.kills).append(board)
        if len(job.kills) >= KILLS:
            names = " and ".join(dict.fromkeys(job.kills))
            words = f"{lost}; quarantined: sessions ended under it {KILLS} times, on {names}"
            self._finish(job, Failed(lost.failure, words, board))
        elif len(job.losses) >= LOSSES:
            self._finish(job, Failed(lost.failure, f"{lost}; after {LOSSES} attempts", board))
        else:
            self._jobs.appendleft(job)
            self._cond.notify_all()

    def _finish(self, job: Job, answer: Any) -> None:
        job.answer, job.done = answer, True
        self._cond.notify_all()
