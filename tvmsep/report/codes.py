"""Tasks whose kernels are equal code are one task of a report, wherever the network has them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

import msgspec

from tvmsep.contracts import Trial, Workload
from tvmsep.logs import Best
from tvmsep.report.sources import Counts


def places(trial: Trial) -> list[tuple[str, int]]:
    """Where a bundle's counts may have a trial's code."""
    return [(w.key, trial.threads) for w in trial.workload.same_code]


def winner(trial: Trial, winners: Mapping[str, Best], counts: Counts | None) -> Best | None:
    """Of a trial's code: the mean over the places where the network runs it, else the fastest."""
    of = {
        (w.key, trial.threads): winners.get(msgspec.structs.replace(trial, workload=w).task_key)
        for w in trial.workload.same_code
    }
    known = {at: best for at, best in of.items() if best is not None}
    if not known:
        return None
    network = (counts or {}).get(trial.threads) or {}
    runs = {at: network[at] for at in known if at in network}
    if not runs:
        return min(known.values(), key=lambda b: (b.inside is None, b.seconds))
    best = known[max(runs, key=lambda at: runs[at])]
    mean_s = sum(known[at].mean_s * n for at, n in runs.items()) / sum(runs.values())
    return replace(best, mean_s=mean_s)


def fastest_forms(
    used: Iterable[str], groups: Mapping[str, list[Trial]], best_s: Mapping[str, float]
) -> list[str]:
    """Of kernels that differ only in how threads divide their work, the fastest.

    Args:
        used: keys of tasks of one thread count.
        groups: their trials.
        best_s: their times.
    """
    forms: dict[tuple[Workload, str, int], list[str]] = defaultdict(list)
    for key in used:
        t = groups[key][0]
        w = msgspec.structs.replace(t.workload, in_split="rows", out_split="rows")
        forms[w, t.template, t.template_version].append(key)
    return [min(keys, key=lambda k: best_s[k]) for keys in forms.values()]
