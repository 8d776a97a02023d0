"""Write a bundle."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tvmsep import __version__
from tvmsep.bundle.archive import write_archive
from tvmsep.bundle.manifest import LOG, MANIFEST, WEIGHTS, Manifest, TensorInfo, Variant
from tvmsep.bundle.runtime import runtime_version
from tvmsep.bundle.weights import encode_weights
from tvmsep.contracts import BundleError, Target
from tvmsep.contracts.preprocess import Preprocess


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

    Raises:
        BundleError: the file cannot be written (nothing is left behind), or the parts don't fit
            together.
    """
    path = Path(path)
    counts = sorted(libraries)
    if sorted(relax) != counts or sorted(peak_ram_bytes) != counts:
        raise BundleError(
            f"libraries, Relax texts and peak RAM are for the thread counts {counts}, "
            f"{sorted(relax)} and {sorted(peak_ram_bytes)}: they must be the same"
        )
    contents: dict[str, bytes] = {
        WEIGHTS: encode_weights(weights),
        LOG: "".join(line.rstrip("\n") + "\n" for line in log_lines).encode(),
    }
    variants = []
    for threads in counts:
        library = libraries[threads]
        variants.append(
            Variant(
                threads=threads,
                library=f"lib/threads{threads}.so",
                relax=f"relax/threads{threads}.txt",
                peak_ram_bytes=peak_ram_bytes[threads],
                estimate_s=(estimate_s or {}).get(threads),
            )
        )
        contents[variants[-1].relax] = relax[threads].encode()
        contents[variants[-1].library] = (
            library if isinstance(library, bytes) else library.read_bytes()
        )
    manifest = Manifest(
        name=name,
        tvmsep=__version__,
        tvm=runtime_version(),
        target=target,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        variants=tuple(variants),
        weights=tuple(weights),
        members={n: hashlib.sha256(contents[n]).hexdigest() for n in sorted(contents)},
        source=dict(source or {}),
        licence=licence,
        preprocess=preprocess,
        labels=None if labels is None else tuple(labels),
        log_lines=len(log_lines),
        log_total=max(log_total, len(log_lines)),
        flops=flops,
        peak_gflops_per_core=peak_gflops_per_core,
    )
    try:
        manifest.check()
    except ValueError as error:
        raise BundleError(f"cannot write {path}: {error}") from error
    write_archive(path, {**contents, MANIFEST: manifest.to_json()})
    return manifest
