"""From trials to the best config of each task."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tvmsep.contracts import Config, Trial


@dataclass(frozen=True)
class Best:
    """The winner of one task: its config, its time, and the trial that says so."""

    config: Config
    seconds: float
    """Its median: what configs are ranked by."""
    mean_s: float
    """What it adds to a network's time: the mean over those measurements."""
    trial: Trial
    inside: Best | None = None
    """The best of those timed inside the network: this one, or what a later trial of the search has
    beaten; None if none was."""


def best_trials(trials: Iterable[Trial], *, measured: bool = True) -> dict[str, Best]:
    """The winner for each task key, among trials that a real board measured.

    With `measured` false, among those that the replay or the null board answered.

    Times taken inside a network outrank re-measurements of single kernels, and these outrank
    search trials, since only the former were taken in turn.

    - In a network: the fastest of those that took turns last (they share a date): earlier turns
      decided which these were, and times of different minutes do not compare.
    - Alone: a config's time is the median of its medians.

    A config that was found since and not measured again yet (a run that was stopped early) wins
    only if it beat the search time of every one that was. A config whose output was ever wrong
    never wins.
    """
    trials = [t for t in trials if t.measured == measured]
    wrong = {(t.task_key, t.as_config()) for t in trials if t.failure == "wrong_output"}
    search: dict[str, dict[Config, Trial]] = defaultdict(dict)
    again: dict[str, dict[Config, list[Trial]]] = defaultdict(lambda: defaultdict(list))
    inside: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        key, config = trial.task_key, trial.as_config()
        if trial.failure is not None or not trial.times_s or (key, config) in wrong:
            continue
        if trial.phase == "search":
            search[key][config] = trial
        elif trial.phase == "final":
            again[key][config].append(trial)
        else:
            inside[key].append(trial)
    return {
        key: _winner(search[key], inside[key], again[key]) for key in {**search, **again, **inside}
    }


def chosen_by(trials: Iterable[Trial]) -> dict[str, Best]:
    """What `build` takes: winners of the measured trials, of the modelled ones if none is."""
    trials = list(trials)
    if any(t.measured for t in trials):
        return best_trials(trials)
    return best_trials([t for t in trials if t.modelled], measured=False)


def _winner(
    search: dict[Config, Trial], inside: list[Trial], again: dict[Config, list[Trial]]
) -> Best:
    met = {t.as_config() for t in inside} or set(again)
    bar = min((search[c].median_s for c in met if c in search), default=math.inf)
    newer = [t for c, t in search.items() if c not in met and t.median_s < bar]
    timed = None
    if inside:
        last, again = max(t.date for t in inside), defaultdict(list)
        for trial in inside:
            if trial.date == last:
                again[trial.as_config()].append(trial)
        best = min(map(_middle, again.values()), key=lambda b: b.seconds)
        timed = replace(best, inside=best)
    if newer:
        return replace(_middle([min(newer, key=lambda t: t.median_s)]), inside=timed)
    return timed or min(map(_middle, again.values()), key=lambda b: b.seconds)


def _middle(runs: list[Trial]) -> Best:
    trial = sorted(runs, key=lambda t: t.median_s)[len(runs) // 2]
    mean = sum(t.mean_s for t in runs) / len(runs)
    return Best(trial.as_config(), trial.median_s, mean, trial)
