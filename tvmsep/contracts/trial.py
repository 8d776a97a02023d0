"""A trial is one measured config: times, or a typed failure, and where and when it was measured."""

from __future__ import annotations

from typing import Literal

import msgspec

from tvmsep.contracts.config import Config
from tvmsep.contracts.workload import Task, Workload

SCHEMA = 1

Failure = Literal[
    "compile_error",
    "build_timeout",
    "wrong_output",
    "runtime_error",
    "timeout",
    "board_lost",
]
Phase = Literal["search", "final"]


class Trial(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a log. Times are seconds of one run, one value per repeat."""

    schema: int = SCHEMA
    workload: Workload
    template: str
    template_version: int
    config: dict[str, int | str]
    times_s: tuple[float, ...] = ()
    failure: Failure | None = None
    detail: str = ""
    program: str = ""
    """Hash of the lowered program: equal programs are measured once."""
    phase: Phase = "search"
    """`final` marks a re-measurement of one of the best few."""
    target: str
    threads: int
    board: str
    cpu: str
    tvm: str
    tvmsep: str
    date: str
    seed: int

    @property
    def task_key(self) -> str:
        """Which task the trial is of, template version included."""
        return Task(
            workload=self.workload,
            target=self.target,
            threads=self.threads,
            template=f"{self.template}@{self.template_version}",
        ).key

    @property
    def median_s(self) -> float:
        """Median time; infinite for a failure."""
        if not self.times_s:
            return float("inf")
        ordered = sorted(self.times_s)
        mid = len(ordered) // 2
        return ordered[mid] if len(ordered) % 2 else (ordered[mid - 1] + ordered[mid]) / 2

    @property
    def mean_s(self) -> float:
        """Mean time, each repeat counted as three medians at most; infinite for a failure.

        What a kernel adds to a network: the time of a sum is the sum of means, not of medians.
        """
        if not self.times_s:
            return float("inf")
        limit = 3 * self.median_s
        return sum(min(t, limit) for t in self.times_s) / len(self.times_s)

    def as_config(self) -> Config:
        """The config as a value that can be hashed."""
        return Config(self.config)
