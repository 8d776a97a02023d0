"""What is known while tuning: of one task, of the whole run, and at its end."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from tvmsep.contracts import Config, Task, Trial, Workload
from tvmsep.contracts.trial import BLAMELESS
from tvmsep.logs import Best
from tvmsep.schedules import TEMPLATES

BATCH = 8
"""Trials of a task between two looks at what promises most."""
HOPELESS = 3 * BATCH
"""Trials without one success after which a task is given up."""


@dataclass
class TaskState:
    """What is known about one task while tuning."""

    task: Task
    space: list[Config]
    default: Config
    floor_s: float
    """No config can be faster: FLOPs at the FMA peak of the threads."""
    tried: set[Config] = field(default_factory=set)
    programs: dict[str, Trial] = field(default_factory=dict)
    """The first trial of each compiled program, whether it succeeded or failed."""
    best_s: float = math.inf
    start_s: float = math.inf
    """The default's time."""
    best: Config | None = None
    trials: int = 0
    failures: int = 0
    pending: set[Config] = field(default_factory=set)
    """Configs that are being built or measured."""
    lost: set[Config] = field(default_factory=set)
    """Configs whose board went away under them: they get one more chance in a later batch or
    run. The second time they count as tried, so that nothing proposes them again."""
    gain: float = 1.0
    """Relative gain of the last batches, decaying."""

    @property
    def exhausted(self) -> bool:
        """Whether every config has been tried, or is about to be."""
        return len(self.tried | self.pending) >= len(self.space)

    @property
    def outdated(self) -> bool:
        """Whether its default is not among its trials: it was another then, or a board was lost."""
        known = self.tried | self.pending
        return self.trials > 0 and self.default not in known and self.default in self.space

    def promise_s(self) -> float:
        """Seconds of the network that another batch may save, an estimate."""
        if self.exhausted:
            return 0.0
        if self.outdated:
            return math.inf
        if not math.isfinite(self.best_s):
            return math.inf if self.trials < HOPELESS else 0.0
        # The peak was measured once, perhaps in a slow moment: some room is always left.
        room = max(0.05, 1.0 - self.floor_s / self.best_s)
        rate = 0.5 * self.gain + 0.5 * room * BATCH / max(self.trials, BATCH)
        return self.task.count * self.best_s * max(0.0, min(rate, room))

    def record(self, trial: Trial) -> None:
        """Take a search trial into account."""
        config = trial.as_config()
        if trial.failure == "board_lost":
            return  # it never ran
        if trial.failure in BLAMELESS and config not in self.lost:
            self.lost.add(config)
            return
        self.tried.add(config)
        self.trials += 1
        if trial.program:
            self.programs.setdefault(trial.program, trial)
        if trial.failure is not None:
            self.failures += 1
            return
        if config == self.default:
            self.start_s = trial.median_s
        if trial.median_s < self.best_s:
            self.best_s, self.best = trial.median_s, config


@dataclass
class TuneState:
    """The whole run, as progress displays see it."""

    tasks: list[TaskState]
    started: float
    budget_s: float | None
    trial_limit: int | None
    phase: Literal["search", "final", "ended"] = "search"
    trials: int = 0
    """Search trials of this run."""
    search_s: float = 0.0
    """How long the search took, once it is over."""
    ended: float | None = None
    whole_s: dict[int, float] = field(default_factory=dict)
    """The whole network with the winners, by thread count, where it could be timed."""
    kernels_s: dict[int, float] = field(default_factory=dict)
    """The sum of its kernels' times inside it, taken in turn with the former."""
    notes: list[str] = field(default_factory=list)
    """What the user should know beside the times: boards left out, networks not timed."""

    counts: Mapping[int, Mapping[tuple[Workload, int], int]] = field(default_factory=dict)
    """By thread count of a network, how often it runs which kernels (`Workload.kernel`, threads):
    a batch's images may have kernels of one thread each. Empty: each task at its own."""

    @property
    def trials_per_s(self) -> float:
        """Search trials a second of search, the time for building them included."""
        return self.trials / max(self.search_s or self.elapsed_s, 1e-9)

    @property
    def thread_counts(self) -> list[int]:
        """Thread counts that are tuned for, rising."""
        known = {(t.task.workload.kernel, t.task.threads) for t in self.tasks}
        own = {n for n, tasks in self.counts.items() if known & {*tasks}}
        return sorted(own if self.counts else {n for _, n in known})

    def network_s(self, threads: int | None = None, *, start: bool = False) -> float:
        """Sum of task times at a thread count, or of all; infinite until every task has one.

        Of the separate kernels: those that could replace two of them are not added to them.
        """
        found = 0.0
        for t in self.tasks:
            count = t.task.count if threads in (None, t.task.threads) else 0
            if self.counts and threads is not None:
                count = self.counts[threads].get((t.task.workload.kernel, t.task.threads), 0)
            if count and t.task.workload.op != "dwpw":
                found += count * (t.start_s if start else t.best_s)
        return found

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began, until it ended."""
        return (time.monotonic() if self.ended is None else self.ended) - self.started


@dataclass
class TuneResult:
    """The winners, and why the run ended.

    `reason` is `budget`, `trials`, `plateau`, `exhausted`, `interrupted` or `board_lost`.
    """

    best: dict[str, Best]
    reason: str
    state: TuneState


def task_key(task: Task) -> str:
    """The key that this task's log lines carry: template versions included."""
    version = TEMPLATES[task.template].version
    return Task(
        workload=task.workload,
        target=task.target,
        threads=task.threads,
        template=f"{task.template}@{version}",
    ).key


def same_code(task: Task) -> list[str]:
    """Keys of the tasks of the same code, whoever wrote their input; its own first."""
    same = [msgspec.structs.replace(task, workload=w) for w in task.workload.same_code]
    return list(dict.fromkeys(map(task_key, (task, *same))))


def of_one_code(tasks: Sequence[Task]) -> list[Task]:
    """The first of those whose kernels are the same code, with their counts together."""
    found: dict[tuple[Workload, int, str], Task] = {}
    for task in tasks:
        at = task.workload.kernel, task.threads, task.template
        count = task.count + (found[at].count if at in found else 0)
        found[at] = msgspec.structs.replace(found.get(at, task), count=count)
    return list(found.values())


def winner_of(task: Task, winners: Mapping[str, Best]) -> Best | None:
    """A task's winner; of one of the same code where only that was timed in a network."""
    found = [winners[key] for key in same_code(task) if key in winners]
    return min(found, key=lambda b: b.inside is None, default=None)


def now(timespec: str = "seconds") -> str:
    """This moment, in UTC, as a log line says it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec=timespec)
