"""One tuning run: its tasks, the farm and the log, and what to do with them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import numpy as np

import tvmsep
from tvmsep.contracts import Config, Target, Task, Trial
from tvmsep.contracts.trial import BLAMELESS, EMULATED_NOTE, UNMEASURED, Phase, is_emulated
from tvmsep.logs import Best, LogFile, best_trials
from tvmsep.measure import Built, Failed, Measured, Measuring
from tvmsep.schedules import TEMPLATES
from tvmsep.tuner.model import CostModel
from tvmsep.tuner.search import EXPLORE, propose
from tvmsep.tuner.state import TaskState, TuneState, now, of_one_code, same_code, task_key

Progress = Callable[[TuneState], None]
Strategy = Literal["xgboost", "random", "default"]
HOPE_CONFIGS = 300
"""Of a task's space: so many tell what its best may be."""


@dataclass
class Batch:
    """Configs of one task that are being measured."""

    state: TaskState
    todo: list[tuple[Task, Config, Built]]
    waiting: dict[str, list[Config]]
    """By program: configs whose program another one already is."""
    answers: Iterator[tuple[int, Measured | Failed]]


class Run:
    """See the module.

    Args:
        tasks: what to tune.
        target: their target.
        farm: builders and boards.
        log: where every trial goes at once.
        peak_flops_per_core: measured FMA peak.
        seed: fixes every random choice.
        strategy: how configs are chosen: by the cost model, at random, or the defaults alone.
        prior: trials of other logs, for the cost model.
        state: what progress displays see.
        progress: called after each trial.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        target: Target,
        farm: Measuring,
        log: LogFile,
        peak_flops_per_core: float,
        seed: int,
        strategy: Strategy,
        prior: Sequence[Trial],
        state: TuneState,
        progress: Progress,
    ) -> None:
        self.target, self.farm, self.log, self.seed = target, farm, log, seed
        self.state, self.progress, self.strategy = state, progress, strategy
        self.rng = np.random.default_rng(seed)
        self._peak = peak_flops_per_core
        self.models: dict[str, CostModel] = {}
        self.prior = prior
        self.built: dict[tuple[str, Config], Built | Failed] = {}
        self._hopes: dict[str, float] = {}
        self._shares: dict[str, float] = {}
        self._priors: dict[str, list[Trial]] = {}
        self._notes = 0
        board = farm.connect()
        self.board, self.cpu = board.name, board.cpu
        if is_emulated(self.cpu):
            self.state.notes.append(f"board {board.name} {EMULATED_NOTE}")
        self.tvm = metadata.version("apache-tvm")
        for task in of_one_code(tasks):
            template = TEMPLATES[task.template]
            w = task.workload
            default = template.default(w, target, task.threads)
            space = template.space(w, target, task.threads).configs()
            if strategy == "default":
                space = [default]
            known = farm.known(task)
            if known is not None:
                space = [c for c in space if c in known]
            floor_s = w.flops / (peak_flops_per_core * task.threads)
            self.state.tasks.append(TaskState(task, space, default, floor_s))
        self._resume()
        self.tell()

    def _resume(self) -> None:
        """Take over what the log already holds for these tasks."""
        by_key: dict[str, tuple[TaskState, set[Config]]] = {}
        for t in self.state.tasks:
            for key in same_code(t.task):
                by_key.setdefault(key, (t, set(t.space)))
        for trial in self.mine():
            state, space = by_key.get(trial.task_key, (None, set()))
            config = trial.as_config()
            if state is None or trial.phase != "search" or config not in space:
                continue
            if config not in state.tried:  # logs of before have some code twice
                state.record(trial)

    def tell(self) -> None:
        """Take over what the farm has to say since the last time."""
        self.state.notes += self.farm.notes[self._notes :]
        self._notes = len(self.farm.notes)

    def mine(self) -> list[Trial]:
        """The log's trials of this CPU and TVM: a target spans several, and times do not carry."""
        return [t for t in self.log.trials if (t.cpu, t.tvm) == (self.cpu, self.tvm)]

    def best(self) -> dict[str, Best]:
        """The winners so far."""
        return best_trials(self.mine(), measured=self.board not in UNMEASURED)

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
            board=answer.board or self.board,
            cpu=self.cpu,
            tvm=self.tvm,
            tvmsep=tvmsep.__version__,
            date=date or now(),
            seed=self.seed,
        )

    def model(self, template: str) -> CostModel:
        """The template's model, fitted to everything in the log and to earlier logs."""
        version = TEMPLATES[template].version

        def teaches(t: Trial) -> bool:
            return (
                t.template == template
                and t.template_version == version
                and t.phase == "search"
                and t.failure not in BLAMELESS
            )

        if template not in self.models:
            prior = [t for t in self.prior if teaches(t)]
            self.models[template] = CostModel(self.seed, self.target.name, prior)
        model = self.models[template]
        if self.strategy == "xgboost":
            model.fit([t for t in self.log.trials if teaches(t) and t.target == self.target.name])
        return model

    def taught(self, template: str) -> bool:
        """Whether earlier logs let the model rank configs of tasks that were never measured."""
        return self.strategy == "xgboost" and bool(self._prior_of(template))

    def hope_s(self, state: TaskState) -> float:
        """Seconds of the network that the first batch of a task may save, by earlier logs.

        What the cost model expects of its favourite beside the default, times what the task is
        likely to take: its least time over the share of the peak that its template reached in those
        logs. Where they teach nothing, its least time.
        """
        key = task_key(state.task)
        if key not in self._hopes:
            least_s, model = state.task.count * state.floor_s, self.model(state.task.template)
            if model.trained and state.space:
                some = state.space[:: -(-len(state.space) // HOPE_CONFIGS)]
                default, *scores = model.predict(state.task, [state.default, *some])
                gain = 1.0 - math.exp(min(0.0, float(default - max(scores))))
                least_s *= gain / self._share(state.task.template)
            self._hopes[key] = least_s
        return self._hopes[key]

    def _share(self, template: str) -> float:
        """Median share of the FMA peak that earlier logs' best configs of a template reached."""
        if template not in self._shares:
            best: dict[str, float] = {}
            for t in self._prior_of(template):
                if t.phase == "search" and t.times_s and t.target == self.target.name:
                    share = t.workload.flops / (t.median_s * t.threads * self._peak)
                    best[t.task_key] = max(best.get(t.task_key, 0.0), share)
            self._shares[template] = float(np.median([*best.values()] or [1.0])) or 1.0
        return self._shares[template]

    def _prior_of(self, template: str) -> list[Trial]:
        if template not in self._priors:
            version = TEMPLATES[template].version
            self._priors[template] = [
                t for t in self.prior if (t.template, t.template_version) == (template, version)
            ]
        return self._priors[template]

    def build(self, task: Task, configs: Sequence[Config]) -> list[Built | Failed]:
        """Compile what this run has not compiled yet."""
        return self.build_all([(task, c) for c in configs])

    def build_all(self, jobs: Sequence[tuple[Task, Config]]) -> list[Built | Failed]:
        """As `build`, of several tasks."""
        keys = [(task_key(task), config) for task, config in jobs]
        new = {k: job for k, job in zip(keys, jobs, strict=True) if k not in self.built}
        if new:
            self.built.update(zip(new, self.farm.build([*new.values()]), strict=True))
        return [self.built[k] for k in keys]

    def propose(self, state: TaskState, count: int) -> list[Config]:
        """The next `count` configs of a task: none at random where earlier logs say what to try."""
        model = self.model(state.task.template)
        taken = state.tried | state.pending
        explore = 0.0 if not state.trials and self.taught(state.task.template) else EXPLORE
        configs = propose(
            state.task, state.space, taken, state.default, model, count, self.rng, explore
        )  # fmt: skip
        state.pending.update(configs)
        return configs

    def begin(
        self, state: TaskState, configs: Sequence[Config], builds: Sequence[Built | Failed]
    ) -> Batch:
        """Begin to measure what was built; what was not is logged now."""
        todo: list[tuple[Task, Config, Built]] = []
        waiting: dict[str, list[Config]] = defaultdict(list)
        for config, built in zip(configs, builds, strict=True):
            if isinstance(built, Failed):
                self._log(state, self.trial(state.task, config, built, "search", ""))
            elif built.program in state.programs or built.program in waiting:
                waiting[built.program].append(config)
            else:
                waiting[built.program] = []
                todo.append((state.task, config, built))
        return Batch(state, todo, waiting, self.farm.start(todo))

    def finish(self, batch: Batch) -> bool:
        """Log a batch as its boards answer; False if no board was left at the end."""
        state, task, before = batch.state, batch.state.task, batch.state.best_s
        gone = False
        lost: set[str] = set()
        for at, answer in batch.answers:
            _, config, built = batch.todo[at]
            self._log(state, self.trial(task, config, answer, "search", built.program))
            gone = isinstance(answer, Failed) and answer.failure in ("board_lost", "link_lost")
            if isinstance(answer, Failed) and answer.failure in BLAMELESS:
                lost.add(built.program)
        for program, twins in batch.waiting.items():
            known = state.programs.get(program)
            if program in lost or known is None:
                state.pending.difference_update(twins)  # nothing is known of them
                continue
            for config in twins:
                answer = (
                    Failed(known.failure, f"equal program: {known.detail}", known.board)
                    if known.failure is not None
                    else Measured(known.times_s, 0.0, known.board)
                )
                trial = self.trial(task, config, answer, "search", program, "equal program")
                self._log(state, trial)
        asked = {c for _, c, _ in batch.todo}.union(*batch.waiting.values())
        if asked == {state.default} and math.isfinite(before):  # says nothing of the search
            self.tell()
            return not gone
        after = state.best_s
        gained = 1.0 - after / before if math.isfinite(before) and before > 0 else 0.3
        state.gain = 0.5 * state.gain + 0.5 * gained
        self.tell()
        return not gone

    def _log(self, state: TaskState, trial: Trial) -> None:
        self.log.append(trial)
        state.pending.discard(trial.as_config())
        state.record(trial)
        self.state.trials += 1
        self.progress(self.state)
