"""Write a bundle."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from tvmsep import __version__
from tvmsep.bundle.archive import write_archive
from tvmsep.bundle.manifest import (
    FORMAT,
    FORMAT_SHAPES,
    LOG,
    MANIFEST,
    WEIGHTS,
    Manifest,
    Specialisation,
    TensorInfo,
    Variant,
)
from tvmsep.bundle.runtime import runtime_version
from tvmsep.bundle.weights import encode_weights
from tvmsep.contracts import BundleError, Target
from tvmsep.contracts.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """The network compiled for one set of input shapes; see `write_bundle`."""

    inputs: Sequence[TensorInfo]
    outputs: Sequence[TensorInfo]
    libraries: Mapping[int, bytes | Path]
    weights: Mapping[str, NDArray[Any]]
    relax: Mapping[int, str]
    peak_ram_bytes: Mapping[int, int]
    estimate_s: Mapping[int, float]
    flops: int


def write_bundle(
    path: str | os.PathLike[str],
    *,
    name: str,
    target: Target,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    libraries: Mapping[int, bytes | Path],
    weights: Mapping[str, NDArray[Any]],
    relax: Mapping[int, str],
    peak_ram_bytes: Mapping[int, int],
    estimate_s: Mapping[int, float] | None = None,
    log_lines: Sequence[str] = (),
    log_total: int = 0,
    source: Mapping[str, str] | None = None,
    licence: str = "unknown",
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
    flops: int = 0,
    peak_gflops_per_core: float | None = None,
    further: Sequence[Compiled] = (),
    layout: str = "",
    dtype: str = "float32",
) -> Manifest:
    """Write a bundle; equal arguments make equal files.

    Args:
        path: where; an existing file is replaced in one step.
        name: the model's short name.
        target: what the libraries were compiled for.
        inputs: the model's own inputs, in the order of `main`'s first parameters.
        outputs: the model's own outputs, in order.
        libraries: per thread count, a linked Relax VM executable whose function `main` takes the
            inputs, then the weights, and returns a tensor or a tuple of them.
        weights: C-contiguous arrays by name, in call order.
        relax: per thread count, the Relax text that was compiled.
        peak_ram_bytes: per thread count, weights plus peak of the activations.
        estimate_s: per thread count, the sum of the tasks' measured times.
        log_lines: lines of the tuning log that decided this build.
        log_total: how many lines the log had; at least as many.
        source: kind, path or spec, SHA-256 of the model.
        licence: the model's licence.
        preprocess: how a picture becomes the input, where known.
        labels: class names, where known.
        flops: floating-point operations of one run, two a multiply-accumulate.
        peak_gflops_per_core: FMA peak of one core, as measured on this machine.
        further: the network for other input shapes, for the same thread counts.
        layout: of activations on a GPU; empty for CPUs.
        dtype: of weights and of activations between kernels: float32 or float16.

    Raises:
        BundleError: the file cannot be written (nothing is left behind), or the parts don't fit
            together.
    """
    path = Path(path)
    first = Compiled(
        inputs=inputs, outputs=outputs, libraries=libraries, weights=weights, relax=relax,
        peak_ram_bytes=peak_ram_bytes, estimate_s=estimate_s or {}, flops=flops,
    )  # fmt: skip
    contents: dict[str, bytes] = {
        LOG: "".join(line.rstrip("\n") + "\n" for line in log_lines).encode(),
    }
    pool: dict[str, NDArray[Any]] = {}
    parts = [_specialise(part, n, contents, pool) for n, part in enumerate((first, *further))]
    contents[WEIGHTS] = encode_weights(pool)
    manifest = Manifest(
        format=FORMAT_SHAPES if further else FORMAT,
        name=name,
        tvmsep=__version__,
        tvm=runtime_version(),
        target=target,
        inputs=parts[0].inputs,
        outputs=parts[0].outputs,
        variants=parts[0].variants,
        weights=parts[0].weights,
        members={n: hashlib.sha256(contents[n]).hexdigest() for n in sorted(contents)},
        source=dict(source or {}),
        licence=licence,
        preprocess=preprocess,
        labels=None if labels is None else tuple(labels),
        log_lines=len(log_lines),
        log_total=max(log_total, len(log_lines)),
        flops=flops,
        peak_gflops_per_core=peak_gflops_per_core,
        layout=layout or msgspec.UNSET,
        dtype="float16" if dtype == "float16" else msgspec.UNSET,
        further=tuple(parts[1:]) or msgspec.UNSET,
    )
    try:
        manifest.check()
    except ValueError as error:
        raise BundleError(f"cannot write {path}: {error}") from error
    write_archive(path, {**contents, MANIFEST: manifest.to_json()})
    return manifest


def _specialise(
    part: Compiled, number: int, contents: dict[str, bytes], pool: dict[str, NDArray[Any]]
) -> Specialisation:
    """Add a part's libraries and texts to the members and its weights to the pool."""
    counts = sorted(part.libraries)
    if sorted(part.relax) != counts or sorted(part.peak_ram_bytes) != counts:
        raise BundleError(
            f"libraries, Relax texts and peak RAM are for the thread counts {counts}, "
            f"{sorted(part.relax)} and {sorted(part.peak_ram_bytes)}: they must be the same"
        )
    prefix = f"shape{number + 1}-" if number else ""
    variants = []
    for threads in counts:
        library = part.libraries[threads]
        variants.append(
            Variant(
                threads=threads,
                library=f"lib/{prefix}threads{threads}.so",
                relax=f"relax/{prefix}threads{threads}.txt",
                peak_ram_bytes=part.peak_ram_bytes[threads],
                estimate_s=part.estimate_s.get(threads),
            )
        )
        contents[variants[-1].relax] = part.relax[threads].encode()
        contents[variants[-1].library] = (
            library if isinstance(library, bytes) else library.read_bytes()
        )
    return Specialisation(
        inputs=tuple(part.inputs),
        outputs=tuple(part.outputs),
        variants=tuple(variants),
        weights=tuple(_pooled(name, array, pool) for name, array in part.weights.items()),
        flops=part.flops,
    )


def _pooled(name: str, array: NDArray[Any], pool: dict[str, NDArray[Any]]) -> str:
    """The name under which the pool holds an array: once, whichever shapes it is for."""
    key, number = name, 1
    while not _same(pool.setdefault(key, array), array):
        number += 1
        key = f"{name}@{number}"
    return key


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a is b or (
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    )  # fmt: skip
