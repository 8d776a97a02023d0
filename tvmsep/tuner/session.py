"""One tuning run: share the trials out over the tasks, log everything, re-measure the best.

A round takes the task that promises the largest gain for the whole network, measures a batch of
its configs and looks again (the gradient scheduler of Ansor, Zheng et al., OSDI 2020, reduced to
its core). Everything measured is in the log before the next candidate starts, so the run may be
stopped anywhere and goes on from there.
"""

from __future__ import annotations

import datetime
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Literal

import numpy as np

import tvmsep
from tvmsep.contracts import Config, Target, Task, Trial
from tvmsep.contracts.trial import Phase
from tvmsep.logs import Best, LogFile, best_trials
from tvmsep.measure import Built, Failed, Farm, Measured
from tvmsep.schedules import TEMPLATES
from tvmsep.tuner.model import CostModel
from tvmsep.tuner.search import propose

BATCH = 8
FIRST_BATCH = 4
"""Of a task that was never measured: the default and a few more, so that every task has its turn
before a short budget is over."""
FINALISTS = 3
FINAL_ROUNDS = 3
HOPELESS = 3 * BATCH
"""Trials without one success after which a task is given up."""
PLATEAU_GAIN = 0.003
PLATEAU_TRIALS = 160
_FINAL_SECONDS_PER_TRIAL = 0.2


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
    lost: set[Config] = field(default_factory=set)
    """Configs that were on the board when it went away: they get one more chance."""
    gain: float = 1.0
    """Relative gain of the last batches, decaying."""

    @property
    def exhausted(self) -> bool:
        """Whether every config has been tried."""
        return len(self.tried) >= len(self.space)

    def promise_s(self) -> float:
        """Seconds of the network that another batch may save, an estimate."""
        if self.exhausted:
            return 0.0
        if not math.isfinite(self.best_s):
            return math.inf if self.trials < HOPELESS else 0.0
        # The peak was measured once, perhaps in a slow moment: some room is always left.
        room = max(0.05, 1.0 - self.floor_s / self.best_s)
        rate = 0.5 * self.gain + 0.5 * room * BATCH / max(self.trials, BATCH)
        return self.task.count * self.best_s * max(0.0, min(rate, room))

    def record(self, trial: Trial) -> None:
        """Take a search trial into account."""
        config = trial.as_config()
        if trial.failure == "board_lost" and config not in self.lost:
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

    @property
    def trials_per_s(self) -> float:
        """Search trials a second of search, the time for building them included."""
        return self.trials / max(self.search_s or self.elapsed_s, 1e-9)

    @property
    def thread_counts(self) -> list[int]:
        """Thread counts that are tuned for, rising."""
        return sorted({t.task.threads for t in self.tasks})

    def network_s(self, threads: int | None = None, *, start: bool = False) -> float:
        """Sum of task times at a thread count, or of all; infinite until every task has one."""
        return sum(
            t.task.count * (t.start_s if start else t.best_s)
            for t in self.tasks
            if threads in (None, t.task.threads)
        )

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


Progress = Callable[[TuneState], None]


class _Run:
    def __init__(
        self,
        tasks: Sequence[Task],
        target: Target,
        farm: Farm,
        log: LogFile,
        peak_flops_per_core: float,
        seed: int,
        state: TuneState,
        progress: Progress,
    ) -> None:
        self.target, self.farm, self.log, self.seed = target, farm, log, seed
        self.state, self.progress = state, progress
        self.rng = np.random.default_rng(seed)
        self.models: dict[str, CostModel] = {}
        self.built: dict[tuple[str, Config], Built | Failed] = {}
        board = farm.connect()
        self.board, self.cpu = board.name, board.cpu
        self.tvm = metadata.version("apache-tvm")
        for task in tasks:
            template = TEMPLATES[task.template]
            w = task.workload
            self.state.tasks.append(
                TaskState(
                    task,
                    template.space(w, target, task.threads).configs(),
                    template.default(w, target, task.threads),
                    w.flops / (peak_flops_per_core * task.threads),
                )
            )
        self._resume()

    def _resume(self) -> None:
        """Take over what the log already holds for these tasks."""
        by_key = {self._key(t.task): (t, set(t.space)) for t in self.state.tasks}
        for trial in self.mine():
            state, space = by_key.get(trial.task_key, (None, set()))
            if state is not None and trial.phase == "search" and trial.as_config() in space:
                state.record(trial)

    def mine(self) -> list[Trial]:
        """The log's trials of this CPU and TVM: a target spans several, and times do not carry."""
        return [t for t in self.log.trials if (t.cpu, t.tvm) == (self.cpu, self.tvm)]

    @staticmethod
    def _key(task: Task) -> str:
        return task_key(task)

    def _trial(
        self,
        task: Task,
        config: Config,
        answer: Measured | Failed,
        phase: Phase,
        program: str,
        detail: str = "",
    ) -> Trial:
        return Trial(
            workload=task.workload,
            template=task.template,
            template_version=TEMPLATES[task.template].version,
            config=dict(config),
            times_s=() if isinstance(answer, Failed) else tuple(answer.times_s),
            failure=answer.failure if isinstance(answer, Failed) else None,
            detail=answer.detail if isinstance(answer, Failed) else detail,
            program=program,
            phase=phase,
            target=self.target.name,
            threads=task.threads,
            board=self.board,
            cpu=self.cpu,
            tvm=self.tvm,
            tvmsep=tvmsep.__version__,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seed=self.seed,
        )

    def model(self, template: str) -> CostModel:
        """The template's model, fitted to everything in the log."""
        model = self.models.setdefault(template, CostModel(self.seed))
        version = TEMPLATES[template].version
        model.fit(
            t
            for t in self.log.trials
            if t.template == template
            and t.template_version == version
            and t.target == self.target.name
            and t.phase == "search"
            and t.failure != "board_lost"
        )
        return model

    def _build(self, task: Task, configs: Sequence[Config]) -> list[Built | Failed]:
        """Compile what this run has not compiled yet."""
        key = self._key(task)
        new = [c for c in configs if (key, c) not in self.built]
        builds = self.farm.build([(task, c) for c in new]) if new else []
        self.built.update(((key, c), b) for c, b in zip(new, builds, strict=True))
        return [self.built[key, c] for c in configs]

    def batch(self, state: TaskState, count: int) -> bool:
        """Measure the next `count` configs of a task; False if the board was gone at the end."""
        task = state.task
        before = state.best_s
        configs = propose(
            task, state.space, state.tried, state.default, self.model(task.template), count,
            self.rng,
        )  # fmt: skip
        builds = self._build(task, configs)
        todo: list[tuple[Task, Config, Built]] = []
        waiting: dict[str, list[Config]] = defaultdict(list)
        for config, built in zip(configs, builds, strict=True):
            if isinstance(built, Failed):
                self._log(state, self._trial(task, config, built, "search", ""))
            elif built.program in state.programs or built.program in waiting:
                waiting[built.program].append(config)
            else:
                waiting[built.program] = []
                todo.append((task, config, built))
        lost: set[str] = set()
        gone = False
        for (_, config, built), answer in zip(todo, self.farm.run(todo), strict=True):
            self._log(state, self._trial(task, config, answer, "search", built.program))
            gone = isinstance(answer, Failed) and answer.failure == "board_lost"
            if gone:
                lost.add(built.program)
        for program, twins in waiting.items():
            known = state.programs.get(program)
            if program in lost or known is None:
                continue  # nothing is known of them
            for config in twins:
                answer = (
                    Failed(known.failure, f"equal program: {known.detail}")
                    if known.failure is not None
                    else Measured(known.times_s, 0.0)
                )
                trial = self._trial(task, config, answer, "search", program, "equal program")
                self._log(state, trial)
        after = state.best_s
        gained = 1.0 - after / before if math.isfinite(before) and before > 0 else 0.3
        state.gain = 0.5 * state.gain + 0.5 * gained
        return not gone

    def _log(self, state: TaskState, trial: Trial) -> None:
        self.log.append(trial)
        state.record(trial)
        self.state.trials += 1
        self.progress(self.state)

    def final(self, deadline: float | None) -> None:
        """Measure each task's best few again, in turn, heaviest tasks first."""
        self.state.phase, self.state.search_s = "final", self.state.elapsed_s
        self.progress(self.state)
        order = sorted(self.state.tasks, key=lambda t: -t.task.count * min(t.best_s, 1e9))
        by_task: dict[str, list[Trial]] = defaultdict(list)
        for trial in self.mine():
            if trial.failure is None and trial.phase == "search":
                by_task[trial.task_key].append(trial)
        for state in order:
            if deadline is not None and time.monotonic() > deadline:
                return
            ranked = sorted(by_task[self._key(state.task)], key=lambda t: t.median_s)
            finalists: dict[str, Config] = {}
            for trial in ranked:
                finalists.setdefault(trial.program or trial.as_config().key, trial.as_config())
                if len(finalists) == FINALISTS:
                    break
            # What ran without tuning must be beaten in turn, not by one lucky measurement.
            for trial in ranked:
                if trial.as_config() == state.default:
                    finalists.setdefault(trial.program or state.default.key, state.default)
            if len(finalists) < 2:
                continue
            configs = list(finalists.values())
            builds = zip(configs, self._build(state.task, configs), strict=True)
            ready = [(state.task, c, b) for c, b in builds if isinstance(b, Built)]
            rounds = ready * FINAL_ROUNDS
            for (task, config, built), answer in zip(rounds, self.farm.run(rounds), strict=True):
                self.log.append(self._trial(task, config, answer, "final", built.program))
                if isinstance(answer, Failed) and answer.failure == "board_lost":
                    return
            self.progress(self.state)


def task_key(task: Task) -> str:
    """The key that this task's log lines carry: template versions included."""
    version = TEMPLATES[task.template].version
    return Task(
        workload=task.workload,
        target=task.target,
        threads=task.threads,
        template=f"{task.template}@{version}",
    ).key


def tune_tasks(
    tasks: Sequence[Task],
    target: Target,
    farm: Farm,
    log: LogFile,
    *,
    peak_flops_per_core: float,
    budget_s: float | None = None,
    trials: int | None = None,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> TuneResult:
    """Tune until the budget or the trials are used up, nothing is left, or nothing more is gained.

    Args:
        tasks: what to tune; a task with one config is measured once, for the estimate.
        target: their target.
        farm: builders and the board.
        log: where every trial goes at once; what it holds already is not measured again.
        peak_flops_per_core: measured FMA peak, for the share of peak and the room left.
        budget_s: seconds, re-measuring included.
        trials: search trials of this run.
        seed: fixes every random choice.
        progress: called after each trial.

    Ctrl-C and a board that does not come back end the run early, with what was measured so far.

    Raises:
        BoardError: the board cannot be reached at the start.
        LogError: the log cannot be written.
    """
    started = time.monotonic()
    state = TuneState([], started, budget_s, trials)
    run = _Run(tasks, target, farm, log, peak_flops_per_core, seed, state, progress)
    tunable = sum(1 for t in state.tasks if len(t.space) > 1)
    final_s = tunable * FINALISTS * FINAL_ROUNDS * _FINAL_SECONDS_PER_TRIAL
    reserve = final_s if budget_s is None else min(final_s, 0.3 * budget_s)
    reason = "interrupted"
    marks: list[tuple[int, float]] = []
    try:
        reason = _search(run, started + budget_s - reserve if budget_s is not None else None, marks)
        if reason != "board_lost":
            run.final(started + budget_s if budget_s is not None else None)
    except KeyboardInterrupt:
        reason = "interrupted"
    state.phase, state.ended = "ended", time.monotonic()
    return TuneResult(best_trials(run.mine()), reason, state)


def _search(run: _Run, deadline: float | None, marks: list[tuple[int, float]]) -> str:
    state = run.state
    while True:
        if deadline is not None and time.monotonic() >= deadline:
            return "budget"
        left = BATCH if state.trial_limit is None else state.trial_limit - state.trials
        if left <= 0:
            return "trials"
        best = max(state.tasks, key=TaskState.promise_s, default=None)
        if best is None or best.promise_s() <= 0.0:
            return "exhausted"
        if not run.batch(best, min(BATCH if best.trials else FIRST_BATCH, left)):
            return "board_lost"
        total = sum(t.task.count * t.best_s for t in state.tasks if math.isfinite(t.best_s))
        if all(math.isfinite(t.best_s) or t.trials >= HOPELESS for t in state.tasks):
            marks.append((state.trials, total))
            old = next((t for n, t in reversed(marks) if n <= state.trials - PLATEAU_TRIALS), None)
            if old is not None and 1.0 - total / old < PLATEAU_GAIN:
                return "plateau"
