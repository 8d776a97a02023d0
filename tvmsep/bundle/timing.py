"""Time loaded bundles in turn, so that a slow spell of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import msgspec

from tvmsep.bundle.load import Bundle
from tvmsep.contracts import InputError

_ROUNDS = 5
_SETTLE_S = 0.01
"""Idle threads look for work for half a millisecond: the next bundle waits for that."""


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    """Times of one bundle at one thread count, in seconds."""

    name: str
    inputs: str
    """Their names, dtypes and shapes."""
    threads: int
    tuned_for: int
    """Threads that the variant which ran was tuned for."""
    runs: int
    median_s: float
    q1_s: float
    q3_s: float
    min_s: float
    spread: float
    """Distance of the quartiles as a share of the median."""
    gflops: float | None
    """GFLOP/s at the median; None where the manifest doesn't count the operations."""
    peak_share: float | None
    """`gflops` as a share of the threads' FMA peak; None where no peak was measured."""
    times_s: tuple[float, ...]


def bench(
    bundles: Sequence[Bundle],
    runs: int = 100,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> list[BenchResult]:
    """Time each bundle `runs` times, a few at a time in turn, on the same seeded inputs.

    A bundle of several sets of input shapes is timed for each, and has a result for each.

    Args:
        bundles: what to time.
        runs: of each.
        shapes: of the inputs by name, for these alone.

    Raises:
        InputError: fewer than 4 runs, of which quartiles would say nothing; or a bundle was not
            built for the shapes.
    """
    if runs < 4:
        raise InputError(f"runs is {runs}: quartiles need at least 4")
    entrants = [
        (b, n)
        for b in bundles
        for n in (
            range(len(b.manifest.specialisations)) if shapes is None else [b.manifest.find(shapes)]
        )
    ]
    times: list[list[float]] = [[] for _ in entrants]
    rounds = min(_ROUNDS, runs)
    for i in range(rounds):
        share = runs // rounds + (i < runs % rounds)
        for (bundle, which), mine in zip(entrants, times, strict=True):
            if len(entrants) > 1 and any(b.threads > 1 for b in bundles):
                time.sleep(_SETTLE_S)
            mine += bundle.time(share, warmup=3, inputs=bundle.noise(shapes=which))
    return [_summary(b, n, t) for (b, n), t in zip(entrants, times, strict=True)]


def _summary(bundle: Bundle, shapes: int, times: list[float]) -> BenchResult:
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    manifest, one = bundle.manifest, bundle.manifest.specialisations[shapes]
    gflops = one.flops / median / 1e9 if one.flops else None
    peak = manifest.peak_gflops_per_core
    return BenchResult(
        name=manifest.name,
        inputs=one.title,
        threads=bundle.threads,
        tuned_for=bundle.variant.threads,
        runs=len(times),
        median_s=median,
        q1_s=q1,
        q3_s=q3,
        min_s=min(times),
        spread=(q3 - q1) / median,
        gflops=gflops,
        peak_share=gflops / (peak * bundle.threads) if gflops and peak else None,
        times_s=tuple(times),
    )
