"""A profile as a table; `inspect --roofline` is the profile of a model that has no bundle yet."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from tvmsep.api import Prepared, choose_configs, must_fit, read_trials
from tvmsep.cli.table import print_table
from tvmsep.compiler import emit
from tvmsep.contracts.trial import EMULATED_NOTE, is_emulated
from tvmsep.contracts.words import counted
from tvmsep.logs import chosen_by
from tvmsep.measure import Farm
from tvmsep.measure.network import random_inputs
from tvmsep.profile import LOW, Profile, profile_module
from tvmsep.tuner.choice import choose_plan


def show_roofline(prepared: Prepared, threads: int, log: Path | None, as_json: bool) -> None:
    """Time the network with the configs that `build` would take, and print the table.

    Raises:
        TargetError: the target's code does not run here.
        BoardError: the network cannot be compiled, or run.
    """
    target, plan = prepared.target, prepared.plans[threads]
    must_fit(target)
    winners = chosen_by(read_trials(target, None if log is None else [log]))
    plan, _ = choose_plan(plan, target, winners)
    configs, used, _ = choose_configs(prepared, plan, winners)
    kinds = [(shape, plan.input_dtypes.get(n, "float32")) for n, shape in plan.input_shapes.items()]
    arguments = [*random_inputs(kinds, 0), *plan.all_params.values()]
    with Farm(target) as farm:
        found = profile_module(
            farm, emit(plan, target, configs), arguments,
            name=prepared.imported.name, threads=threads, outputs=len(prepared.imported.outputs),
        )  # fmt: skip
    if as_json:
        print(profile_json(found, tuned_tasks=len(used), tasks=len(configs)))
    else:
        print_profile(found, f"{len(used)} of {len(configs)} kernels tuned")


def profile_json(profile: Profile, **more: object) -> str:
    """What `profile --json` and `inspect --roofline --json` print."""
    return json.dumps({**msgspec.to_builtins(profile), "low_under": LOW, **more})


def print_profile(profile: Profile, remark: str = "") -> None:
    """The layers, their sum, the whole, and what lies between."""
    cells = [
        [
            r.layer, str(r.runs), f"{r.seconds * r.runs * 1e6:.1f}", f"{r.time_share:.1%}",
            f"{r.flops_per_s / 1e9:.1f}" if r.flops else "",
            f"{r.peak_share:.0%}" if r.flops else "",
            f"{r.bytes / 1e3:.0f}", f"{r.bytes_per_s / 1e9:.1f}",
            f"{r.flop_per_byte:.1f}" if r.flops else "", r.level, r.bound,
            f"{r.bound_s * r.runs * 1e6:.1f}", f"{r.share:.0%}", "low" if r.low else "",
        ]
        for r in profile.layers
    ]  # fmt: skip
    layers_s, peak = profile.layers_s, profile.peak_flops
    flops = sum(r.flops * r.runs for r in profile.layers)
    cells.append(
        [
            "total", str(len(profile.steps)), f"{layers_s * 1e6:.1f}", "100%",
            f"{flops / layers_s / 1e9:.1f}", f"{flops / layers_s / peak:.0%}", "", "", "", "", "",
            f"{profile.bound_s * 1e6:.1f}", f"{profile.bound_s / layers_s:.0%}", "",
        ]
    )  # fmt: skip
    print_table(
        (
            "layer", "runs", "us", "of time", "GFLOP/s", "of peak", "kB", "GB/s", "FLOP/B",
            "data in", "bound", "bound us", "of bound", f"under {LOW:.0%}",
        ),
        cells,
        title=f"{profile.model} on {profile.target}, {counted('thread', profile.threads)}"
        + (f", {profile.shapes}" if profile.shapes else "")
        + (f", {remark}" if remark else ""),
    )  # fmt: skip
    limits = ", ".join(f"{n} {rate / 1e9:.0f} GB/s" for n, rate in profile.bandwidths.items())
    what = "the GPU" if profile.gap.events else counted("thread", profile.threads)
    print(
        "us and bound us are of all runs; the others of one. Measured limits of "
        f"{what}: FMA peak {peak / 1e9:.0f} GFLOP/s, {limits}"
    )
    for line in gap_lines(profile):
        print(line)
    if is_emulated(profile.cpu):
        print(f"board {profile.board or 'local'} {EMULATED_NOTE}")


def gap_lines(profile: Profile) -> list[str]:
    """The sum of the layers against the whole, and the names of the difference."""
    g = profile.gap
    if g.events:
        return [
            f"the kernels sum to {profile.layers_s * 1e6:.0f} us by CUDA events between them, the "
            f"network takes {profile.network_s * 1e6:.0f} us ({profile.apart:+.1%}): the events "
            "delay the next kernel, and the call goes before the first",
            f"  noise {g.noise_s * 1e6:9.1f} us  either way: less than that says nothing",
        ]
    return [
        f"the layers sum to {profile.layers_s * 1e6:.0f} us, the network takes "
        f"{profile.network_s * 1e6:.0f} us ({profile.apart:+.1%}), of the difference:",
        f"  dispatch {g.dispatch_s * 1e6:+8.1f} us  the call, before the first kernel and after "
        "the last",
        f"  readings {-g.readings_s * 1e6:+8.1f} us  {g.kernels} clock readings, which only the "
        "profile has",
        f"  cache    {g.cache_s * 1e6:+8.1f} us  the rest: what the readings do to caches and "
        "waiting threads, and noise",
        f"  noise {g.noise_s * 1e6:9.1f} us  either way: less than that says nothing; run it on a "
        "quiet machine",
        f"inside the layers: dispatch {g.kernel_dispatch_s * 1e6:.1f} us for {g.kernels} kernels, "
        f"threads {g.fork_join_s * 1e6:.1f} us to start and join them {g.parallel} times",
    ]
