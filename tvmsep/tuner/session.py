"""One tuning run: share the trials out over the tasks, log everything, re-measure the best.

A round takes the task that promises the largest gain for the whole network, measures a batch of
its configs and looks again (the gradient scheduler of Ansor, Zheng et al., OSDI 2020, reduced to
its core). Everything measured is in the log before the next candidate starts, so the run may be
stopped anywhere and goes on from there.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np

import tvmsep
from tvmsep.contracts import Config, Target, Task, Trial
from tvmsep.contracts.trial import Phase
from tvmsep.logs import LogFile, best_trials
from tvmsep.measure import Built, Failed, Farm, Measured
from tvmsep.schedules import TEMPLATES
from tvmsep.tuner import finals
from tvmsep.tuner.model import CostModel
from tvmsep.tuner.search import propose
from tvmsep.tuner.state import BATCH, HOPELESS, TaskState, TuneResult, TuneState, now, task_key

if TYPE_CHECKING:
    from tvmsep.graph import Plan

FIRST_BATCH = 4
"""Of a task that was never measured: the default and a few more, so that every task has its turn
before a short budget is over."""
PLATEAU_GAIN = 0.003
PLATEAU_TRIALS = 160


Progress = Callable[[TuneState], None]


class Run:
    """One tuning run: its tasks, the farm and the log, and what to do with them."""

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
        by_key = {task_key(t.task): (t, set(t.space)) for t in self.state.tasks}
        for trial in self.mine():
            state, space = by_key.get(trial.task_key, (None, set()))
            if state is not None and trial.phase == "search" and trial.as_config() in space:
                state.record(trial)

    def mine(self) -> list[Trial]:
        """The log's trials of this CPU and TVM: a target spans several, and times do not carry."""
        return [t for t in self.log.trials if (t.cpu, t.tvm) == (self.cpu, self.tvm)]

    def trial(
        self,
        task: Task,
        config: Config,
        answer: Measured | Failed,
        phase: Phase,
        program: str,
        detail: str = "",
        date: str = "",
    ) -> Trial:
        """A log line, of now unless `date` says when."""
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
            date=date or now(),
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

    def build(self, task: Task, configs: Sequence[Config]) -> list[Built | Failed]:
        """Compile what this run has not compiled yet."""
        key = task_key(task)
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
        builds = self.build(task, configs)
        todo: list[tuple[Task, Config, Built]] = []
        waiting: dict[str, list[Config]] = defaultdict(list)
        for config, built in zip(configs, builds, strict=True):
            if isinstance(built, Failed):
                self._log(state, self.trial(task, config, built, "search", ""))
            elif built.program in state.programs or built.program in waiting:
                waiting[built.program].append(config)
            else:
                waiting[built.program] = []
                todo.append((task, config, built))
        lost: set[str] = set()
        gone = False
        for (_, config, built), answer in zip(todo, self.farm.run(todo), strict=True):
            self._log(state, self.trial(task, config, answer, "search", built.program))
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
                trial = self.trial(task, config, answer, "search", program, "equal program")
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


def tune_tasks(
    tasks: Sequence[Task],
    target: Target,
    farm: Farm,
    log: LogFile,
    *,
    peak_flops_per_core: float,
    plans: Sequence[Plan] = (),
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
        plans: the networks that the tasks come from: the best few configs of each task are then
            timed again inside them, and not alone.
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
    run = Run(tasks, target, farm, log, peak_flops_per_core, seed, state, progress)
    final_s = finals.expected_s(state.tasks, plans, farm.builders)
    reserve = final_s if budget_s is None else min(final_s, 0.35 * budget_s)
    reason = "interrupted"
    marks: list[tuple[int, float]] = []
    try:
        reason = _search(run, started + budget_s - reserve if budget_s is not None else None, marks)
        if reason != "board_lost":
            deadline = started + budget_s if budget_s is not None else None
            finals.measure_again(run, plans, deadline)
    except KeyboardInterrupt:
        reason = "interrupted"
    state.phase, state.ended = "ended", time.monotonic()
    return TuneResult(best_trials(run.mine()), reason, state)


def _search(run: Run, deadline: float | None, marks: list[tuple[int, float]]) -> str:
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
