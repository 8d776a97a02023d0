"""The board's end of timing kernels inside their network, over the same session as candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmsep.codegen.reference import Array
from tvmsep.compiler import MARKS, mark_id, stamps_dtype, stamps_shape
from tvmsep.contracts import Target, Workload
from tvmsep.measure.device import device_of
from tvmsep.measure.tensors import empty

if TYPE_CHECKING:
    from tvmsep.graph import Plan

RUNS = 12
"""Timed runs of the network behind one call."""
WARM_RUNS = 3
MOST_LAUNCHES = 4096
"""Functions that one run of a marked network calls."""


def random_inputs(kinds: Iterable[tuple[Sequence[int], str]], seed: int) -> list[Array]:
    """Standard normal noise, one array for each shape and dtype."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(tuple(shape)).astype(dtype) for shape, dtype in kinds]


@dataclass(frozen=True)
class NetworkTimes:
    """Seconds of kernels inside their network."""

    kernels: list[dict[Workload, tuple[float, ...]]]
    """For each variant and workload one value a run: the mean over the places that use it. Empty
    where the variants came without their plans."""
    whole_s: tuple[float, ...]
    """Seconds of the first variant without readings between its kernels, one value a run."""
    board: str = ""
    """Which one, where the farm has several."""
    steps: list[Array] = field(default_factory=list)
    """For each variant the seconds of every step in every run: `[runs, steps]`."""


@dataclass(frozen=True)
class NetworkJob:
    """Variants of one network: the same inputs and weights, other kernels."""

    libraries: list[Path]
    whole: Path | None
    """The first variant without readings, if it is to be timed too."""
    arguments: list[Array]
    """Inputs and weights, in the order of the network's parameters."""
    stamps: list[tuple[int, int]]
    """Shape of each variant's last parameter."""
    outputs: int
    """How many the network has, the readings not counted."""
    threads: int
    marks: list[list[int]] = field(default_factory=list)
    """For each variant of a GPU's target the `mark_id` of each step's kernel; -1 where a step has
    none of ours."""

    @classmethod
    def of(
        cls,
        plans: Sequence[Plan],
        libraries: list[Path],
        whole: Path | None,
        seed: int,
        functions: Sequence[Sequence[str]] = (),
    ) -> NetworkJob:
        """The job for each variant's plan, on random inputs.

        Args:
            plans: of the variants.
            libraries: their own.
            whole: the first variant's without readings.
            seed: of the inputs.
            functions: for each variant of a GPU's target the names of its kernels, in order.
        """
        plan = plans[0]
        if any([*p.params] != [*plan.params] or p.inputs != plan.inputs for p in plans):
            raise ValueError("the variants' plans differ in inputs or parameters")
        kinds = [(s, plan.input_dtypes.get(n, "float32")) for n, s in plan.inputs.items()]
        arguments = [*random_inputs(kinds, seed), *plan.params.values()]
        shapes = [stamps_shape(p, WARM_RUNS + RUNS) for p in plans]
        marks = []
        for p, names in zip(plans, functions, strict=False):
            ids = iter(map(mark_id, names))
            marks.append([-1 if s.workload is None else next(ids) for s in p.steps])
        outputs = len(plan.outputs)
        return cls(libraries, whole, arguments, shapes, outputs, plan.threads, marks)


def columns(launched: Sequence[int], steps: Sequence[int]) -> list[int]:
    """Which step each launch of a marked network belongs to.

    What is no kernel of ours belongs to the first step without one behind the last kernel, else to
    that kernel: nothing that ran is left out of the sum.

    Args:
        launched: `mark_id` of each function that was launched, in order.
        steps: of each step's kernel, -1 for a step that has none of ours.

    Raises:
        RuntimeError: the steps' kernels are not there in their order.
    """
    found, at = [], -1
    for number in launched:
        after = next((i for i in range(at + 1, len(steps)) if steps[i] >= 0), -1)
        if after >= 0 and steps[after] == number:
            at = after
            found.append(at)
        else:
            found.append(at + 1 if at + 1 < len(steps) and steps[at + 1] < 0 else max(at, 0))
    if any(number >= 0 for number in steps[at + 1 :]):
        raise RuntimeError("the kernels of a marked network did not run in their order")
    return found


class OnBoardNetwork:
    """A network's variants on a board.

    Args:
        remote: an RPC session.
        job: what to load.
        target: whose clock it is.
        name: of its files there; networks that are there at once have different ones.
    """

    def __init__(self, remote: Any, job: NetworkJob, target: Target, name: str = "network") -> None:
        self._device, self._host = device_of(remote, target), remote.cpu(0)
        self._arguments = [empty(a.shape, str(a.dtype), self._device, a) for a in job.arguments]
        self._job = job
        self._stamps: list[Any] = []
        if target.gpu is None:
            kind = stamps_dtype(target)
            clear = {s: empty(s, kind, self._host, np.zeros(s, kind)) for s in set(job.stamps)}
            self._stamps = [clear[shape] for shape in job.stamps]
        self._remote, self._loaded, self._name = remote, 0, name
        runs = WARM_RUNS + RUNS
        self._variants = [self._load(so, number=runs - 1, repeat=1) for so in job.libraries]
        self._whole = self._load(job.whole, number=1, repeat=runs) if job.whole else None

    def _load(self, library: Path, *, number: int, repeat: int) -> tuple[Any, Any, Any]:
        """The network's machine, a function that runs it `number * repeat + 1` times, its code."""
        from tvm.runtime.vm import VirtualMachine

        name = f"{self._name}{self._loaded}.so"
        self._loaded += 1
        self._remote.upload(str(library), name)
        code = self._remote.load_module(name)
        vm = VirtualMachine(code, self._device)
        self._remote.remove(name)
        timer = vm.time_evaluator("invoke_stateful", self._device, number=number, repeat=repeat)
        return vm, timer, code

    def time(self, variant: int) -> Array:
        """Seconds of each step in each of `RUNS` runs: `[RUNS, steps]`.

        Raises:
            RuntimeError: a marked network did not run as it was planned.
        """
        vm, timer, code = self._variants[variant]
        if not self._stamps:
            return self._time_marked(variant, vm, timer, code)
        # It copies its arguments on the board, so the count of readings begins at 0 again.
        vm.set_input("main", *self._arguments, self._stamps[variant])
        timer("main")
        words = vm.module["get_output"]("main", self._job.outputs).numpy()[1:].astype(np.int64)
        ns = (words[:, 0] * 1_000_000_000 + words[:, 1]).reshape(WARM_RUNS + RUNS, -1)
        seconds: Array = np.diff(ns[WARM_RUNS:], axis=1) * 1e-9
        return seconds

    def _time_marked(self, variant: int, vm: Any, timer: Any, code: Any) -> Array:
        """As `time`, by the events behind each launch."""
        vm.set_input("main", *self._arguments)
        take = code[MARKS]
        rows = (WARM_RUNS + RUNS) * MOST_LAUNCHES
        ids, seconds = (empty((rows,), kind, self._host) for kind in ("int32", "float64"))
        take(ids, seconds)  # of an earlier run that failed
        timer("main")
        count = int(take(ids, seconds))
        if count > rows or count % (WARM_RUNS + RUNS):
            raise RuntimeError(f"{count} launches in {WARM_RUNS + RUNS} runs of a marked network")
        who = ids.numpy()[:count].reshape(WARM_RUNS + RUNS, -1)
        times = seconds.numpy()[:count].reshape(who.shape)
        if (who != who[0]).any():
            raise RuntimeError("the runs of a marked network launched different kernels")
        steps = self._job.marks[variant]
        found = np.zeros((len(steps), RUNS))
        np.add.at(found, columns(who[0].tolist(), steps), times[WARM_RUNS:].T)
        return found.T.round(9)

    def time_whole(self) -> Array:
        """Seconds of each of `RUNS` runs of the network without readings: `[RUNS]`."""
        assert self._whole is not None
        vm, timer, _ = self._whole
        vm.set_input("main", *self._arguments)
        return np.array(timer("main").results)[WARM_RUNS:]

    def outputs(self) -> list[Array]:
        """What the network without readings made of its inputs when it last ran."""
        assert self._whole is not None
        get = self._whole[0].module["get_output"]
        if self._job.outputs == 1:
            return [get("main").numpy()]
        return [get("main", i).numpy() for i in range(self._job.outputs)]
