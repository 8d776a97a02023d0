"""From trials to the best config of each task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tvmsep.contracts import Config, Trial


@dataclass(frozen=True)
class Best:
    """The winner of one task: its config, its time, and the trial that says so."""

    config: Config
    seconds: float
    trial: Trial


def best_trials(trials: Iterable[Trial]) -> dict[str, Best]:
    """The winner for each task key.

    Re-measurements of the best few (`final`) outrank search trials, since only they were taken in
    turn; a config's time is the median of its final medians, or else its only search median.
    """
    final: dict[str, dict[Config, list[Trial]]] = defaultdict(lambda: defaultdict(list))
    search: dict[str, Trial] = {}
    for trial in trials:
        if trial.failure is not None or not trial.times_s:
            continue
        key = trial.task_key
        if trial.phase == "final":
            final[key][trial.as_config()].append(trial)
        elif key not in search or trial.median_s < search[key].median_s:
            search[key] = trial
    winners = {k: Best(t.as_config(), t.median_s, t) for k, t in search.items()}
    for key, configs in final.items():
        ranked = []
        for config, runs in configs.items():
            runs.sort(key=lambda t: t.median_s)
            ranked.append(Best(config, runs[len(runs) // 2].median_s, runs[len(runs) // 2]))
        winners[key] = min(ranked, key=lambda b: b.seconds)
    return winners
