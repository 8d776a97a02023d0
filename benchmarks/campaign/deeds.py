"""Faults, dealt out over one tuning run by the trials that it has logged."""

from __future__ import annotations

import errno
import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from campaign import candidates
from campaign.link import Link
from campaign.park import Board, Park
from tvmsep.contracts import Config, Task
from tvmsep.logs import LogFile
from tvmsep.measure import Built, Failed, Farm, Measured

KINDS = (
    "server killed",
    "server stopped",
    *candidates.BODIES,
    "half-sent upload",
    "link dropped",
    "link stalled",
    "tracker restarted",
    "board 10x slower",
    "disk full",
)
RUN_TIMEOUT_S = 2.5
"""For checking and timing one candidate: what hangs costs so much of a campaign's time."""
LAST = 0.85
"""All faults are dealt before so much of the trials is over, so that each meets the search."""


class Campaign(threading.Thread):
    """Deals faults while a run goes on; hand it to `hurt`, and `trials` to the run's progress.

    Args:
        park: whose boards are hurt.
        kinds: one fault after the other.
        trials: of the whole run.
        seed: of the moments and the victims.
    """

    def __init__(self, park: Park, kinds: Sequence[str], trials: int, seed: int) -> None:
        super().__init__(daemon=True, name="campaign")
        self.park, self.rng = park, random.Random(seed)
        order = self.rng.sample(list(kinds), len(kinds))
        at = sorted(self.rng.uniform(0.02, LAST) * trials for _ in order)
        self._left = list(zip(at, order, strict=True))
        self.trials = 0
        """Logged so far; the run's progress sets it."""
        self.done: Counter[str] = Counter()
        """Faults that met something, by kind."""
        self.bad: list[str] = []
        """Kinds of candidates that are to be built instead of the next ones."""
        self.full_until = 0.0
        """On the monotonic clock: when the log's disk has space again."""
        self._half: set[Link] = set()
        self._over = threading.Event()
        self._lock = threading.Lock()
        for board in park.boards:
            board.link.on_upload = self._cut_here

    @property
    def left(self) -> int:
        """Faults that have met nothing yet."""
        return len(self._left) + len(self.bad) + bool(self._half)

    def run(self) -> None:
        """Until all are dealt or the run is over."""
        while self._left and not self._over.wait(0.05):
            if self.trials >= self._left[0][0]:
                if self._left[0][1] == "half-sent upload" and self._half:
                    continue
                self._strike(self._left.pop(0)[1])

    def stop(self) -> None:
        """The run is over; what was stopped goes on."""
        self._over.set()
        self.join()
        for board in self.park.boards:
            board.wake(board.pids)

    def _strike(self, kind: str) -> None:
        board = self.rng.choice(self.park.boards)
        if kind in candidates.BODIES:
            self.bad.append(kind)
            return
        if kind == "half-sent upload":
            self._half = {b.link for b in self.park.boards}
            return
        self.done[kind] += 1
        seconds = self.rng.uniform(1.0, 2.0)
        if kind == "server killed":
            board.kill()
        elif kind == "server stopped":
            threading.Thread(target=self._freeze, args=(board, seconds + 2), daemon=True).start()
        elif kind == "link dropped":
            used = [b for b in self.park.boards if b.link.used]
            self.rng.choice(used or [board]).link.cut()
        elif kind == "link stalled":
            board.link.stall(seconds + 2)
        elif kind == "tracker restarted":
            self.park.restart_tracker()
        elif kind == "board 10x slower":
            threading.Thread(target=board.slow_down, args=(seconds + 2,), daemon=True).start()
        elif kind == "disk full":
            self.full_until = time.monotonic() + seconds
        else:
            raise AssertionError(kind)

    def _freeze(self, board: Board, seconds: float) -> None:
        pids = board.freeze()
        self._over.wait(seconds)
        board.wake(pids)

    def _cut_here(self, link: Link) -> bool:
        """Asked by links in the middle of an upload."""
        with self._lock:
            if link not in self._half:
                return False
            self._half = set()
            self.done["half-sent upload"] += 1
        return True


class _Disk:
    """A log's file on a disk that may be full: half of a line is written, as there."""

    def __init__(self, file: Any, campaign: Campaign) -> None:
        self._file, self._campaign = file, campaign

    def write(self, data: bytes) -> int:
        if time.monotonic() > self._campaign.full_until:
            return int(self._file.write(data))
        self._file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


Answers = list[tuple[str, Config, Measured | Failed]]


@contextmanager
def hurt(campaign: Campaign | None) -> Iterator[Answers]:
    """Within it farms build bad candidates and logs lie on a bad disk, as the campaign wants.

    Gives what farms answered to the search: task key, config, answer.
    """
    import tvmsep.measure
    from tvmsep.logs import file
    from tvmsep.tuner.state import task_key

    answers: Answers = []
    number = iter(range(10**9))

    class Hurt(Farm):
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, run_timeout_s=RUN_TIMEOUT_S, **how)

        def build(self, jobs: Sequence[tuple[Task, Config]]) -> list[Built | Failed]:
            built = super().build(jobs)
            for i, (task, config) in enumerate(jobs):
                if campaign is None or not campaign.bad or not isinstance(built[i], Built):
                    continue
                kind = campaign.bad.pop()
                name = hashlib.sha256(f"{kind} {next(number)}".encode()).hexdigest()[:16]
                here = self._compile
                call = (kind, task, self.target, config, here.scratch.path, name)
                (built[i],) = here.pool.map(candidates.build, [call], 30.0)
                if not isinstance(built[i], Built):
                    raise RuntimeError(f"no bad candidate: {built[i]}")
                campaign.done[kind] += 1
            return built

        def start(
            self, built: Sequence[tuple[Task, Config, Built]], *, repeats: int | None = None
        ) -> Iterator[tuple[int, Measured | Failed]]:
            for at, answer in super().start(built, repeats=repeats):
                answers.append((task_key(built[at][0]), built[at][1], answer))
                yield at, answer

    opened = LogFile._open

    def open_bad(log: LogFile) -> None:
        opened(log)
        if campaign is not None:
            log._file = _Disk(log._file, campaign)  # type: ignore[assignment]

    real, poll_s = tvmsep.measure.Farm, file.FULL_POLL_S
    tvmsep.measure.Farm, LogFile._open, file.FULL_POLL_S = Hurt, open_bad, 0.2  # type: ignore[misc, method-assign]
    try:
        yield answers
    finally:
        tvmsep.measure.Farm, LogFile._open, file.FULL_POLL_S = real, opened, poll_s  # type: ignore[misc, method-assign]
