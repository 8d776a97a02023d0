"""Two logs without measuring: what changed in each task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tvmsep.contracts import Config, LogError, Trial
from tvmsep.contracts.config import OPTIONAL
from tvmsep.logs import Best, best_trials, read_log


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One task. Times are those of each log's best config, in seconds."""

    label: str
    template: str
    threads: int
    before: dict[str, int | str] | None
    """The best config; None where the log has none."""
    after: dict[str, int | str] | None
    before_s: float | None
    after_s: float | None
    trials: tuple[int, int]
    failed: tuple[dict[str, int], dict[str, int]]
    """How many failures of each type."""

    @property
    def ratio(self) -> float | None:
        """The later time over the earlier one."""
        if self.before_s is None or self.after_s is None:
            return None
        return self.after_s / self.before_s

    @property
    def knobs(self) -> str:
        """What changed, knob by knob."""
        if self.before is None or self.after is None:
            have = self.before if self.after is None else self.after
            where = "only before" if self.after is None else "only after"
            return f"{where}: {Config(have).key}" if have else where

        def off(knob: str) -> int | str:
            return 0 if knob in OPTIONAL else "-"

        names = list(dict.fromkeys([*self.before, *self.after]))
        return " ".join(
            f"{k}:{self.before.get(k, off(k))}>{self.after.get(k, off(k))}"
            for k in names
            if self.before.get(k) != self.after.get(k)
        ) or "same"  # fmt: skip

    @property
    def failures(self) -> str:
        """Those of either log, by type."""
        kinds = sorted({*self.failed[0], *self.failed[1]})
        return " ".join(f"{k}:{self.failed[0].get(k, 0)}>{self.failed[1].get(k, 0)}" for k in kinds)


def changes(before: Path, after: Path) -> list[Change]:
    """Every task of either log, those that cost most first.

    Raises:
        LogError: a log cannot be read, or they are of two targets.
    """
    logs = [read_log(before), read_log(after)]
    targets = [{t.target for t in log} for log in logs]
    if targets[0] and targets[1] and not targets[0] & targets[1]:
        raise LogError(
            f"{before} is for {', '.join(sorted(targets[0]))}, {after} for "
            f"{', '.join(sorted(targets[1]))}: configs of two targets do not compare"
        )
    # One log may come from a board that measures nothing: what it found is shown all the same.
    best = [_best({**best_trials(log, measured=False), **best_trials(log)}) for log in logs]
    tasks: dict[str, Trial] = {t.code_key: t for log in logs for t in log}
    counted = [_count(log) for log in logs]
    found = []
    for key, trial in tasks.items():
        one, two = best[0].get(key), best[1].get(key)
        found.append(
            Change(
                label=trial.workload.label, template=trial.template, threads=trial.threads,
                before=dict(one.config) if one else None, after=dict(two.config) if two else None,
                before_s=one.seconds if one else None, after_s=two.seconds if two else None,
                trials=(counted[0][0][key], counted[1][0][key]),
                failed=(counted[0][1].get(key, {}), counted[1][1].get(key, {})),
            )
        )  # fmt: skip
    return sorted(found, key=lambda c: -max(c.before_s or 0.0, c.after_s or 0.0))


def _best(winners: Mapping[str, Best]) -> dict[str, Best]:
    """Of each code: timed inside a network before alone, and the fastest of these."""
    found: dict[str, Best] = {}
    for best in sorted(winners.values(), key=lambda b: (b.inside is None, b.seconds)):
        found.setdefault(best.trial.code_key, best)
    return found


def _count(log: Sequence[Trial]) -> tuple[Counter[str], dict[str, dict[str, int]]]:
    """Trials of each task, and its failures by type."""
    trials: Counter[str] = Counter(t.code_key for t in log)
    failed: dict[str, dict[str, int]] = {}
    for trial in log:
        if trial.failure is not None:
            mine = failed.setdefault(trial.code_key, {})
            mine[trial.failure] = mine.get(trial.failure, 0) + 1
    return trials, failed
