"""The board's end of timing kernels inside their network, over the same session as candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmsep.codegen.reference import Array
from tvmsep.compiler import stamps_dtype, stamps_shape
from tvmsep.contracts import Target, Workload

if TYPE_CHECKING:
    from tvmsep.graph import Plan

RUNS = 12
"""Timed runs of the network behind one call."""
WARM_RUNS = 3


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

    @classmethod
    def of(
        cls, plans: Sequence[Plan], libraries: list[Path], whole: Path | None, seed: int
    ) -> NetworkJob:
        """The job for each variant's plan, on random inputs."""
        plan = plans[0]
        if any([*p.params] != [*plan.params] or p.inputs != plan.inputs for p in plans):
            raise ValueError("the variants' plans differ in inputs or parameters")
        kinds = [(s, plan.input_dtypes.get(n, "float32")) for n, s in plan.inputs.items()]
        arguments = [*random_inputs(kinds, seed), *plan.params.values()]
        shapes = [stamps_shape(p, WARM_RUNS + RUNS) for p in plans]
        return cls(libraries, whole, arguments, shapes, len(plan.outputs), plan.threads)


class OnBoardNetwork:
    """A network's variants on a board.

    Args:
        remote: an RPC session.
        job: what to load.
        target: whose clock it is.
        name: of its files there; networks that are there at once have different ones.
    """

    def __init__(self, remote: Any, job: NetworkJob, target: Target, name: str = "network") -> None:
        from tvm import runtime

        cpu = remote.cpu(0)

        def put(a: Array) -> Any:
            return runtime.empty(a.shape, str(a.dtype), cpu).copyfrom(a)

        self._arguments = [put(a) for a in job.arguments]
        clear = {shape: put(np.zeros(shape, stamps_dtype(target))) for shape in set(job.stamps)}
        self._stamps = [clear[shape] for shape in job.stamps]
        self._last = job.outputs
        self._remote, self._cpu, self._loaded, self._name = remote, cpu, 0, name
        runs = WARM_RUNS + RUNS
        self._variants = [self._load(so, number=runs - 1, repeat=1) for so in job.libraries]
        self._whole = self._load(job.whole, number=1, repeat=runs) if job.whole else None

    def _load(self, library: Path, *, number: int, repeat: int) -> tuple[Any, Any]:
        """The network's machine and a function that runs it `number * repeat + 1` times."""
        from tvm.runtime.vm import VirtualMachine

        name = f"{self._name}{self._loaded}.so"
        self._loaded += 1
        self._remote.upload(str(library), name)
        vm = VirtualMachine(self._remote.load_module(name), self._cpu)
        self._remote.remove(name)
        timer = vm.time_evaluator("invoke_stateful", self._cpu, number=number, repeat=repeat)
        return vm, timer

    def time(self, variant: int) -> Array:
        """Seconds of each step in each of `RUNS` runs: `[RUNS, steps]`."""
        vm, timer = self._variants[variant]
        # It copies its arguments on the board, so the count of readings begins at 0 again.
        vm.set_input("main", *self._arguments, self._stamps[variant])
        timer("main")
        words = vm.module["get_output"]("main", self._last).numpy()[1:].astype(np.int64)
        ns = (words[:, 0] * 1_000_000_000 + words[:, 1]).reshape(WARM_RUNS + RUNS, -1)
        seconds: Array = np.diff(ns[WARM_RUNS:], axis=1) * 1e-9
        return seconds

    def time_whole(self) -> Array:
        """Seconds of each of `RUNS` runs of the network without readings: `[RUNS]`."""
        assert self._whole is not None
        vm, timer = self._whole
        vm.set_input("main", *self._arguments)
        return np.array(timer("main").results)[WARM_RUNS:]

    def outputs(self) -> list[Array]:
        """What the network without readings made of its inputs when it last ran."""
        assert self._whole is not None
        get = self._whole[0].module["get_output"]
        if self._last == 1:
            return [get("main").numpy()]
        return [get("main", i).numpy() for i in range(self._last)]
