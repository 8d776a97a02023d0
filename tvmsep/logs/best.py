"""From trials to the best config of each task."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tvmsep.contracts import Config, Trial


@dataclass(frozen=True)
class Best:
    """The winner of one task: its config, its time, and the trial that says so."""

    config: Config
    seconds: float
    """Its median: what configs are ranked by."""
    mean_s: float
    """What it adds to a network's time: the mean over its re-measurements, or its one trial."""
    trial: Trial


def best_trials(trials: Iterable[Trial]) -> dict[str, Best]:
    """The winner for each task key.

    Re-measurements of the best few (`final`) outrank search trials, since only they were taken in
    turn; a config's time is the median of its final medians, or else its only search median. A
    config that was found since and not measured again yet (a run that was stopped early) wins
    only if it beat the search time of every one that was. A config whose output was ever wrong
    never wins.
    """
    final: dict[str, dict[Config, list[Trial]]] = defaultdict(lambda: defaultdict(list))
    search: dict[str, dict[Config, Trial]] = defaultdict(dict)
    wrong: set[tuple[str, Config]] = set()
    for trial in trials:
        key, config = trial.task_key, trial.as_config()
        if trial.failure == "wrong_output":
            wrong.add((key, config))
        if trial.failure is not None or not trial.times_s:
            continue
        if trial.phase == "final":
            final[key][config].append(trial)
        else:
            search[key][config] = trial
    winners = {}
    for key in {**search, **final}:
        again = {c: runs for c, runs in final[key].items() if (key, c) not in wrong}
        once = {c: t for c, t in search[key].items() if (key, c) not in wrong}
        ranked = []
        for config, runs in again.items():
            runs.sort(key=lambda t: t.median_s)
            middle = runs[len(runs) // 2]
            mean = sum(t.mean_s for t in runs) / len(runs)
            ranked.append(Best(config, middle.median_s, mean, middle))
        bar = min((once[c].median_s for c in again if c in once), default=math.inf)
        newer = [t for c, t in once.items() if c not in again and t.median_s < bar]
        if newer:
            first = min(newer, key=lambda t: t.median_s)
            winners[key] = Best(first.as_config(), first.median_s, first.mean_s, first)
        elif ranked:
            winners[key] = min(ranked, key=lambda b: b.seconds)
    return winners
