"""Boards that measure nothing: one answers from a log, one from a formula; `modelled` has a third.

They stand where a `Farm` stands, so that the search can be tested and strategies compared without
hardware (the idea of Kernel Tuner's simulation mode, van Werkhoven, FGCS 2019). Every answer
carries the name of such a board, and no log mixes them with measurements.
"""

from __future__ import annotations

import math
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from tvmsep.contracts import Config, Task, Trial, Workload
from tvmsep.contracts.config import OPTIONAL
from tvmsep.contracts.trial import BLAMELESS
from tvmsep.measure.network import NetworkTimes
from tvmsep.measure.results import Board, Built, Failed, Measured
from tvmsep.schedules import TEMPLATES

if TYPE_CHECKING:
    from tvmsep.graph import Plan

PEAK_FLOPS = 100e9
"""Of one core of a board that has no cores."""
_Key = tuple[Workload, int, str, int]


class Measuring(Protocol):
    """All that the tuner knows of a farm; `Farm` says what each does."""

    @property
    def builders(self) -> int:
        """Processes that compile."""

    @property
    def boards(self) -> int:
        """How many measure now."""

    @property
    def overlaps(self) -> bool:
        """Whether building and measuring may overlap."""

    @property
    def notes(self) -> list[str]:
        """What the user should know about the boards."""

    def connect(self) -> Board:
        """A board that answers."""

    def known(self, task: Task) -> set[Config] | None:
        """Configs that can be measured; None for all."""

    def build(self, jobs: Sequence[tuple[Task, Config]]) -> list[Built | Failed]:
        """Compile candidates."""

    def start(
        self, built: Sequence[tuple[Task, Config, Built]]
    ) -> Iterator[tuple[int, Measured | Failed]]:
        """Measure candidates, answers as they come."""

    def run(self, built: Sequence[tuple[Task, Config, Built]]) -> Iterator[Measured | Failed]:
        """Measure candidates, answers in their order."""

    def run_networks(
        self,
        plans: Sequence[Plan],
        choices: Sequence[Mapping[Workload, tuple[str, Config]]],
        *,
        rounds: int,
        whole: bool = False,
        kernels: Sequence[Mapping[Workload, Path]] = (),
    ) -> NetworkTimes | Failed:
        """Time kernels inside their network."""


class Offline:
    """What such boards have in common: one candidate after the other, no networks."""

    name = ""
    builders = boards = 1
    overlaps = False

    def __init__(self, cpu: str) -> None:
        self._cpu = cpu
        self.notes: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def connect(self) -> Board:
        """The board."""
        return Board(self.name, "", 0, "", self._cpu, True)

    def peak_flops_per_core(self) -> float:
        """A round number."""
        return PEAK_FLOPS

    def _answer(self, task: Task, config: Config) -> Measured | Failed:
        raise NotImplementedError

    def start(
        self, built: Sequence[tuple[Task, Config, Built]]
    ) -> Iterator[tuple[int, Measured | Failed]]:
        """As a farm's."""
        return enumerate(self.run(built))

    def run(self, built: Sequence[tuple[Task, Config, Built]]) -> Iterator[Measured | Failed]:
        """As a farm's."""
        for task, config, _ in built:
            yield self._answer(task, config)

    def run_networks(
        self,
        plans: Sequence[Plan],
        choices: Sequence[Mapping[Workload, tuple[str, Config]]],
        *,
        rounds: int,
        whole: bool = False,
        kernels: Sequence[Mapping[Workload, Path]] = (),
    ) -> NetworkTimes | Failed:
        """Not to be had."""
        return Failed("board_lost", f"board {self.name} runs no networks")


class ReplayBoard(Offline):
    """Answers from a log: each config's times, or its failure, as they were measured.

    Configs that the log does not know are not proposed. Where the log holds trials of several
    CPUs those of the most frequent one count.

    Args:
        trials: the log's.
    """

    name = "replay"

    def __init__(self, trials: Sequence[Trial]) -> None:
        counts = Counter(t.cpu for t in trials if t.measured)
        super().__init__(max(counts, key=lambda c: counts[c], default=""))
        self._answers: dict[_Key, dict[Config, Trial]] = {}
        for t in trials:
            if (t.cpu, t.phase) == (self._cpu, "search") and t.measured:
                if t.failure not in BLAMELESS:
                    key = (t.workload.kernel, t.threads, t.template, t.template_version)
                    self._answers.setdefault(key, {}).setdefault(t.as_config(), t)

    def _of(self, task: Task) -> dict[Config, Trial]:
        template = task.template.partition("@")[0]
        key = (task.workload.kernel, task.threads, template, TEMPLATES[template].version)
        return self._answers.get(key, {})

    def known(self, task: Task) -> set[Config] | None:
        """What the log has of a task."""
        return set(self._of(task))

    def build(self, jobs: Sequence[tuple[Task, Config]]) -> list[Built | Failed]:
        """What building gave then."""
        found: list[Built | Failed] = []
        for task, config in jobs:
            t = self._of(task)[config]
            if t.failure is not None and not t.program:
                found.append(Failed(t.failure, t.detail, self.name))
            else:
                found.append(Built(Path(self.name), t.program or config.key))
        return found

    def _answer(self, task: Task, config: Config) -> Measured | Failed:
        t = self._of(task)[config]
        if t.failure is not None:
            return Failed(t.failure, t.detail, self.name)
        return Measured(t.times_s, 0.0, self.name)


class NullBoard(Offline):
    """Answers with times from a formula of workload and config, at once or after a while.

    Args:
        latency_s: how long each answer takes.
    """

    name = "null"

    def __init__(self, latency_s: float = 0.0) -> None:
        super().__init__("null")
        self._latency_s = latency_s

    def known(self, task: Task) -> set[Config] | None:
        """Every config."""
        return None

    def build(self, jobs: Sequence[tuple[Task, Config]]) -> list[Built | Failed]:
        """Nothing is built."""
        return [Built(Path(self.name), f"{task.key} {c.key}") for task, c in jobs]

    def _answer(self, task: Task, config: Config) -> Measured | Failed:
        time.sleep(self._latency_s)
        return Measured((formula(task, config),) * 3, 0.0, self.name)


def formula(task: Task, config: Config) -> float:
    """Seconds: one optimum a task, and ripples that no neighbour shares."""
    seconds = max(task.workload.flops, 1000) / (PEAK_FLOPS * task.threads)
    always = sorted((k, v) for k, v in config.items() if k not in OPTIONAL)
    for i, (_, value) in enumerate(always):
        steps = math.log2(max(value, 1)) - 1.5 - 0.5 * i if isinstance(value, int) else len(value)
        seconds *= 1 + 0.1 * abs(steps)
    return seconds * (1 + 0.02 * zlib.crc32(config.key.encode()) / 2**32)
