"""The best few configs of each task are measured again before a winner is named.

Where the network is known they are timed inside it: a variant of the whole network is compiled for
the best configs of all tasks, another for the second best, and so on, and their kernels are timed
between clock readings while the variants take turns. A config is thus ranked by what it takes next
to its real neighbours, and the times of all tasks add up to the network's. The two best of each
task then meet once more, each among other winners. At last the winners take turns with the same
network without clock readings, which shows whether the sum can be trusted. Where kernels could be
fused, variants with fused and with separate ones take turns alike, so that their times compare, and
what `choose_plan` makes of these is the network that is timed last. Without a network
(single layers compared) each task's best few are measured alone, in turn.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tvmsep.contracts import Config, Trial, Workload
from tvmsep.contracts.trial import robust_mean
from tvmsep.logs import best_trials
from tvmsep.measure import Built, Failed, Measured
from tvmsep.tuner.fusion import choose_plan
from tvmsep.tuner.state import TaskState, now, task_key

if TYPE_CHECKING:
    from tvmsep.graph import Plan
    from tvmsep.tuner.session import Run

ALONE = 3
"""Best configs that are measured again, each alone, beside the default."""
ALONE_ROUNDS = 3
IN_NETWORK = 7
"""Best configs that are timed in the network, beside the default."""
FIRST_ROUNDS = 2
LAST = 2
"""How many of them meet once more."""
LAST_ROUNDS = 4
CHECK_ROUNDS = 10
"""Turns of the winners against the network without clock readings."""
_TRIAL_S = 0.15
_COMPILE_S = 0.09
"""Rough time to compile one task's kernel."""


def expected_s(tasks: Sequence[TaskState], plans: Sequence[Plan], builders: int) -> float:
    """Roughly how long `measure_again` takes."""
    tunable = sum(1 for t in tasks if len(t.space) > 1)
    if not plans:
        return tunable * ALONE * ALONE_ROUNDS * _TRIAL_S
    variants = IN_NETWORK + 1 + 2 * LAST
    turns = (IN_NETWORK + 1) * FIRST_ROUNDS + 2 * (LAST_ROUNDS + CHECK_ROUNDS)
    counts = {p.threads for p in plans}
    variants += len(plans) - len(counts)
    compiling = tunable * variants * _COMPILE_S / max(1, builders)
    return compiling + len(plans) * turns * _TRIAL_S


def measure_again(run: Run, plans: Sequence[Plan], deadline: float | None) -> None:
    """Measure each task's best few again, and log it."""
    run.state.phase, run.state.search_s = "final", run.state.elapsed_s
    run.progress(run.state)
    if not plans:
        _alone(run, deadline)
    groups: dict[int, list[Plan]] = defaultdict(list)
    for plan in plans:
        groups[plan.threads].append(plan)
    for i, group in enumerate(groups.values()):
        left_s = None if deadline is None else (deadline - time.monotonic()) / (len(groups) - i)
        run.state.note = _in_network(run, group, left_s) or run.state.note
        run.progress(run.state)


def _finalists(state: TaskState, trials: Sequence[Trial], count: int) -> list[Config]:
    """The best `count` configs of different programs, and the default."""
    ranked = sorted(trials, key=lambda t: t.median_s)
    found: dict[str, Config] = {}
    for trial in ranked:
        found.setdefault(trial.program or trial.as_config().key, trial.as_config())
        if len(found) == count:
            break
    # What ran without tuning must be beaten in turn, not by one lucky measurement.
    for trial in ranked:
        if trial.as_config() == state.default:
            found.setdefault(trial.program or state.default.key, state.default)
    return list(found.values())


def _successes(run: Run) -> dict[str, list[Trial]]:
    by_task: dict[str, list[Trial]] = defaultdict(list)
    for trial in run.mine():
        if trial.failure is None and trial.phase == "search":
            by_task[trial.task_key].append(trial)
    return by_task


def _alone(run: Run, deadline: float | None) -> None:
    order = sorted(run.state.tasks, key=lambda t: -t.task.count * min(t.best_s, 1e9))
    by_task = _successes(run)
    for state in order:
        if deadline is not None and time.monotonic() > deadline:
            return
        configs = _finalists(state, by_task[task_key(state.task)], ALONE)
        if len(configs) < 2:
            continue
        builds = zip(configs, run.build(state.task, configs), strict=True)
        ready = [(state.task, c, b) for c, b in builds if isinstance(b, Built)]
        rounds = ready * ALONE_ROUNDS
        for (task, config, built), answer in zip(rounds, run.farm.run(rounds), strict=True):
            run.log.append(run.trial(task, config, answer, "final", built.program))
            if isinstance(answer, Failed) and answer.failure == "board_lost":
                return
        run.progress(run.state)


def _in_network(run: Run, plans: Sequence[Plan], left_s: float | None) -> str:
    """Time the finalists of one thread count in their network; why it could not be done, or "".

    `plans` are the network with separate kernels and, where there are any to fuse, with fused ones.
    Where `left_s` seconds are too few for all of them the first round has fewer variants.
    """
    by_task, winners = _successes(run), best_trials(run.mine())
    threads = plans[0].threads
    states = {t.task.workload: t for t in run.state.tasks if t.task.threads == threads}
    programs: dict[tuple[Workload, Config], str] = {}
    fields: dict[Workload, list[Config]] = {}
    for w, state in states.items():
        trials = by_task[task_key(state.task)]
        programs.update(((w, t.as_config()), t.program) for t in trials)
        # A task that no trial of which succeeded runs by its default, unranked.
        configs = _finalists(state, trials, IN_NETWORK) or [state.default]
        won = winners.get(task_key(state.task))  # of an earlier run: it has to win again
        if won is not None and won.config not in configs and won.config in state.tried:
            configs.insert(1, won.config)
        fields[w] = configs
    first = IN_NETWORK + 1
    if left_s is not None:
        each_s = len(states) * _COMPILE_S / max(1, run.farm.builders)
        later_s = 2 * LAST * each_s + 2 * (LAST_ROUNDS + CHECK_ROUNDS) * _TRIAL_S * len(plans)
        turns_s = FIRST_ROUNDS * _TRIAL_S * len(plans)
        first = max(1, min(first, int((left_s - later_s) / (each_s + turns_s))))
    for count, rounds in ((first, FIRST_ROUNDS), (LAST, LAST_ROUNDS), (1, CHECK_ROUNDS)):
        variants = min(count, max(map(len, fields.values())))
        turns = [plan for _ in range(variants) for plan in plans]
        choices = []
        for i, plan in enumerate(turns):
            used = {s.workload: fields[s.workload] for s in plan.steps if s.workload is not None}
            v = i // len(plans)
            choices.append(
                {w: (states[w].task.template, f[v % min(len(f), count)]) for w, f in used.items()}
            )
        whole = count == 1 and len(plans) == 1
        answer = run.farm.run_networks(turns, choices, rounds=rounds, whole=whole)
        if isinstance(answer, Failed):
            return f"kernels were not timed inside the network: {answer.failure}: {answer.detail}"
        date = now()
        times_of: dict[tuple[Workload, Config], list[float]] = defaultdict(list)
        for choice, times in zip(choices, answer.kernels, strict=True):
            for w, (_, config) in choice.items():
                program = programs.get((w, config))
                if program is None:
                    continue  # never checked
                measured = Measured(times[w], 0.0)
                trial = run.trial(states[w].task, config, measured, "network", program, date=date)
                run.log.append(trial)
                times_of[w, config].append(trial.median_s)
        if answer.whole_s:
            run.state.whole_s[threads] = robust_mean(answer.whole_s)
        fields = {w: sorted(f, key=lambda c: _middle(times_of[w, c])) for w, f in fields.items()}
    return _whole(run, plans[0], fields) if len(plans) > 1 else ""


def _whole(run: Run, plan: Plan, fields: Mapping[Workload, list[Config]]) -> str:
    """Time the network that the winners make, without readings; why it could not be done, or ""."""
    chosen, _ = choose_plan(plan, run.target, best_trials(run.mine()))
    choice = {
        s.workload: (s.template, fields[s.workload][0])
        for s in chosen.steps
        if s.workload is not None
    }
    answer = run.farm.run_networks([chosen], [choice], rounds=CHECK_ROUNDS, whole=True)
    if isinstance(answer, Failed):
        return f"the whole network was not timed: {answer.failure}: {answer.detail}"
    run.state.whole_s[plan.threads] = robust_mean(answer.whole_s)
    return ""


def _middle(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 2] if seconds else math.inf
