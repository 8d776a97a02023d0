"""Whether a bundle computes what its model computes."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import InputError, ModelError, Target, TvmsepError
from tvmsep.contracts.words import counted
from tvmsep.contracts.workload import HALF_MOST, TOLERANCE
from tvmsep.contracts.workload import tolerance as accepted

if TYPE_CHECKING:
    from tvmsep.bundle import Manifest
    from tvmsep.frontends import Imported
    from tvmsep.graph import Graph


ROUNDINGS = 8
"""How many times the error of rounded weights alone is accepted of rounded activations and sums."""


class Mismatch(TvmsepError):
    """Outputs differ by more than rounding explains."""


@dataclass
class Check:
    """How far a bundle's outputs are from the references, relative to the largest output."""

    framework: float | None
    """Against the model's own framework (onnxruntime or torch); None when it isn't installed."""
    float64: float | None
    """Against a float64 run; None where an operator has no float64 form."""
    framework_float64: float | None
    """The framework's own error against float64: what fp32 can be expected to reach."""
    threads: tuple[int, ...]
    """Thread counts whose variants were run; the errors are the worst of them."""
    varies: float
    """How much the output changes with the input, relative to the largest output."""
    dtype: str = "float32"
    """Of weights and of activations between kernels."""
    limit: float = TOLERANCE["float32"]
    """Largest error accepted."""
    weights_alone: float | None = None
    """In half precision: the error that rounding the weights makes, all else in float64."""

    def lines(self) -> list[str]:
        """For people."""
        text = []
        if self.framework is not None:
            text.append(f"largest difference from the framework: {self.framework:.1e}")
        if self.framework is None and self.float64 is None:
            text.append(
                "nothing to compare with: compare with recorded outputs "
                "(tvmsep verify BUNDLE --expected FILE.npz)"
            )
        if self.float64 is not None:
            own = (
                ""
                if self.framework_float64 is None
                else f" (its own: {self.framework_float64:.1e})"
            )
            text.append(f"error against float64: {self.float64:.1e}{own}")
        if self.dtype != "float32":
            alone = ""
            if self.weights_alone is not None:
                alone = f"; rounding the weights alone makes {self.weights_alone:.1e}"
            text.append(f"computed on {self.dtype}: errors up to {self.limit:.2g} allowed{alone}")
        moves = f"the output moves by {self.varies:.2g} of its size between two inputs"
        if self.varies <= self.limit:
            moves += ": no more than rounding may, so this comparison proves little"
        elif self.varies < 1e-3:
            moves += ": it hardly depends on the input, so this comparison proves little"
        text.append(moves)
        return text


def cannot_run_here(target: Target, counts: Iterable[int]) -> str | None:
    """Why this host cannot run a target's code at these thread counts; None if it can."""
    from tvmsep.targets import host_cores, misfit

    why = misfit(target)
    if why is None and max(counts) > host_cores():
        here = counted("core", host_cores())
        why = f"it is for {counted('thread', max(counts))}, this host has {here}"
    if why is None and target.gpu is not None:
        from tvmsep.bundle.device import device_misfit

        why = device_misfit(target.gpu)
    return why


def relative_errors(got: Sequence[Any], want: Sequence[Any]) -> float:
    """The worst output's largest error over its largest value; infinite if `got` is not finite."""
    import numpy as np

    worst = 0.0
    for g, w in zip(got, want, strict=True):
        if g.shape != w.shape or not np.isfinite(g).all():
            return float("inf")
        scale = float(np.abs(w).max()) or 1.0
        worst = max(worst, float(np.abs(g.astype(np.float64) - w).max()) / scale)
    return worst


def _finite(outputs: Sequence[Any], who: str) -> None:
    import numpy as np

    for index, array in enumerate(outputs):
        if not np.isfinite(array).all():
            raise ModelError(
                f"output {index} of the model holds NaN or infinity on random inputs ({who}): "
                "nothing can be compared; check the model's weights"
            )


def _framework(imported: Imported, inputs: Sequence[Any]) -> list[Any] | None:
    """The model in its own framework; None where that is not installed."""
    if imported.reference is None:
        return None
    try:
        return list(imported.reference(list(inputs)))
    except ModelError as problem:
        if isinstance(problem.__cause__, ImportError):
            return None
        raise


def worst(checks: Sequence[Check]) -> Check:
    """Of several sets of input shapes: the largest errors, the smallest change of the output."""

    def largest(values: Iterable[float | None]) -> float | None:
        return max((v for v in values if v is not None), default=None)

    return Check(
        framework=largest(c.framework for c in checks),
        float64=largest(c.float64 for c in checks),
        framework_float64=largest(c.framework_float64 for c in checks),
        threads=checks[0].threads,
        varies=min(c.varies for c in checks),
        dtype=checks[0].dtype,
        limit=max(c.limit for c in checks),
        weights_alone=largest(c.weights_alone for c in checks),
    )


def check_bundle(
    path: Path, imported: Imported, graph: Graph, seed: int = 0, which: int = 0
) -> Check:
    """Run every variant of a bundle and its model on the same random inputs and compare.

    Three comparisons: the import (float64 run of the graph) against the framework, within what
    float32 explains; the bundle against the framework and against float64, within what
    `tolerance` accepts of the bundle's dtype. Networks differ in how much they make of a rounding:
    in half precision as far as `ROUNDINGS` times what rounding the weights alone does.

    Args:
        path: the bundle.
        imported: its model.
        graph: the model as imported, not normalised.
        seed: of the inputs.
        which: of the bundle's sets of input shapes.

    Raises:
        ModelError: the model's own outputs are not finite.
        Mismatch: the outputs differ by more than rounding explains, or hold NaN or infinity.
    """
    from tvmsep.bundle import Bundle, Package

    with Package(path, verify=False) as package:
        counts = tuple(v.threads for v in package.manifest.variants)
        dtype = package.manifest.precision
        limit = accepted(dtype, package.manifest.target)
    runs: list[list[Any]] = []
    varies = 0.0
    inputs: list[Any] = []
    for count in counts:
        with Bundle.load(path, count, verify=False) as net:
            inputs, others = net.noise(seed, which), net.noise(seed + 1, which)
            got, other = _list(net(*inputs)), _list(net(*others))
        runs.append(got)
        varies = max(varies, relative_errors(other, got))
    theirs, exact, own = _references(imported, graph, inputs)
    alone = None
    if dtype != "float32" and exact is not None:
        alone = weights_alone(graph, inputs, exact, dtype)
        limit = max(limit, min(HALF_MOST, ROUNDINGS * alone))
    check = Check(
        framework=max(relative_errors(g, theirs) for g in runs) if theirs is not None else None,
        float64=max(relative_errors(g, exact) for g in runs) if exact is not None else None,
        framework_float64=own,
        threads=counts,
        varies=varies,
        dtype=dtype,
        limit=limit,
        weights_alone=alone,
    )
    _within(check.framework, "the compiled network differs from the model's own framework", limit)
    _within(check.float64, "the compiled network differs from a float64 run of the model", limit)
    return check


def check_import(imported: Imported, graph: Graph, seed: int = 0) -> float | None:
    """The error of the model's own framework against a float64 run of what was imported.

    All that can be checked where the compiled network cannot run. None where the framework is not
    installed, or an operator has no float64 form.

    Raises:
        ModelError: the model's own outputs are not finite.
        Mismatch: the two differ by more than fp32 explains.
    """
    from tvmsep.bundle.arrays import noise

    return _references(imported, graph, noise(imported.inputs, seed))[2]


def _references(
    imported: Imported, graph: Graph, inputs: Sequence[Any]
) -> tuple[list[Any] | None, list[Any] | None, float | None]:
    """The framework's outputs, the float64 run's, and how far they are apart; where there are."""
    from tvmsep.graph import evaluate

    theirs = _framework(imported, inputs)
    if theirs is not None:
        _finite(theirs, "in its own framework")
    exact: list[Any] | None
    try:
        exact = evaluate(graph, dict(zip(graph.inputs, inputs, strict=True)))
    except ModelError:
        exact = None
    if exact is not None:
        _finite(exact, "in float64")
    if theirs is None or exact is None:
        return theirs, exact, None
    own = relative_errors(theirs, exact)
    _within(own, "the model as imported differs from its own framework")
    return theirs, exact, own


def weights_alone(graph: Graph, inputs: Sequence[Any], exact: Sequence[Any], dtype: str) -> float:
    """What rounding the weights to a dtype does to the outputs, all else in float64."""
    from tvmsep.graph import evaluate

    rounded = {
        name: a.astype(dtype).astype(a.dtype) if a.ndim > 1 and a.dtype.kind == "f" else a
        for name, a in graph.constants.items()
    }
    less = dataclasses.replace(graph, constants=rounded)
    return relative_errors(evaluate(less, dict(zip(graph.inputs, inputs, strict=True))), exact)


def _within(error: float | None, what: str, limit: float = TOLERANCE["float32"]) -> None:
    if error is not None and not error <= limit:
        raise Mismatch(f"{what} by {error:.1e} of the largest output (allowed: {limit:.2g})")


@dataclass
class Recorded:
    """How far a bundle is from recorded outputs."""

    errors: dict[str, float]
    """By output: largest difference over the largest recorded value, the worst variant's."""
    threads: tuple[int, ...]
    """Thread counts whose variants were run."""
    shapes: str = ""
    """The inputs, where the bundle has the network for several shapes."""

    def lines(self) -> list[str]:
        """For people."""
        return [f"{n}: error against the recording {e:.1e}" for n, e in self.errors.items()]


def check_expected(
    path: str | os.PathLike[str],
    recording: str | os.PathLike[str],
    tolerance: float | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Recorded:
    """Run every variant of a bundle on recorded inputs and compare with recorded outputs.

    Args:
        path: the bundle.
        recording: a `.npz` file with `input_NAME` for each input and `output_0`, `output_1`, ...
            for the outputs in their order. Their shapes choose among the bundle's.
        tolerance: largest error, relative to an output's largest recorded value; by default
            what `tvmsep.contracts.workload.tolerance` says.
        shapes: of the inputs by name, for a recording that must be of these.

    Raises:
        InputError: the recording cannot be read or is of another network.
        Mismatch: an output differs by more.
    """
    from tvmsep.bundle import Bundle, Package

    with Package(path) as package:
        package.check_host()
        manifest = package.manifest
    if tolerance is None:
        tolerance = accepted(manifest.precision, manifest.target)
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance is {tolerance}: give a share between 0 and 1, such as 1e-5")
    sets = range(len(manifest.specialisations)) if shapes is None else [manifest.find(shapes)]
    which, arrays = _recorded(recording, manifest, sets)
    inputs = [f"input_{t.name}" for t in manifest.inputs]
    outputs = {f"output_{n}": t for n, t in enumerate(manifest.outputs)}
    for name in outputs:
        if not math.isfinite(float(abs(arrays[name]).sum())):
            raise InputError(f"{name} in {recording} holds NaN or infinity: record it again")
    errors = dict.fromkeys((t.name for t in manifest.outputs), 0.0)
    for variant in manifest.variants:
        with Bundle.load(path, variant.threads, verify=False) as net:
            results = _list(net(*(arrays[n] for n in inputs)))
        for (key, tensor), got in zip(outputs.items(), results, strict=True):
            error = relative_errors([got], [arrays[key]])
            errors[tensor.name] = max(errors[tensor.name], error)
    for name, error in errors.items():
        if not error <= tolerance:
            raise Mismatch(
                f"output {name} of {path} differs from {recording} by {error:.1e} of its largest "
                f"value (allowed: {tolerance:.0e}): they are of different networks or weights"
            )
    counts = tuple(v.threads for v in manifest.variants)
    return Recorded(errors, counts, manifest.shape_note(which))


def _recorded(
    recording: str | os.PathLike[str], manifest: Manifest, sets: Sequence[int]
) -> tuple[int, dict[str, Any]]:
    """Which of some sets of the bundle's shapes the recording is of, and its arrays."""
    from tvmsep.bundle.arrays import names_in_npz, read_npz

    faults = []
    for which in sets:
        one = manifest.specialisations[which]
        wanted = {f"input_{t.name}": t for t in one.inputs}
        wanted |= {f"output_{n}": t for n, t in enumerate(one.outputs)}
        try:
            odd = [
                n for n in names_in_npz(recording)
                if n.startswith(("input_", "output_")) and n not in wanted
            ]  # fmt: skip
            if odd:
                raise InputError(
                    f"{recording} holds {', '.join(odd)}, which {manifest.name} has not: it is "
                    "of another network"
                )
            return which, read_npz(recording, wanted)
        except InputError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    has = "; ".join(one.title for one in manifest.specialisations)
    raise InputError(
        f"{recording} is a recording of none of the shapes that {manifest.name} was built for "
        f"({has}): {faults[0]}"
    )


def _list(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple) else [result]
