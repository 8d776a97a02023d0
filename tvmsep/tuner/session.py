"""One tuning run: share the trials out over the tasks, log everything, re-measure the best.

A round takes the task that promises the largest gain for the whole network, measures a batch of
its configs and looks again (the gradient scheduler of Ansor, Zheng et al., OSDI 2020, reduced to
its core). Everything measured is in the log at once, so the run may be stopped anywhere and goes
on from there.

Where a board is another machine the next batch is proposed and compiled while one is measured. It
is chosen before the first answer of that one, so that equal seeds on one board choose equally.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tvmsep.contracts import Config, Target, Task, Trial
from tvmsep.logs import LogFile
from tvmsep.measure import Measuring
from tvmsep.tuner import finals
from tvmsep.tuner.run import Batch, Progress, Run, Strategy
from tvmsep.tuner.state import BATCH, HOPELESS, TaskState, TuneResult, TuneState, of_one_code

if TYPE_CHECKING:
    from tvmsep.graph import Plan

FIRST_BATCH = 4
"""Of a task that was never measured: the default and a few more, so that every task has its turn
before a short budget is over."""
FIRST_BATCH_TAUGHT = 3
"""The same where earlier logs have taught the cost model: the default and its two favourites."""
PLATEAU_GAIN = 0.003
PLATEAU_TRIALS = 160
RESERVE = 0.35
"""Share of the budget that measuring the best again may take."""
MAX_BATCHES = 4
"""Batches that are measured as one where there are so many boards or more."""


def tune_tasks(
    tasks: Sequence[Task],
    target: Target,
    farm: Measuring,
    log: LogFile,
    *,
    peak_flops_per_core: float,
    plans: Sequence[Plan] = (),
    networks: Mapping[int, Plan] | None = None,
    budget_s: float | None = None,
    trials: int | None = None,
    seed: int = 0,
    strategy: Strategy = "xgboost",
    prior: Sequence[Trial] = (),
    progress: Progress = lambda _: None,
) -> TuneResult:
    """Tune until the budget or the trials are used up, nothing is left, or nothing more is gained.

    Args:
        tasks: what to tune; a task with one config is measured once, for the estimate.
        target: their target.
        farm: builders and boards.
        log: where every trial goes at once; what it holds already is not measured again.
        peak_flops_per_core: measured FMA peak, for the share of peak and the room left.
        plans: the networks that the tasks come from: the best few configs of each task are then
            timed again inside them, and not alone.
        networks: those that are asked for, by thread count, for the sums that progress shows.
        budget_s: seconds, re-measuring included.
        trials: search trials of this run.
        seed: fixes every random choice.
        strategy: how configs are chosen: by the cost model, at random, or the defaults alone.
        prior: trials of earlier logs, from which the cost model learns before the first trial;
            those of other targets count little.
        progress: called after each trial.

    Ctrl-C and boards that do not come back end the run early, with what was measured so far.

    Raises:
        BoardError: the board cannot be reached at the start.
        LogError: the log cannot be written.
    """
    started = time.monotonic()
    state = TuneState([], started, budget_s, trials)
    state.counts = {
        n: {(t.workload.kernel, t.threads): t.count for t in of_one_code(plan.tasks(target))}
        for n, plan in (networks or {}).items()
    }
    run = Run(tasks, target, farm, log, peak_flops_per_core, seed, strategy, prior, state, progress)
    reason = "interrupted"

    def over() -> bool:
        """Whether what is left of the budget is needed for measuring the best again."""
        if budget_s is None:
            return False
        now, most_s = time.monotonic(), RESERVE * budget_s
        if now < started + budget_s - most_s:
            return False
        return now >= started + budget_s - min(finals.expected_s(run, plans), most_s)

    try:
        reason = _search(run, over)
        if reason != "board_lost":
            deadline = started + budget_s if budget_s is not None else None
            finals.measure_again(run, plans, deadline)
    except KeyboardInterrupt:
        reason = "interrupted"
    state.phase, state.ended = "ended", time.monotonic()
    return TuneResult(run.best(), reason, state)


_Choice = tuple[TaskState, list[Config]]


def _search(run: Run, over: Callable[[], bool]) -> str:
    marks: list[tuple[int, float]] = []
    measuring: Batch | None = None
    ready: deque[_Choice] = deque()
    builder = ThreadPoolExecutor(1)
    try:
        while True:
            if measuring is None:
                if not ready:
                    reason, chosen = _choose_some(run, over)
                    if not chosen:
                        return reason
                    run.build_all([(s.task, c) for s, configs in chosen for c in configs])
                    ready.extend(chosen)
                state, configs = ready.popleft()
                measuring = run.begin(state, configs, run.build(state.task, configs))
            coming = None
            if run.farm.overlaps and not ready:
                _, coming = _choose(run, over, [measuring.state])
            building = coming and builder.submit(run.build, coming[0].task, coming[1])
            there = run.finish(measuring)
            measuring = None
            builds = building.result() if building else []
            if not there:
                return "board_lost"
            if _plateau(run.state, marks):
                return "plateau"
            if coming is not None:
                measuring = run.begin(*coming, builds)
    finally:
        # After Ctrl-C a build may still run: the farm ends it.
        builder.shutdown(wait=False)


def _choose_some(run: Run, over: Callable[[], bool]) -> tuple[str, list[_Choice]]:
    """The next batch, or the small first batches of several tasks, which keep all builders busy."""
    reason, choice = _choose(run, over, [])
    chosen: list[_Choice] = []
    while choice is not None:
        chosen.append(choice)
        size = sum(len(configs) for _, configs in chosen)
        searched = choice[0].trials and choice[1] != [choice[0].default]
        if searched or size >= max(BATCH, run.farm.builders):
            break
        _, choice = _choose(run, over, [state for state, _ in chosen], first=True)
    return reason, chosen


def _choose(
    run: Run, over: Callable[[], bool], busy: Sequence[TaskState], *, first: bool = False
) -> tuple[str, _Choice | None]:
    """The next batch, or why there is none.

    Tasks that are being measured come last; of those never measured the one from which most is
    hoped for comes first, and kernels that could replace two others when these have their times. A
    default that a log has not heard of is measured before the search goes on, alone.
    With `first` only such tasks, and those never measured, will do.
    """
    state = run.state
    if over():
        return "budget", None
    left = math.inf
    if state.trial_limit is not None:
        left = state.trial_limit - state.trials - sum(len(t.pending) for t in state.tasks)
    if left <= 0:
        return "trials", None
    order = sorted(
        state.tasks,
        key=lambda t: (
            any(t is b for b in busy),
            -t.promise_s(),
            t.task.workload.op == "dwpw",
            0.0 if t.trials else -run.hope_s(t),
        ),
    )
    best = next((t for t in order if t.promise_s() > 0.0), None)
    if best is None:
        return "exhausted", None
    searched = best.trials and not best.outdated
    if first and (searched or any(best is b for b in busy)):
        return "", None
    few = FIRST_BATCH_TAUGHT if run.taught(best.task.template) else FIRST_BATCH
    size = BATCH * min(run.farm.boards, MAX_BATCHES) if best.trials else few
    if best.outdated:
        size = 1
    return "", (best, run.propose(best, int(min(size, left))))


def _plateau(state: TuneState, marks: list[tuple[int, float]]) -> bool:
    """Whether the last `PLATEAU_TRIALS` have gained next to nothing."""
    total = sum(t.task.count * t.best_s for t in state.tasks if math.isfinite(t.best_s))
    if not all(math.isfinite(t.best_s) or t.trials >= HOPELESS for t in state.tasks):
        return False
    marks.append((state.trials, total))
    old = next((t for n, t in reversed(marks) if n <= state.trials - PLATEAU_TRIALS), None)
    return old is not None and 1.0 - total / old < PLATEAU_GAIN
