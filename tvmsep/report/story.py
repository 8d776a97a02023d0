"""What tuning logs tell, added up and thinned out until it fits on one page.

Nothing here measures or imports TVM. Times are seconds.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from tvmsep.contracts import Config, Target, Trial, Workload
from tvmsep.contracts.config import OPTIONAL
from tvmsep.logs import Best, best_trials
from tvmsep.report.codes import fastest_forms, places, winner
from tvmsep.report.curves import Curve, curve, wall_time
from tvmsep.report.sources import Counts
from tvmsep.schedules import TEMPLATES

MAX_TASKS = 400
"""Rows and curves of the heaviest tasks; a network has some dozens."""
MAX_DETAILS = 5
"""Messages shown of each kind of failure."""
KNOB_TASKS = 24
"""Columns of a heat map: the heaviest tasks."""


class TaskStory(msgspec.Struct, frozen=True, kw_only=True):
    """One task: what ran without tuning, what won, and how it was found."""

    id: int
    label: str
    template: str
    threads: int
    runs: int
    """How often the bundle's network runs it; 0 where no bundle says, or it does not."""
    trials: int
    configs: int
    failures: int
    best_s: float
    """Mean of the winner."""
    before_s: float | None
    """What the default config takes where the winner takes `best_s`; None where not measured."""
    inside: bool
    """Whether both were timed inside the network, in turn; else each kernel alone."""
    config: str
    flops: int
    bytes: int
    flops_per_s: float
    curve: Curve


class FailureStory(msgspec.Struct, frozen=True, kw_only=True):
    """All failures of one type and template."""

    failure: str
    template: str
    count: int
    tasks: int
    details: tuple[str, ...]


class KnobStory(msgspec.Struct, frozen=True, kw_only=True):
    """Which values of a template's knobs win."""

    template: str
    threads: int
    tasks: tuple[str, ...]
    rows: tuple[tuple[str, str, int, tuple[float | None, ...]], ...]
    """Knob, value, tasks that it won, and for each task the best time of all over the best time
    with this value; None where it was never measured."""


class NetworkStory(msgspec.Struct, frozen=True, kw_only=True):
    """The network at one thread count, summed from its tasks' times."""

    threads: int
    before_s: float | None
    after_s: float | None
    """None where a task has no time."""
    counted: bool
    """Whether a bundle says how often each task runs; else each counts once."""
    missing: int
    """Tasks without a time."""
    curve: Curve


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where and when the trials were measured."""

    facts: tuple[tuple[str, str], ...]


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a page shows of logs."""

    trials: int
    search: int
    failed: int
    first: str
    last: str
    measured: bool
    wall_s: float
    """Of tuning, pauses left out."""
    pauses: int
    threads: tuple[int, ...]
    networks: tuple[NetworkStory, ...]
    tasks: tuple[TaskStory, ...]
    tasks_left_out: int
    failures: tuple[FailureStory, ...]
    knobs: tuple[KnobStory, ...]
    machine: Machine


def tell(
    trials: Sequence[Trial],
    *,
    counts: Counts | None = None,
    target: Target | None = None,
) -> Story:
    """Add up the trials of one target.

    Args:
        trials: in the order in which they were measured; one CPU and one version of TVM is best,
            for times of others do not compare.
        counts: of a bundle's variants.
        target: whose default configs are the state before tuning; None if it is not known.
    """
    measured = all(t.measured for t in trials)
    found = best_trials(trials, measured=measured)
    # Kernels that differ in nothing but who wrote their input are one task here: the search tries
    # their code once, and each is timed in its place.
    keyed = [(t.code_key, t) for t in trials]
    groups: dict[str, list[Trial]] = defaultdict(list)
    for key, trial in keyed:
        groups[key].append(trial)
    winners = {k: b for k, mine in groups.items() if (b := winner(mine[0], found, counts))}
    tasks = [
        _task(i, key, mine, winners.get(key), _runs(mine[0], counts), target)
        for i, (key, mine) in enumerate(groups.items())
    ]
    told = Counter((t.label, t.threads, t.template) for t in tasks)
    tasks = [
        msgspec.structs.replace(t, label=f"{t.label}, by {mine[0].workload.out_split}")
        if told[t.label, t.threads, t.template] > 1 and t.threads > 1 else t
        for t, mine in zip(tasks, groups.values(), strict=True)
    ]  # fmt: skip
    by_key = dict(zip(groups, tasks, strict=True))
    tasks.sort(key=lambda t: -_weight(t))
    threads = sorted({t.threads for t in trials})
    # A batch's network on several threads may have kernels of one.
    at = {n: {own for _, own in found} for n, found in (counts or {}).items()}
    parts = {own for found in at.values() for own in found} - {*at}
    networks = []
    for n in sorted({*threads, *(n for n, found in at.items() if found - {n})} - parts):
        runs = {key: _runs_at(n, mine[0], counts) for key, mine in groups.items()}
        used = {key: count for key, count in runs.items() if count}
        if n not in (counts or {}):
            best_s = {key: t.best_s for key, t in by_key.items()}
            used = {key: used[key] for key in fastest_forms(used, groups, best_s)}
        mine = [(t, used[key]) for key, t in by_key.items() if key in used]
        heard = {at for key in used for at in places(groups[key][0])}
        unheard = sum(1 for at in (counts or {}).get(n, {}) if at not in heard)
        networks.append(_network(n, mine, curve(keyed, used), n in (counts or {}), unheard))
    dates = [t.date for t in trials]
    wall_s, pauses = wall_time(trials)
    return Story(
        trials=len(trials),
        search=sum(1 for t in trials if t.phase == "search"),
        failed=sum(1 for t in trials if t.failure is not None),
        first=min(dates, default=""),
        last=max(dates, default=""),
        measured=measured,
        wall_s=wall_s[-1] if wall_s else 0.0,
        pauses=pauses,
        threads=tuple(threads),
        networks=tuple(networks),
        tasks=tuple(tasks[:MAX_TASKS]),
        tasks_left_out=max(0, len(tasks) - MAX_TASKS),
        failures=tuple(_failures(trials)),
        knobs=tuple(_knobs(tasks, groups, winners)),
        machine=_machine(trials, target),
    )


def _runs(trial: Trial, counts: Counts | None) -> int:
    """How often a network runs a task: that of the task's own thread count, if there is one."""
    own = (counts or {}).get(trial.threads, {})
    networks = [own] if own else (counts or {}).values()
    return max((sum(n.get(at, 0) for at in places(trial)) for n in networks), default=0)


def _runs_at(threads: int, trial: Trial, counts: Counts | None) -> int:
    """How often the network of a thread count does; without a bundle no pair counts twice."""
    if counts and threads in counts:
        return sum(counts[threads].get(at, 0) for at in places(trial))
    return int(trial.threads == threads and trial.workload.op != "dwpw")


def _weight(task: TaskStory) -> float:
    return max(1, task.runs) * task.best_s if math.isfinite(task.best_s) else 0.0


def _task(
    number: int,
    key: str,
    mine: list[Trial],
    best: Best | None,
    runs: int,
    target: Target | None,
) -> TaskStory:
    first = mine[0]
    w = first.workload
    best_s = best.mean_s if best else math.inf
    before_s, inside = None, best is not None and best.trial.phase == "network"
    default = _default(w, first, target)
    if best is not None and default is not None:
        # Places of one code compare with themselves alone: the winner's, or another with both.
        at = dict.fromkeys([best.trial.workload, *(t.workload for t in mine)])
        groups = [[t for t in mine if t.workload == w] for w in at] if inside else [mine]
        phase = "network" if inside else "search"
        ratios = (_ratio(here, default, best.config, phase) for here in groups)
        ratio = next((r for r in ratios if r is not None), None)
        before_s = None if ratio is None else ratio * best_s
    return TaskStory(
        id=number,
        label=w.label,
        template=first.template,
        threads=first.threads,
        runs=runs,
        trials=len(mine),
        configs=len({t.as_config() for t in mine}),
        failures=sum(1 for t in mine if t.failure is not None),
        best_s=best_s,
        before_s=before_s,
        inside=inside,
        config=best.config.key if best else "",
        flops=w.flops,
        bytes=w.bytes_moved,
        flops_per_s=w.flops / best_s,
        curve=curve([(key, t) for t in mine], {key: 1}),
    )


def _default(w: Workload, trial: Trial, target: Target | None) -> Config | None:
    """What ran before any tuning; None if this tvmsep does not know."""
    template = TEMPLATES.get(trial.template)
    if target is None or template is None or template.version != trial.template_version:
        return None
    if not template.accepts(w, target):
        return None
    return template.default(w, target, trial.threads)


def _ratio(mine: list[Trial], default: Config, winner: Config, phase: str) -> float | None:
    """The default's time over the winner's, from the last turns in which both were measured."""
    if default == winner:
        return 1.0
    times: dict[tuple[str, Config], list[float]] = defaultdict(list)
    for t in mine:
        if t.phase == phase and t.failure is None and t.times_s:
            # Trials that took turns share a date; searches compare over all of the run.
            times[t.date if phase == "network" else "", t.as_config()].append(t.mean_s)
    both = [d for d, c in times if c == default and (d, winner) in times]
    if not both:
        return None
    date = max(both)
    mean = [sum(times[date, c]) / len(times[date, c]) for c in (default, winner)]
    return mean[0] / mean[1]


def _network(
    threads: int,
    mine: Sequence[tuple[TaskStory, int]],
    best_so_far: Curve,
    counted: bool,
    unheard: int,
) -> NetworkStory:
    missing = unheard + sum(1 for t, _ in mine if not math.isfinite(t.best_s))
    after_s = before_s = None
    if mine and not missing:
        after_s = sum(runs * t.best_s for t, runs in mine)
        known = [runs * t.before_s for t, runs in mine if t.before_s is not None]
        before_s = sum(known) if len(known) == len(mine) else None
    return NetworkStory(
        threads=threads,
        before_s=before_s,
        after_s=after_s,
        counted=counted,
        missing=missing,
        curve=best_so_far,
    )


def _failures(trials: Sequence[Trial]) -> list[FailureStory]:
    groups: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for t in trials:
        if t.failure is not None:
            groups[t.failure, t.template].append(t)
    return [
        FailureStory(
            failure=failure,
            template=template,
            count=len(mine),
            tasks=len({t.code_key for t in mine}),
            details=tuple(d[:300] for d, _ in Counter(t.detail for t in mine).most_common()
                          if d)[:MAX_DETAILS],
        )
        for (failure, template), mine in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]  # fmt: skip


def _knobs(
    tasks: Sequence[TaskStory], groups: Mapping[str, list[Trial]], winners: Mapping[str, Best]
) -> list[KnobStory]:
    """A heat map for each template and thread count, of its heaviest tasks."""
    keys = list(groups)
    wanted: dict[tuple[str, int], list[TaskStory]] = defaultdict(list)
    for task in tasks:
        wanted[task.template, task.threads].append(task)
    found = []
    for (template, threads), mine in sorted(wanted.items()):
        mine = mine[:KNOB_TASKS]
        cells: dict[tuple[str, str], list[float | None]] = {}
        wins: Counter[tuple[str, str]] = Counter()
        for at, task in enumerate(mine):
            best: dict[tuple[str, str], float] = {}
            trials = groups[keys[task.id]]
            off = {k: 0 for k in OPTIONAL if any(k in t.config for t in trials)}
            for t in trials:
                if t.phase == "search" and t.failure is None and t.times_s:
                    for knob, value in ({**t.config, **off} | t.config).items():
                        pair = knob, str(value)
                        best[pair] = min(best.get(pair, math.inf), t.median_s)
            lowest = min(best.values(), default=math.inf)
            for pair, seconds in best.items():
                row = cells.setdefault(pair, [None] * len(mine))
                row[at] = lowest / seconds
            winner = winners.get(keys[task.id])
            won = {**winner.config, **off} | dict(winner.config) if winner else {}
            wins.update((k, str(v)) for k, v in won.items())
        knobs = list(dict.fromkeys(knob for knob, _ in cells))
        order = sorted(cells, key=lambda p: (knobs.index(p[0]), _natural(p[1])))
        if order:
            found.append(
                KnobStory(
                    template=template, threads=threads, tasks=tuple(t.label for t in mine),
                    rows=tuple((k, v, wins[k, v], tuple(cells[k, v])) for k, v in order),
                )
            )  # fmt: skip
    return found


def _natural(value: str) -> tuple[int, str]:
    return (int(value), "") if value.isdecimal() else (1 << 30, value)


def _machine(trials: Sequence[Trial], target: Target | None) -> Machine:
    def said(values: Counter[str]) -> str:
        return ", ".join(v if len(values) == 1 else f"{v} ({n})" for v, n in values.most_common())

    facts = [
        ("target", said(Counter(t.target for t in trials))),
        ("CPU", said(Counter(t.cpu or "unknown" for t in trials))),
        ("board", said(Counter(t.board for t in trials))),
        ("threads", said(Counter(str(t.threads) for t in trials))),
        ("apache-tvm", said(Counter(t.tvm for t in trials))),
        ("tvmsep", said(Counter(t.tvmsep for t in trials))),
        ("seed", said(Counter(str(t.seed) for t in trials))),
        ("measured", _between([t.date for t in trials])),
    ]
    if target is not None:
        caches = f"L2 {target.l2_bytes >> 10} KiB a core"
        caches += f", L3 {target.l3_bytes >> 20} MiB" if target.l3_bytes else ""
        facts += [
            ("kind of machine", f"{target.description}; {target.triple}, {target.mcpu}"),
            ("vectors", f"{target.lanes} float32 lanes, {target.vector_registers} registers"),
            ("caches", caches),
        ]
    return Machine(facts=tuple(facts))


def _between(dates: Sequence[str]) -> str:
    days = sorted(d for d in dates if _is_date(d))
    return f"{days[0]} to {days[-1]}" if days else "unknown"


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
