"""The best few configs of each task are measured again before a winner is named.

Where the network is known they are timed inside it: a variant of the whole network is compiled for
the best configs of all tasks, another for the second best, and so on, and their kernels are timed
between clock readings while the variants take turns. A config is thus ranked by what it takes next
to its real neighbours, and the times of all tasks add up to the network's. The two best of each
task then meet once more, each among other winners. At last the winners take turns with the same
network without clock readings, which shows whether the sum can be trusted. On a GPU the readings
are CUDA events behind each launch (`compiler/events.py`), and all else is the same. Where kernels
could be fused, variants with fused and with separate ones take turns alike, so that their times
compare, and so do plans whose values are divided otherwise over the threads: a kernel is timed
between each of the splits that its neighbours may have. Networks that hold no code of their own
join when the first turns have ranked the configs. What `choose_plan` makes of all these is the
network that is timed last. Without a network (single layers compared), or where it cannot be timed
on the board (too little memory), each task's best few are measured alone, in turn. Of a batch that
is computed by its images the network is that of one; the head's tasks are measured alone, and there
is no time of the whole.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tvmsep.contracts import Config, Task, Trial, Workload
from tvmsep.contracts.trial import robust_mean
from tvmsep.measure import Built, Failed, Measured, NetworkTimes
from tvmsep.measure.network import RUNS, WARM_RUNS
from tvmsep.schedules import TEMPLATES
from tvmsep.targets import host_cores
from tvmsep.tuner.choice import choose_plan
from tvmsep.tuner.state import TaskState, TuneState, now, same_code, task_key, winner_of

if TYPE_CHECKING:
    from tvmsep.graph import Plan
    from tvmsep.tuner.run import Run

ALONE = 3
"""Best configs that are measured again, each alone, beside the default."""
ALONE_ROUNDS = 3
IN_NETWORK = 7
"""Best configs that are timed in the network, beside the default."""
FIRST_ROUNDS = 2
AT_ONCE, AT_ONCE_BYTES = 16, 400 << 20
"""Networks that may be on the board together, or their weights, whichever are more."""
LAST = 2
"""How many of them meet once more."""
LAST_ROUNDS = 4
CHECK_ROUNDS = 10
"""Turns of the winners against the network without clock readings."""
STAGES = ((IN_NETWORK + 1, FIRST_ROUNDS), (LAST, LAST_ROUNDS), (1, CHECK_ROUNDS))
"""Variants and turns of each."""
_TRIAL_S = 0.15
_COMPILE_S = 0.15
"""Rough time to compile one task's kernel."""
_LINK_S = 0.25
"""Rough time to make a variant of the network from compiled kernels."""
_DEVICE_COMPILE_S = 0.8
"""Rough time to compile one kernel for a GPU: all of them for each variant."""


def expected_s(run: Run, plans: Sequence[Plan]) -> float:
    """Roughly how long `measure_again` takes, by what is known so far."""
    tunable = sum(1 for t in _outside(run, plans) if len(t.space) > 1)
    alone_s = tunable * ALONE * ALONE_ROUNDS * _TRIAL_S
    if not plans:
        return alone_s
    by_task, compiling = _successes(run), 0
    for state in run.state.tasks:
        key = task_key(state.task)
        finalists = _finalists(state, by_task[key], IN_NETWORK)
        compiling += sum((key, c) not in run.built for c in finalists)
    groups = [[p for p in plans if p.threads == n] for n in dict.fromkeys(p.threads for p in plans)]
    linking_s = turning_s = 0.0
    for group in groups:
        for i, (count, rounds) in enumerate(STAGES):
            here = group if i else _of_own_code(group)
            for plan in here:
                variants = _at_once(count, here)
                linking_s += variants * _variant_s(run, plan) / _linkers(run)
                turning_s += variants * rounds * _turn_s(run.state, plan)
    # A network that is timed whole is compiled by one builder: one of each thread count.
    sizes: dict[int, int] = {}
    for plan in plans:
        sizes[plan.threads] = len({s.workload for s in plan.steps if s.workload is not None})
    whole_s = sum(sizes.values()) * _COMPILE_S
    building_s = compiling * _COMPILE_S / _builders(run) + linking_s + whole_s
    return alone_s + building_s + turning_s


def _of_own_code(plans: Sequence[Plan]) -> list[Plan]:
    """Those that hold a kernel whose code none before them holds."""
    found, seen = [], set[Workload]()
    for plan in plans:
        codes = {s.workload.kernel for s in plan.steps if s.workload is not None}
        if codes - seen:
            found.append(plan)
        seen |= codes
    return found


def _at_once(count: int, plans: Sequence[Plan]) -> int:
    """Variants of each of these plans, of so many as are wanted: all are on the board at once."""
    weights = sum(a.nbytes for a in plans[0].params.values())
    most = max(AT_ONCE, AT_ONCE_BYTES // max(weights, 1)) // len(plans)
    return max(1, min(count, most))


def _builders(run: Run) -> int:
    return max(1, run.farm.builders)


def _linkers(run: Run) -> int:
    """Networks are linked on this host, wherever candidates are compiled."""
    return min(_builders(run), host_cores())


def _variant_s(run: Run, plan: Plan) -> float:
    """Seconds to make one variant once its kernels are compiled, if they can be linked."""
    if run.target.gpu is None:
        return _LINK_S
    return _DEVICE_COMPILE_S * len({s.workload for s in plan.steps if s.workload is not None})


def _turn_s(state: TuneState, plan: Plan) -> float:
    """Seconds of one variant's turn: its runs, and a copy of its weights on the board."""
    best_s = {
        t.task.workload.kernel: t.best_s for t in state.tasks if t.task.threads == plan.threads
    }
    codes = [s.workload.kernel for s in plan.steps if s.workload is not None]
    network_s = sum(best_s.get(code, 0.0) for code in codes)
    return (RUNS + WARM_RUNS) * network_s + 0.05 if math.isfinite(network_s) else 2 * _TRIAL_S


def measure_again(run: Run, plans: Sequence[Plan], deadline: float | None) -> None:
    """Measure each task's best few again, and log it."""
    run.state.phase, run.state.search_s = "final", run.state.elapsed_s
    run.progress(run.state)
    _alone(run, deadline, _outside(run, plans))
    groups: dict[int, list[Plan]] = defaultdict(list)
    for plan in plans:
        groups[plan.threads].append(plan)
    for i, (threads, group) in enumerate(groups.items()):
        until = deadline
        if deadline is not None:
            until = deadline - (deadline - time.monotonic()) * (1 - 1 / (len(groups) - i))
        before = len(run.log.trials)
        why = _in_network(run, group, until)
        if why:
            run.state.notes.append(why)
        if why and len(run.log.trials) == before:  # nothing was timed in it
            outside = _outside(run, group)
            inside = [t for t in run.state.tasks if t.task.threads == threads]
            _alone(run, until, [t for t in inside if t not in outside])
        run.progress(run.state)


def _outside(run: Run, plans: Sequence[Plan]) -> list[TaskState]:
    """Tasks that no network times: without plans all of them, else the heads of batches."""
    inside = {(p.threads, w.kernel) for p in plans for s in p.steps if (w := s.workload)}
    return [t for t in run.state.tasks if (t.task.threads, t.task.workload.kernel) not in inside]


def _finalists(state: TaskState, trials: Sequence[Trial], count: int) -> list[Config]:
    """The best `count` configs of different programs, and the default, the second of them."""
    ranked = sorted(trials, key=lambda t: t.median_s)
    found: dict[str, Config] = {}
    for trial in ranked:
        found.setdefault(trial.program or trial.as_config().key, trial.as_config())
        if len(found) == count:
            break
    configs = list(found.values())
    # What ran without tuning must be beaten in turn, not by one lucky measurement.
    same = {t.program for t in ranked if t.as_config() == state.default} & set(found)
    if not same and any(t.as_config() == state.default for t in ranked):
        configs.insert(1, state.default)
    return configs


def _successes(run: Run) -> dict[str, list[Trial]]:
    """Search trials by the key of the task that stands for their code."""
    own = {key: task_key(t.task) for t in run.state.tasks for key in same_code(t.task)}
    by_task: dict[str, list[Trial]] = defaultdict(list)
    for trial in run.mine():
        if trial.failure is None and trial.phase == "search" and trial.task_key in own:
            by_task[own[trial.task_key]].append(trial)
    return by_task


def _alone(run: Run, deadline: float | None, tasks: Sequence[TaskState]) -> None:
    """Measure the finalists of tasks, each by itself."""
    order = sorted(tasks, key=lambda t: -t.task.count * min(t.best_s, 1e9))
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
            if isinstance(answer, Failed) and answer.failure in ("board_lost", "link_lost"):
                return
        run.progress(run.state)


def _in_network(run: Run, plans: Sequence[Plan], deadline: float | None) -> str:
    """Time the finalists of one thread count in their network; why it could not be done, or "".

    `plans` are the network with separate kernels, where there are any to fuse one with fused ones,
    and those of other splits. Near the deadline there are fewer variants and turns, and past it no
    more stages.
    """
    by_task, winners = _successes(run), run.best()
    threads = plans[0].threads
    of_code = {t.task.workload.kernel: t for t in run.state.tasks if t.task.threads == threads}
    run_by = [s.workload for plan in plans for s in plan.steps if s.workload is not None]
    states = {w: of_code[w.kernel] for w in run_by if w.kernel in of_code}
    programs: dict[tuple[Workload, Config], str] = {}
    fields: dict[Workload, list[Config]] = {}
    for w, state in states.items():
        trials = by_task[task_key(state.task)]
        programs.update(((w, t.as_config()), t.program) for t in trials)
        # A task that no trial of which succeeded runs by its default, unranked.
        configs = _finalists(state, trials, IN_NETWORK) or [state.default]
        won = winners.get(task_key(_of(state, w)))  # of an earlier run: it has to win again
        for best in (won, won.inside if won is not None else None):
            if best is not None and best.config not in configs and best.config in state.tried:
                configs.insert(2, best.config)
        fields[w] = configs
    if not fields:
        return ""
    turn_s = _turn_s(run.state, plans[0])
    each_s = max(_variant_s(run, plan) for plan in plans) / _linkers(run)
    every, plans = plans, _of_own_code(plans)
    for count, rounds in STAGES:
        variants = _at_once(min(count, max(map(len, fields.values()))), plans)
        if deadline is not None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return "there was no time left to compare all of the best few inside the network"
            rounds = max(1, min(rounds, int(0.5 * left_s / (turn_s * len(plans)))))
            cost_s = (each_s + rounds * turn_s) * len(plans)
            while variants > 1:
                if variants * cost_s + _missing_s(run, states, fields, variants) <= left_s:
                    break
                variants -= 1
        turns = [plan for _ in range(variants) for plan in plans]
        choices = []
        for i, plan in enumerate(turns):
            used = {s.workload: fields[s.workload] for s in plan.steps if s.workload is not None}
            v = i // len(plans)
            choices.append(
                {
                    w: (states[w].task.template, f[v % min(len(f), variants)])
                    for w, f in used.items()
                }
            )
        whole = count == 1 and len(every) == 1
        kernels = _kernels(run, states, choices)
        answer = run.farm.run_networks(turns, choices, rounds=rounds, whole=whole, kernels=kernels)
        if isinstance(answer, Failed):
            return f"kernels were not timed inside the network: {answer.failure}: {answer.detail}"
        date = now("microseconds")
        times_of: dict[tuple[Workload, Config], list[float]] = defaultdict(list)
        for choice, times in zip(choices, answer.kernels, strict=True):
            for w, (_, config) in choice.items():
                program = programs.get((w, config))
                if program is None:
                    continue  # never checked
                measured = Measured(times[w], 0.0, answer.board)
                task = _of(states[w], w)
                trial = run.trial(task, config, measured, "network", program, date=date)
                run.log.append(trial)
                times_of[w, config].append(trial.median_s)
        _note_whole(run.state, plans[0], answer)
        fields = {w: _ranked(w, f, times_of) for w, f in fields.items()}
        plans = every
    return _whole(run, plans[0], fields) if len(plans) > 1 else ""


def _ranked(
    w: Workload, field: list[Config], times_of: Mapping[tuple[Workload, Config], list[float]]
) -> list[Config]:
    """The fastest first, by what took turns; of what did not, as the same code elsewhere."""
    mine = {c: times for (x, c), times in times_of.items() if x == w}
    if not mine:
        for (x, c), times in times_of.items():
            if x.kernel == w.kernel:
                mine.setdefault(c, []).extend(times)
    return sorted(field, key=lambda c: _middle(mine.get(c, [])))


def _of(state: TaskState, w: Workload) -> Task:
    """The task of a workload whose code a state's task has too."""
    return msgspec.structs.replace(state.task, workload=w)


def _missing_s(
    run: Run,
    states: Mapping[Workload, TaskState],
    fields: Mapping[Workload, list[Config]],
    variants: int,
) -> float:
    """Seconds to compile those of the first so many finalists that this run has not compiled."""
    needed = {
        (task_key(states[w].task), c) for w, configs in fields.items() for c in configs[:variants]
    }
    return len(needed - run.built.keys()) * _COMPILE_S / _builders(run)


def _kernels(
    run: Run,
    states: Mapping[Workload, TaskState],
    choices: Sequence[Mapping[Workload, tuple[str, Config]]],
) -> list[dict[Workload, Path]]:
    """Each variant's object files: of this run's candidates, and of others compiled now.

    Empty for a GPU, whose networks are compiled as a whole: its code has no linker.
    """
    if run.target.gpu is not None:
        return []
    wanted = dict.fromkeys((w, config) for choice in choices for w, (_, config) in choice.items())
    builds = run.build_all([(states[w].task, config) for w, config in wanted])
    objects = {
        at: built.object
        for at, built in zip(wanted, builds, strict=True)
        if isinstance(built, Built) and built.object is not None
    }
    if len(objects) < len(wanted):
        return []
    return [{w: objects[w, config] for w, (_, config) in choice.items()} for choice in choices]


def _whole(run: Run, plan: Plan, fields: Mapping[Workload, list[Config]]) -> str:
    """Time the network that the winners make, without readings; why it could not be done, or ""."""
    winners = run.best()
    chosen, _ = choose_plan(plan, run.target, winners)
    choice = {}
    for task in chosen.of_one_image.tasks(run.target):
        ranked = fields.get(task.workload)
        if ranked:
            config = ranked[0]
        elif (best := winner_of(task, winners)) is not None:
            config = best.config  # another run timed it, in a plan of its own
        else:
            config = TEMPLATES[task.template].default(task.workload, run.target, task.threads)
        choice[task.workload] = (task.template, config)
    answer = run.farm.run_networks([chosen], [choice], rounds=CHECK_ROUNDS, whole=True)
    if isinstance(answer, Failed):
        return f"the whole network was not timed: {answer.failure}: {answer.detail}"
    _note_whole(run.state, chosen, answer)
    return ""


def _note_whole(state: TuneState, plan: Plan, times: NetworkTimes) -> None:
    """Keep the first variant's time, and the sum of its kernels' from the same minute."""
    if times.whole_s and plan.batch == 1 and plan.head is None:
        state.whole_s[plan.threads] = robust_mean(times.whole_s)
        state.kernels_s[plan.threads] = sum(
            robust_mean(times.kernels[0][s.workload]) for s in plan.steps if s.workload is not None
        )


def _middle(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 2] if seconds else math.inf
