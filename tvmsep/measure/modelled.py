"""A board that measures nothing: each candidate is built, and a model says what it would take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tvmsep.contracts import Config, Failure, Target, Task
from tvmsep.contracts.trial import MODELLED
from tvmsep.estimate import Modelled, modelled, must_model
from tvmsep.measure import builder
from tvmsep.measure.offline import Offline
from tvmsep.measure.results import Built, Failed, Measured, shorten
from tvmsep.measure.worker import Pool, WorkerTimeout
from tvmsep.targets import host_cores

_LIMIT_S = 60.0
"""For one candidate: LLVM, and llvm-mca on its loop."""


def model_candidate(task: Task, target: Target, config: Config) -> Modelled | Failed:
    """Build and model one config of a task; runs inside a warm worker.

    Raises:
        InputError: the target cannot be modelled. TVM's own errors pass through.
    """
    from tvmsep.estimate.gpu import Unfit

    template = task.template.partition("@")[0]
    try:
        return modelled(task.workload, target, template, config, task.threads)
    except Unfit as problem:
        return Failed("compile_error", shorten(str(problem)))


class ModelBoard(Offline):
    """Answers with modelled times: `tvmsep.estimate` says how, and what it leaves out.

    Args:
        target: whose cores, or whose GPU, are modelled; it need not fit this host.
        workers: processes that build; one a core by default.

    Raises:
        InputError: the target has no model, or llvm-mca is missing.
    """

    name = MODELLED

    def __init__(self, target: Target, workers: int | None = None) -> None:
        super().__init__(f"model of {must_model(target)}")
        self._target = target
        self.builders = workers or host_cores()
        self._pool: Pool | None = None
        self._times: dict[tuple[str, Config], float] = {}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.close()

    def peak_flops_per_core(self) -> float:
        """Of a core, of the whole GPU, as its file has it."""
        t = self._target
        if t.gpu is not None:
            return t.gpu.fp32_flops
        return 2e9 * t.fma_per_cycle * t.lanes * (t.clock_ghz or 1.0)

    def known(self, task: Task) -> set[Config] | None:
        """Every config."""
        return None

    def build(self, jobs: Sequence[tuple[Task, Config]]) -> list[Built | Failed]:
        """Build candidates and model them.

        Raises:
            TvmsepError: something that no candidate is to blame for.
        """
        if self._pool is None:
            self._pool = Pool(self.builders, builder.warm, {"TVM_USE_RUNTIME_LIB": "0"})
        calls = [(task, self._target, config) for task, config in jobs]
        answers = self._pool.map(model_candidate, calls, _LIMIT_S)
        found: list[Built | Failed] = []
        for (task, config), answer in zip(jobs, answers, strict=True):
            if isinstance(answer, Modelled):
                self._times[task.key, config] = answer.seconds
                found.append(Built(Path(self.name), answer.program))
            elif isinstance(answer, Failed):
                found.append(answer)
            else:
                late = isinstance(answer, WorkerTimeout)
                failure: Failure = "build_timeout" if late else "compile_error"
                found.append(Failed(failure, shorten(str(answer))))
        return found

    def _answer(self, task: Task, config: Config) -> Measured | Failed:
        return Measured((self._times[task.key, config],), 0.0, self.name)
