"""Models planned for a target, and what must be so before work begins."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import (
    InputError,
    Target,
    Task,
    TvmsepError,
    Workload,
)

if TYPE_CHECKING:
    from tvmsep.frontends import Imported
    from tvmsep.graph import Graph, Plan

_SCRATCH_BYTES = 32 << 20
"""LLVM ends the process where it cannot write an object file, so room is looked for first."""


@dataclass
class Prepared:
    """A model imported and planned for a target at one or more thread counts."""

    imported: Imported
    graph: Graph
    """As imported: the reference in float64."""
    target: Target
    plans: dict[int, Plan]
    """By thread count, with separate depthwise and pointwise kernels."""
    layout: str = ""
    """Of activations, one of `tvmsep.graph.layouts`; empty for a CPU's default."""
    dtype: str = "float32"
    """Of weights, and of activations between kernels."""
    by_image: bool = True
    """Whether a batch is planned by its images; see `make_plan`."""

    def replan(self, graph: Graph, threads: int, returned: Sequence[str] | None = None) -> Plan:
        """Another graph, or other outputs, planned as this was; see `make_plan`."""
        from tvmsep.graph import make_plan

        return make_plan(
            graph, self.target, threads, returned, layout=self.layout, dtype=self.dtype,
            by_image=self.by_image,
        )  # fmt: skip

    @property
    def title(self) -> str:
        """Its inputs."""
        return ", ".join(map(str, self.imported.inputs))

    def candidates(self, threads: int) -> list[Plan]:
        """Of a thread count the plan, one with all fused that can be, and those of other splits."""
        from tvmsep.graph import fuse, fusible, open_splits, other_splits, resplit

        plan = self.plans[threads]
        by_rows = resplit(plan, dict.fromkeys(open_splits(plan), "rows"))  # as all pairs are
        pairs = fusible(by_rows, self.target)
        fused = [fuse(by_rows, self.target, pairs)] if pairs else []
        return [plan, *fused, *other_splits(plan)]

    def networks(self) -> list[Plan]:
        """The candidates that time kernels in a network, those of equal kernels once."""
        plans: dict[tuple[int, tuple[Workload | None, ...]], Plan] = {}
        for n in self.plans:
            for plan in self.candidates(n):
                plans.setdefault((plan.threads, tuple(s.workload for s in plan.steps)), plan)
        return list(plans.values())

    def tasks(self) -> list[Task]:
        """All tasks of all thread counts, of all that a network may be made of.

        Of those whose kernels are the same code, whoever wrote their input, there is one.
        """
        from tvmsep.tuner.state import of_one_code

        found: dict[tuple[Workload, int], Task] = {}
        for plan in [p for n in self.plans for p in self.candidates(n)]:
            for task in of_one_code(plan.tasks(self.target)):
                found.setdefault((task.workload.kernel, task.threads), task)
        return list(found.values())


def prepare(
    model: Any,
    *,
    target: str | Target = "local",
    threads: Sequence[int] | int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    params: str | os.PathLike[str] | None = None,
    layout: str | None = None,
    dtype: str | None = None,
    by_image: bool = True,
) -> Prepared:
    """Import a model and plan it.

    Args:
        model: as for `tune`, as are the others.
        target: for what.
        threads: how many, for each plan.
        shapes: fixes dynamic input shapes.
        example_inputs: for a torch module.
        params: for a Relay program.
        layout: of activations: on a GPU `nchw4c` (the default), `nchw` or `nhwc`, on a CPU
            `nhwc` or blocks of about a vector, such as `nchw8c`; by default a vector, or half
            of it.
        dtype: `float32` (the default), or `float16` on a GPU and on CPUs that compute in it: of
            weights, and of activations between kernels. Inputs and outputs stay as the model has
            them.
        by_image: False for kernels that each compute a whole batch; see `make_plan`.

    Raises:
        ModelError: the model cannot be read or holds something unsupported.
        TargetError: the target is unknown or malformed.
        InputError: a thread count is out of range; no such layout or dtype on this target.
    """
    from tvmsep.frontends import load_model
    from tvmsep.graph import from_relax, normalise
    from tvmsep.targets import load_target

    hardware = load_target(target) if isinstance(target, str) else target
    counts = _thread_counts(threads, hardware)
    layout, dtype = _form(layout, dtype, hardware)
    for n in counts:
        if hardware.gpu is not None and n != 1:
            raise InputError(
                f"threads is {n}; the kernels of target {hardware.name} run on its GPU, and one "
                "thread starts them: leave threads out, or give 1"
            )
        if not 1 <= n <= hardware.cores:
            raise InputError(
                f"threads is {n}; target {hardware.name} has {hardware.cores} cores here: "
                f"give 1 to {hardware.cores}"
            )
    imported = load_model(model, shapes=shapes, example_inputs=example_inputs, params=params)
    graph = from_relax(imported.module)
    prepared = Prepared(imported, graph, hardware, {}, layout, dtype, by_image)
    for n in counts:
        prepared.plans[n] = prepared.replan(normalise(from_relax(imported.module)), n)
    return prepared


def _form(layout: str | None, dtype: str | None, target: Target) -> tuple[str, str]:
    """Layout and dtype as a plan takes them.

    Raises:
        InputError: the target has no kernels for them.
    """
    from tvmsep.contracts.workload import ITEM_BYTES
    from tvmsep.graph import layouts
    from tvmsep.targets import load_target, target_names

    dtype = dtype or "float32"
    if dtype not in ITEM_BYTES:
        raise InputError(f"dtype is {dtype!r}: give {' or '.join(ITEM_BYTES)}")
    if dtype == "float16" and target.gpu is None and not target.half_arithmetic:
        able = [n for n in target_names() if load_target(n).half_arithmetic]
        raise InputError(
            f"dtype is float16, but the CPU of target {target.name} does not compute in it "
            "(fullfp16 of Armv8.2, which Linux calls asimdhp; `half_arithmetic` in a target's "
            f"file): leave it out, or give {', '.join(able)} or a target with a GPU"
        )
    known = layouts(target, dtype)
    if layout is None:
        return known[0] if target.gpu is not None else "", dtype
    if layout not in known:
        raise InputError(
            f"layout is {layout!r}: for {dtype} on target {target.name} give {', '.join(known)}"
        )
    return layout, dtype


Shapes = Mapping[str, Sequence[int]]


def prepare_all(
    model: Any, *, shapes: Shapes | Sequence[Shapes] | None = None, **how: Any
) -> list[Prepared]:
    """Import and plan a model once for each set of input shapes.

    Args:
        model: as for `prepare`.
        shapes: one set, several, or None.
        **how: as for `prepare`.

    Raises:
        TvmsepError: as `prepare`; or two sets give the same shapes.
    """
    several = [shapes] if shapes is None or isinstance(shapes, Mapping) else list(shapes)
    prepared = [prepare(model, shapes=one, **how) for one in several or [None]]
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for one in prepared:
        key = tuple(t.shape for t in one.imported.inputs)
        if key in seen:
            raise InputError(
                f"the shapes {one.title} are given twice: give each set of shapes once"
            )
        seen.add(key)
    return prepared


def _thread_counts(threads: Sequence[int] | int | None, target: Target) -> list[int]:
    if threads is None:
        return [target.cores]
    counts = [threads] if isinstance(threads, int) else list(threads)
    if not counts or not all(type(n) is int for n in counts):
        raise InputError(f"threads is {threads!r}: give a thread count, or several as [1, 2]")
    return sorted(set(counts))


def check_writable(path: Path) -> None:
    """Find out before any work whether `path` can be written.

    Raises:
        TvmsepError: it cannot; says why.
    """
    from tvmsep.bundle.archive import check_replaceable

    check_replaceable(path)
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise TvmsepError(
            f"cannot write {path}: {error.strerror or error}; choose another output with -o"
        ) from error
    if path.is_dir():
        raise TvmsepError(f"cannot write {path}: it is a folder; give a file name with -o")
    if path.is_file() and path.suffix != ".tvmsep" and path.read_bytes()[:2] not in (b"PK", b""):
        raise TvmsepError(
            f"cannot write {path}: it is there already and is no bundle; give another name with -o"
        )
    scratch = tempfile.gettempdir()
    free = shutil.disk_usage(scratch).free
    if free < _SCRATCH_BYTES:
        raise TvmsepError(
            f"{scratch} has {free / 1e6:.0f} MB left and compiling needs "
            f"{_SCRATCH_BYTES / 1e6:.0f} MB: make room, or set TMPDIR to another folder"
        )


def must_fit(target: Target) -> None:
    """See that a target's code can be measured on this host.

    Raises:
        TargetError: it cannot.
    """
    from tvmsep.contracts import TargetError
    from tvmsep.targets import misfit

    why = misfit(target)
    if why is not None:
        raise TargetError(
            f"target {target.name} cannot be measured on this host: {why}; "
            "give a board with --rpc HOST:PORT --key KEY, or --target local"
        )
