"""A trial is one measured config: times, or a typed failure, and where and when it was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

from tvmsep.contracts.config import Config
from tvmsep.contracts.workload import Task, Workload

SCHEMA = 1

Failure = Literal[
    "compile_error",
    "link_error",
    "build_timeout",
    "upload_error",
    "wrong_output",
    "runtime_error",
    "out_of_memory",
    "launch_error",
    "illegal_address",
    "crash",
    "timeout",
    "link_lost",
    "board_lost",
]
"""What went wrong, in the order in which it can:

- `compile_error`, `build_timeout`: TVM refuses the schedule, its process dies, or takes too long;
  `link_error`: the linker refuses the object file;
- `upload_error`: the board does not take the library (its disk is full);
- `wrong_output`; `runtime_error`: the board reports an error and goes on;
- `out_of_memory`, `launch_error`, `illegal_address`: the board's CUDA device has no room for the
  tensors, refuses the launch or ended it, or the kernel reached past its tensors (the device's
  context is lost with it, so what comes next gets a new session);
- `crash`, `timeout`: the candidate ended its session, or did not end in time; on boards whose
  server is not watched from here only after this has happened twice;
- `link_lost`: the board went away with the candidate on it; `board_lost`: there was none to run on.
"""
BLAMELESS: frozenset[Failure] = frozenset({"upload_error", "link_lost", "board_lost"})
"""Failures of a board: they say nothing about the config."""
DEVICE_FAULTS: frozenset[Failure] = frozenset({"out_of_memory", "launch_error", "illegal_address"})
"""Failures of a CUDA device."""
MODELLED = "model"
"""Name of the board whose times come from a model: they choose configs, and are no measurement."""
UNMEASURED = ("replay", "null", MODELLED)
"""Names of boards that measure nothing: their trials never count among measured ones."""
EMULATED = "emulated"
"""What the CPU of a trial begins with where a device was emulated."""
EMULATED_NOTE = "is emulated: its times say nothing about speed"
Phase = Literal["search", "final", "network"]


def is_emulated(cpu: str) -> bool:
    """Whether what a board says it is was emulated."""
    return cpu.lower().startswith(EMULATED)


def robust_mean(times_s: Sequence[float]) -> float:
    """Mean time, each run counted as three medians at most.

    What a kernel adds to a network: the time of a sum is the sum of means, not of medians.
    """
    limit = 3 * statistics.median(times_s)
    return sum(min(t, limit) for t in times_s) / len(times_s)


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
    """`network` marks one of the best few, timed inside its network; `final` one measured alone."""
    target: str
    threads: int
    board: str
    cpu: str
    """Name of what ran the kernels: for a GPU's target that of the GPU."""
    tvm: str
    tvmsep: str
    date: str
    seed: int

    @property
    def measured(self) -> bool:
        """Whether a real board was timed."""
        return self.board not in UNMEASURED

    @property
    def modelled(self) -> bool:
        """Whether its time is a model's."""
        return self.board == MODELLED

    @property
    def emulated(self) -> bool:
        """Whether the device was emulated: what was measured says nothing about speed."""
        return is_emulated(self.cpu)

    @property
    def quarantined(self) -> bool:
        """Whether the config took boards down: nothing proposes it again."""
        return self.failure in ("crash", "timeout") and self.phase == "search"

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
    def code_key(self) -> str:
        """The same for all tasks whose kernels are equal code, whoever wrote their input."""
        return msgspec.structs.replace(self, workload=self.workload.kernel).task_key

    @property
    def median_s(self) -> float:
        """Median time; infinite for a failure."""
        if not self.times_s:
            return float("inf")
        return statistics.median(self.times_s)

    @property
    def mean_s(self) -> float:
        """`robust_mean` of the times; infinite for a failure."""
        return robust_mean(self.times_s) if self.times_s else float("inf")

    def as_config(self) -> Config:
        """The config as a value that can be hashed."""
        return Config(self.config)
