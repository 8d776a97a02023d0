"""A network's layers and the whole of it, timed in turn on one board, and what lies between.

Three libraries take turns: the network as it ships, the network with a clock reading between all
kernels, and the network with a reading at each end. The second gives the layers; the third says how
much of the difference between their sum and the whole is the readings' doing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tvmsep.bundle import Package
from tvmsep.bundle.manifest import Variant
from tvmsep.codegen.reference import Array
from tvmsep.compiler import MARKED, PROBE_RUNS, PROBES, Part, mark_id, parts, read_relax, stamp
from tvmsep.contracts import BoardError, BundleError, InputError
from tvmsep.contracts.trial import robust_mean
from tvmsep.contracts.words import counted
from tvmsep.measure import Failed, Farm, NetworkTimes
from tvmsep.measure.bandwidth import Bandwidth
from tvmsep.measure.network import RUNS, WARM_RUNS, NetworkJob, random_inputs
from tvmsep.profile.roofline import LayerRoof, label, roofline

if TYPE_CHECKING:
    from tvm import IRModule

ROUNDS = 16
"""Turns of each library; each is `RUNS` runs."""
QUIET = ROUNDS // 2
"""Rounds that count: those that took least for all three libraries together."""


class StepTime(msgspec.Struct, frozen=True, kw_only=True):
    """One layer at its place in the network, in seconds."""

    name: str
    """Of what it computes, as the model has it."""
    layer: str
    """Which row of the table it is part of."""
    seconds: float
    median_run_s: float
    """In the one run whose total is the median of all."""


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Why the layers do not sum to the whole: `whole = layers + dispatch - readings + cache`."""

    dispatch_s: float
    """The call itself: before the first kernel begins and after the last one has ended."""
    readings_s: float
    """What the clock readings cost; only the profile has them."""
    cache_s: float
    """The rest: the readings change what a kernel finds in the caches and how long the other
    threads wait; and noise."""
    noise_s: float
    """Two standard errors of the difference, from how it varies over the rounds: less than this in
    any of the three says nothing."""
    fork_join_s: float
    """Inside the layers: starting and joining the threads, of all kernels that do."""
    kernel_dispatch_s: float
    """Inside the layers: from one kernel to the next, all together."""
    parallel: int
    """Kernels that start threads."""
    kernels: int
    events: bool = False
    """The layers were timed by CUDA events, whose cost cannot be told: all is in `cache_s`."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds, rates a second; of one run of the network."""

    model: str
    target: str
    shapes: str = ""
    """The inputs, where the bundle has the network for several shapes."""
    board: str
    cpu: str
    threads: int
    peak_flops: float
    """FMA peak of all threads together, measured."""
    bandwidths: dict[str, float]
    """Bytes a second of each level of the memory, measured, the fastest first."""
    holds_bytes: dict[str, float | None]
    """What fits into each level; None for the memory."""
    layers: tuple[LayerRoof, ...]
    """The heaviest first."""
    steps: tuple[StepTime, ...]
    """In the network's order."""
    layers_s: float
    bound_s: float
    network_s: float
    gap: Gap

    @property
    def apart(self) -> float:
        """How much the whole network takes more than its layers' sum, as a share of the sum."""
        return self.network_s / self.layers_s - 1


def profile_module(
    farm: Farm,
    module: IRModule,
    arguments: Sequence[Array],
    *,
    name: str,
    threads: int,
    outputs: int,
    whole: Path | None = None,
    shapes: str = "",
) -> Profile:
    """Time a network's layers and the whole of it.

    Args:
        farm: builders and a board.
        module: what `tvmsep.compiler.emit` made, or a bundle's Relax text parsed.
        arguments: inputs and weights, as its `main` takes them.
        name: the model's.
        threads: how many it runs on.
        outputs: how many it has.
        whole: the compiled network as it ships; None to compile it here.
        shapes: which of a bundle's, for people.

    Raises:
        BoardError: it cannot be compiled for the board, or run there.
    """
    if farm.target.gpu is not None:
        return _profile_device(
            farm, module, arguments, name=name, outputs=outputs, whole=whole, shapes=shapes
        )
    runs = WARM_RUNS + RUNS
    network = parts(module)
    full = stamp(module, farm.target, threads, runs)
    ends = stamp(module, farm.target, threads, runs, between=False)
    # Measured in float32; half precision has twice the lanes.
    widest = max((farm.target.elements(p.workload.dtype) for p in network if p.workload), default=1)
    peak_flops = farm.peak_flops_per_core() * threads * max(1.0, widest / farm.target.lanes)
    # What lies in the caches between two runs of a layer: all weights, and what the layers share.
    images = max((p.bytes - p.weight_bytes for p in network), default=0)
    bandwidths = farm.bandwidths(threads, sum(a.nbytes for a in arguments) + images)
    modules = [full.module, ends.module, *([] if whole else [module])]
    libraries = farm.build_networks(modules)
    times: NetworkTimes | Failed
    if isinstance(libraries, Failed):
        times = libraries
    else:
        stamps = [full.shape, ends.shape]
        job = NetworkJob(
            libraries[:2], whole or libraries[2], list(arguments), stamps, outputs, threads
        )
        times = farm.time_networks(job, ROUNDS)
    times = _timed(times, name, farm.target.name)
    count = len(network)
    steps, span, whole_s = _quiet(times)
    layers, probes = steps[:, :count], steps[:, count:]
    parts_s = [robust_mean(column) for column in layers.T.tolist()]
    rows = roofline(network, parts_s, peak_flops, bandwidths)
    totals = layers.sum(axis=1)
    run = layers[int(np.argsort(totals)[len(totals) // 2])]
    network_s = robust_mean(whole_s.tolist())
    seconds = np.median(probes.reshape(len(probes), len(PROBES), PROBE_RUNS)[:, :, 1:], axis=(0, 2))
    cost = dict(zip(PROBES, seconds.tolist(), strict=True))
    rounds = (whole_s - totals).reshape(QUIET, RUNS)
    noise_s = 2 * float(np.median(rounds, axis=1).std(ddof=1)) / math.sqrt(QUIET)
    parallel = sum(p.parallel for p in network) if threads > 1 else 0
    return _profile(
        farm, network, parts_s, run.tolist(), rows, bandwidths, name=name, shapes=shapes,
        board=times.board, threads=threads, peak_flops=peak_flops, network_s=network_s,
        gap=gap(
            sum(parts_s), robust_mean(span.tolist()), network_s, cost, count, parallel, noise_s
        ),
    )  # fmt: skip


def _profile_device(
    farm: Farm,
    module: IRModule,
    arguments: Sequence[Array],
    *,
    name: str,
    outputs: int,
    whole: Path | None,
    shapes: str,
) -> Profile:
    """As `profile_module`, by CUDA events: the marked network and the whole take turns.

    A launch that is no kernel of ours counts as `measure.network.columns` says.
    """
    network = parts(module)
    peak_flops, bandwidths = farm.peak_flops_per_core(), farm.bandwidths(1)
    libraries = farm.build_networks([module.with_attr(MARKED, 1), *([] if whole else [module])])
    times: NetworkTimes | Failed
    if isinstance(libraries, Failed):
        times = libraries
    else:
        marks = [mark_id(p.operator) if p.workload else -1 for p in network]
        job = NetworkJob(
            libraries[:1], whole or libraries[1], list(arguments), [], outputs, 1, [marks]
        )
        times = farm.time_networks(job, ROUNDS)
    times = _timed(times, name, farm.target.name)
    steps = times.steps[0].reshape(ROUNDS, RUNS, -1)
    whole_s = np.array(times.whole_s).reshape(ROUNDS, RUNS)
    sums = np.median(steps.sum(axis=2), axis=1) + np.median(whole_s, axis=1)
    kept = np.argsort(sums)[:QUIET]
    layers, quiet_s = steps[kept].reshape(QUIET * RUNS, -1), whole_s[kept].ravel()
    parts_s = [robust_mean(column) for column in layers.T.tolist()]
    totals = layers.sum(axis=1)
    apart = np.median((quiet_s - totals).reshape(QUIET, RUNS), axis=1)
    network_s = robust_mean(quiet_s.tolist())
    return _profile(
        farm, network, parts_s, layers[int(np.argsort(totals)[len(totals) // 2])].tolist(),
        roofline(network, parts_s, peak_flops, bandwidths), bandwidths, name=name, shapes=shapes,
        board=times.board, threads=1, peak_flops=peak_flops, network_s=network_s,
        gap=Gap(
            dispatch_s=0.0, readings_s=0.0, cache_s=network_s - sum(parts_s), fork_join_s=0.0,
            noise_s=2 * float(apart.std(ddof=1)) / math.sqrt(QUIET), kernel_dispatch_s=0.0,
            parallel=0, kernels=len(network), events=True,
        ),
    )  # fmt: skip


def _timed(times: NetworkTimes | Failed, name: str, target: str) -> NetworkTimes:
    if isinstance(times, Failed):
        raise BoardError(
            f"{name} was not timed on {target}: {times.failure}: {times.detail}; "
            "`tvmsep board doctor` examines the board"
        )
    return times


def _profile(
    farm: Farm, network: Sequence[Part], parts_s: list[float], run: list[float],
    rows: Sequence[LayerRoof], bandwidths: Sequence[Bandwidth], *, name: str, shapes: str,
    board: str, threads: int, peak_flops: float, network_s: float, gap: Gap,
) -> Profile:  # fmt: skip
    return Profile(
        model=name,
        target=farm.target.name,
        shapes=shapes,
        board=board,
        cpu=farm.board.cpu,
        threads=threads,
        peak_flops=peak_flops,
        bandwidths={b.level.name: b.bytes_per_s for b in bandwidths},
        holds_bytes={
            b.level.name: None if b.level.holds_bytes == float("inf") else b.level.holds_bytes
            for b in bandwidths
        },
        layers=tuple(sorted(rows, key=lambda r: -r.time_share)),
        steps=tuple(
            StepTime(name=p.name, layer=label(p), seconds=s, median_run_s=m)
            for p, s, m in zip(network, parts_s, run, strict=True)
        ),
        layers_s=sum(parts_s),
        bound_s=sum(r.bound_s * r.runs for r in rows),
        network_s=network_s,
        gap=gap,
    )


def _quiet(times: NetworkTimes) -> tuple[Array, Array, Array]:
    """Every run of the quieter rounds: seconds of each step, from end to end, and of the whole.

    A round's three turns follow each other, so what disturbs one disturbs all, and choosing rounds
    by their sum favours none of the three.
    """
    steps = times.steps[0].reshape(ROUNDS, RUNS, -1)
    span = times.steps[1].sum(axis=1).reshape(ROUNDS, RUNS)
    whole = np.array(times.whole_s).reshape(ROUNDS, RUNS)
    sums = np.median(steps.sum(axis=2), axis=1) + np.median(span, axis=1) + np.median(whole, axis=1)
    kept = np.argsort(sums)[:QUIET]
    return steps[kept].reshape(QUIET * RUNS, -1), span[kept].ravel(), whole[kept].ravel()


def gap(
    layers_s: float, span_s: float, whole_s: float, cost: Mapping[str, float], kernels: int,
    parallel: int, noise_s: float = 0.0,
) -> Gap:  # fmt: skip
    """What lies between the sum of the layers and the whole.

    Args:
        layers_s: the sum; each layer's time includes one reading.
        span_s: from a reading at the start to one at the end, nothing read between.
        whole_s: the network without readings.
        cost: seconds of each of `PROBES`.
        kernels: how many layers there are.
        parallel: how many of them start threads.
        noise_s: two standard errors of `whole_s - layers_s`.
    """
    reading_s = cost["reading"]
    alone_s = span_s - reading_s
    return Gap(
        dispatch_s=whole_s - alone_s,
        readings_s=kernels * reading_s,
        cache_s=alone_s - (layers_s - kernels * reading_s),
        noise_s=noise_s,
        fork_join_s=parallel * max(0.0, cost["fork"] - cost["empty"]),
        kernel_dispatch_s=kernels * max(0.0, cost["empty"] - reading_s),
        parallel=parallel,
        kernels=kernels,
    )


def profile_bundle(
    path: Path,
    threads: int | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    tracker: tuple[str, int] | None = None,
    key: str = "",
) -> Profile:
    """Profile a bundle as it is: its own library is the whole, its Relax text gives the layers.

    Args:
        path: the bundle.
        threads: which of its variants; by default the most that the host or the target has.
        shapes: of the inputs by name; by default the bundle's first.
        tracker: RPC tracker that lends boards of the bundle's target; None measures here.
        key: the boards' key there.

    Raises:
        BundleError: damaged, not for this host, made by another TVM, or made before bundles said
            what their kernels are.
        InputError: it has no variant for so many threads, or for the shapes.
        BoardError: the board cannot be reached, or does not run it.
    """
    import tempfile

    with Package(path) as package:
        manifest = package.manifest
        if tracker is None:
            package.check_host()
        else:
            package.check_runtime()
        which = manifest.find(shapes)
        one = manifest.specialisations[which]
        variant = _variant(package, threads, which)
        text = package.read(variant.relax).decode()
        weights = list(package.weights(which).values())
        library = package.read(variant.library)
    module = parse_relax(text, path)
    inputs = random_inputs([(t.shape, t.dtype) for t in one.inputs], seed=0)
    with (
        tempfile.TemporaryDirectory(prefix="tvmsep-profile-") as folder,
        Farm(manifest.target, tracker=tracker, key=key) as farm,
    ):
        whole = Path(folder) / "network.so"
        whole.write_bytes(library)
        return profile_module(
            farm, module, [*inputs, *weights], name=manifest.name, threads=variant.threads,
            outputs=len(one.outputs), whole=whole, shapes=manifest.shape_note(which),
        )  # fmt: skip


def _variant(package: Package, threads: int | None, which: int) -> Variant:
    manifest = package.manifest
    variant = package.pick(threads, manifest.target.cores, which)
    if threads is not None and variant.threads != threads:
        has = counted("thread", *(v.threads for v in manifest.variants))
        raise InputError(
            f"{package.path} has variants for {has}, not for {threads}: "
            f"give --threads {variant.threads}"
        )
    return variant


def parse_relax(text: str, path: Path) -> Any:
    """The module behind a bundle's Relax text.

    Raises:
        BundleError: it is not there as a whole, or does not say what its kernels are.
    """
    advice = "profile the model instead: tvmsep inspect MODEL --roofline"
    module = read_relax(text, path, advice)
    if not any(p.workload for p in parts(module)):
        raise BundleError(
            f"{path} does not say what its kernels compute: it was built by a tvmsep without "
            f"`profile`; build it again: tvmsep build MODEL --log {path}"
        )
    return module
