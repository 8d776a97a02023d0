"""A bundle on the user's own data: how far it is from its model, and where the two part.

The report is against the model in its own framework, or in float64 where that is not installed.
Errors are relative to the largest value of the output in question, sample by sample.

Where they part: the network is compiled once more from the bundle's weights and log so that every
layer is an output, run on the sample with the largest error, and compared with float64 layer by
layer. So other weights, another import or another kernel show at the layer that has them, instead
of at the end of the network.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmsep.check import Mismatch, relative_errors
from tvmsep.contracts import InputError, ModelError
from tvmsep.contracts.workload import tolerance as accepted

if TYPE_CHECKING:
    from tvmsep.api import Prepared
    from tvmsep.bundle import Manifest, TensorInfo
    from tvmsep.logs import Best

_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
Array = np.ndarray[Any, Any]


@dataclass
class OutputReport:
    """One output over all samples. Errors are relative to the output's largest value."""

    name: str
    worst: float
    worst_sample: str
    mean: float
    """Mean of the samples' largest errors."""
    agreed: int
    """Pictures on which both name the same class."""
    scored: int
    """Pictures with a class; 0 where the output is no list of scores."""


@dataclass
class LayerReport:
    """One layer, on the sample with the largest error."""

    name: str
    error: float


@dataclass
class Accuracy:
    """What `compare_data` found."""

    samples: int
    reference: str
    """What the bundle was compared with."""
    outputs: list[OutputReport]
    layers: int
    """How many layers were compared; 0 where they could not be."""
    parts_at: LayerReport | None
    """The first layer whose error is above the tolerance."""
    furthest: LayerReport | None
    """The layer with the largest error."""
    tolerance: float
    shapes: dict[str, int]
    """How many samples were of which of the bundle's input shapes."""
    several: bool
    """Whether the bundle has several."""

    def layer_line(self) -> str:
        """For people."""
        if self.parts_at is not None:
            return f"they part at layer {self.parts_at.name}: error {self.parts_at.error:.1e}"
        if self.furthest is None:
            return "layers were not compared: an operator has no float64 form"
        return (
            f"they part at none of {self.layers} layers (limit {self.tolerance:.0e}); furthest is "
            f"{self.furthest.name}, {self.furthest.error:.1e}"
        )

    def check(self) -> None:
        """Raise if an output is further off than the tolerance.

        Raises:
            Mismatch: says which, on which sample, and where they part.
        """
        for o in self.outputs:
            if not o.worst <= self.tolerance:
                raise Mismatch(
                    f"output {o.name} differs by {o.worst:.1e} of its largest value on "
                    f"{o.worst_sample} (allowed: {self.tolerance:.0e}); {self.layer_line()}"
                )


def compare_data(
    bundle: str | os.PathLike[str],
    model: Any,
    data: str | os.PathLike[str],
    *,
    tolerance: float | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    **how: Any,
) -> Accuracy:
    """Run a bundle and its model on every sample of a folder.

    Args:
        bundle: a `.tvmsep` file.
        model: as for `tvmsep.verify`.
        data: a folder of `.npy` (networks of one input), `.npz` (an array for each input, named
            like it or `input_NAME`) and pictures, which the bundle's preprocessing turns into
            inputs. The first axis of an array may be a multiple of the input's: it is cut into
            samples. Of a bundle's several shapes each file gets the largest batch that it fits.
        tolerance: relative error above which the two differ; the limit of its dtype by default.
        shapes: of the inputs by name: all samples are of these.
        **how: as for `tvmsep.verify`.

    Raises:
        InputError: no data, or it does not fit the network.
        ModelError: the model's own outputs are not finite.
    """
    from tvmsep.api import prepare_for
    from tvmsep.bundle import Bundle, Package

    with Package(bundle) as package:
        manifest = package.manifest
    tolerance = accepted(manifest.precision, manifest.target) if tolerance is None else tolerance
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance is {tolerance}: give a share between 0 and 1, such as 1e-5")
    sets = range(len(manifest.specialisations)) if shapes is None else [manifest.find(shapes)]
    prepared: dict[int, Prepared] = {}
    references: dict[int, tuple[str, Any]] = {}

    def model_of(which: int) -> tuple[str, Any]:
        if which not in prepared:
            prepared[which] = prepare_for(bundle, model, which=which, shapes=shapes, **how)
            references[which] = _reference(prepared[which])
        return references[which]

    reference, _ = model_of(sets[0])
    names = [t.name for t in manifest.outputs]
    errors: dict[str, list[float]] = {n: [] for n in names}
    agreed, scored = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    labels: list[str] = []
    counts: Counter[int] = Counter()
    worst: tuple[float, list[Array], int] = (-1.0, [], 0)
    with Bundle.load(bundle, manifest.variants[0].threads) as net:
        for label, which, inputs in samples(Path(data), manifest, sets):
            result = net(*inputs)
            got = list(result) if isinstance(result, tuple) else [result]
            want = model_of(which)[1](inputs)
            counts[which] += 1
            labels.append(label)
            for name, g, w in zip(names, got, want, strict=True):
                if not np.isfinite(w).all():
                    raise ModelError(f"output {name} of the model is not finite on {label}")
                errors[name].append(relative_errors([g], [w]))
                same = _classes(g, w)
                agreed[name] += int(same.sum())
                scored[name] += same.size
            if max(e[-1] for e in errors.values()) > worst[0]:
                worst = (max(e[-1] for e in errors.values()), inputs, which)
    layers = layer_errors(bundle, prepared[worst[2]], worst[1], worst[2])
    parted = [x for x in layers if not x.error <= tolerance]
    return Accuracy(
        samples=len(labels),
        reference=reference,
        outputs=[
            OutputReport(
                n, max(errors[n]), labels[int(np.argmax(errors[n]))],
                float(np.mean(errors[n])), agreed[n], scored[n],
            )
            for n in names
        ],
        layers=len(layers),
        parts_at=parted[0] if parted else None,
        furthest=max(layers, key=lambda x: x.error, default=None),
        tolerance=tolerance,
        shapes={manifest.specialisations[n].title: counts[n] for n in sorted(counts)},
        several=bool(manifest.further),
    )  # fmt: skip


def _reference(prepared: Prepared) -> tuple[str, Any]:
    """What to compare with, in words and as a function."""
    from tvmsep.graph import evaluate

    imported, graph = prepared.imported, prepared.graph

    def exact(inputs: list[Array]) -> list[Array]:
        return evaluate(graph, dict(zip(graph.inputs, inputs, strict=True)))

    if imported.reference is not None:
        framework = imported.reference
        try:
            framework([np.zeros(t.shape, t.dtype) for t in imported.inputs])
        except ModelError as problem:
            if not isinstance(problem.__cause__, ImportError):
                raise
        else:
            return "the model in its own framework", lambda inputs: framework(inputs)
    return "the model in float64", exact


def _classes(got: Array, want: Array) -> Array:
    """For each picture whether both name the same class; empty where there are no scores."""
    if want.ndim < 2 or want.shape[1] < 2 or want.size != want.shape[0] * want.shape[1]:
        return np.zeros(0, bool)
    flat = (len(want), -1)
    return np.asarray(got.reshape(flat).argmax(1) == want.reshape(flat).argmax(1))


def samples(
    folder: Path, manifest: Manifest, sets: Sequence[int] = (0,)
) -> Iterator[tuple[str, int, list[Array]]]:
    """Every sample in a folder, files in the order of their names.

    Args:
        folder: where they are.
        manifest: of the bundle.
        sets: which of its specialisations they may be for.

    Yields:
        Label, which specialisation the sample is for, inputs.

    Raises:
        InputError: no such folder, nothing in it, or a file that does not fit.
    """
    if not folder.is_dir():
        raise InputError(f"--data {folder} is no folder: give one of .npy, .npz or picture files")
    suffixes = (".npy", ".npz", *_PICTURES)
    files = [f for f in sorted(folder.iterdir()) if f.suffix.lower() in suffixes]
    if not files:
        raise InputError(f"{folder} holds no {', '.join(suffixes)} file")
    for file in files:
        if file.suffix.lower() in _PICTURES:
            yield (file.name, *_picture(file, manifest, sets))
            continue
        which, count, arrays = _choose(_load(file, manifest), file, manifest, sets)
        wanted = manifest.specialisations[which].inputs
        for n in range(count):
            label = file.name if count == 1 else f"{file.name}[{n}]"
            yield label, which, [_part(a, n, t) for a, t in zip(arrays, wanted, strict=True)]


def _picture(file: Path, manifest: Manifest, sets: Sequence[int]) -> tuple[int, list[Array]]:
    """A picture for the first of the shapes that it can be made into."""
    from tvmsep.bundle import load_picture

    faults = []
    for which in sets:
        try:
            return which, [load_picture(file, manifest, which)]
        except InputError as error:
            faults.append(error)
    raise faults[0]


def _load(file: Path, manifest: Manifest) -> list[Array]:
    from tvmsep.bundle.arrays import names_in_npz, read_any, read_npy

    if file.suffix.lower() == ".npy":
        if len(manifest.inputs) != 1:
            names = ", ".join(t.name for t in manifest.inputs)
            raise InputError(f"{file} is one array, the network takes {names}: give .npz files")
        return [read_npy(file)]
    there = names_in_npz(file)
    keys = []
    for tensor in manifest.inputs:
        key = next((k for k in (f"input_{tensor.name}", tensor.name) if k in there), None)
        if key is None:
            raise InputError(f"{file} has no array {tensor.name}: it holds {', '.join(there[:8])}")
        keys.append(key)
    return read_any(file, keys)


def _choose(
    arrays: list[Array], file: Path, manifest: Manifest, sets: Sequence[int]
) -> tuple[int, int, list[Array]]:
    """The shapes of the largest batch that arrays fit, how many samples they are then, and they."""
    by_batch = sorted(sets, key=lambda n: -_batch(manifest.specialisations[n].inputs[0]))
    for which in by_batch:
        wanted = manifest.specialisations[which].inputs
        counts = {_samples_in(a, t) for a, t in zip(arrays, wanted, strict=True)}
        if len(counts) == 1 and (count := counts.pop()):
            return which, count, arrays
    got = ", ".join(f"{a.dtype} {a.shape}" for a in arrays)
    needed = "; or ".join(f"input {manifest.specialisations[n].title}" for n in sets)
    raise InputError(f"{file} is {got}; {needed} is needed")


def _batch(wanted: TensorInfo) -> int:
    return wanted.shape[0] if wanted.shape else 1


def _samples_in(array: Array, wanted: TensorInfo) -> int:
    """How many samples of an input's shape and dtype an array holds; 0 if it is no such array."""
    if (
        array.ndim != len(wanted.shape)
        or array.shape[1:] != wanted.shape[1:]
        or str(array.dtype) != wanted.dtype
    ):
        return 0
    if not array.ndim:
        return 1
    return 0 if len(array) % _batch(wanted) else len(array) // _batch(wanted)


def _part(array: Array, n: int, wanted: TensorInfo) -> Array:
    """Sample `n` of an array."""
    step = _batch(wanted)
    return np.ascontiguousarray(array[n * step : (n + 1) * step]) if array.ndim else array


def layer_errors(
    bundle: str | os.PathLike[str], prepared: Prepared, inputs: list[Array], which: int = 0
) -> list[LayerReport]:
    """The error of every layer against float64, in the order in which they run.

    Each layer is computed from what the bundle's own layers before it made, by the kernels that the
    bundle has: what one of them does on the way, such as scaling the input of a pointwise
    convolution, is no layer of its own. Empty where an operator has no float64 form.
    """
    from tvmsep.api import choose_configs
    from tvmsep.bundle import Package
    from tvmsep.compiler import compile_library, emit, lower
    from tvmsep.graph import evaluate, from_relax, normalise
    from tvmsep.graph.transposes import settle_transposes
    from tvmsep.tuner.choice import choose_splits

    threads = next(iter(prepared.plans))
    graph = normalise(from_relax(prepared.imported.module))
    kernels = {s.output for s in prepared.replan(graph, threads).all_steps if s.workload}
    layers = [n for n in graph.nodes if n in kernels]
    exact = from_relax(prepared.imported.module)
    settle_transposes(exact)  # a layer that was moved has its moved shape in both
    layers = [n for n in layers if n in exact.nodes]
    exact.outputs = layers
    try:
        want = evaluate(exact, dict(zip(exact.inputs, inputs, strict=True)))
    except ModelError:
        return []
    plan = prepared.replan(graph, threads, layers)
    with Package(bundle) as package:
        weights = package.weights(which)
    for name, own in plan.all_params.items():
        if name not in weights or weights[name].shape != own.shape:
            return [LayerReport(name.rpartition(".")[0], float("inf"))]
    winners = _winners(bundle)
    plan = choose_splits(plan, prepared.target, winners)
    configs, _, _ = choose_configs(prepared, plan, winners)
    library = compile_library(lower(emit(plan, prepared.target, configs), prepared.target),
                              prepared.target)  # fmt: skip
    got = _run(library, inputs, [weights[n] for n in plan.all_params], threads)
    return [
        LayerReport(name, relative_errors([g.reshape(w.shape)], [w]))
        for name, g, w in zip(layers, got, want, strict=True)
    ]


def _winners(bundle: str | os.PathLike[str]) -> dict[str, Best]:
    from tvmsep.logs import chosen_by, read_log

    return dict(chosen_by(read_log(Path(bundle))))


def _run(library: bytes, inputs: list[Array], weights: list[Array], threads: int) -> list[Array]:
    """A library's outputs; inputs and weights are read where they lie."""
    from tvmsep.bundle.runtime import Networks, Program

    networks = Networks([Program(library, inputs, weights)], threads)
    try:
        return list(networks.do(lambda loaded: loaded[0](inputs)))
    finally:
        networks.close()
