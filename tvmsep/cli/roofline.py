"""`inspect --roofline`: each layer, timed inside its network, against what the board can do."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from tvmsep.api import Prepared, choose_configs, must_fit, read_trials
from tvmsep.cli.table import print_table
from tvmsep.contracts import BoardError
from tvmsep.contracts.trial import robust_mean
from tvmsep.graph import Plan
from tvmsep.logs import best_trials
from tvmsep.measure import Failed, Farm
from tvmsep.report.roofline import LOW, roofline
from tvmsep.tuner.fusion import choose_plan

ROUNDS = 5


def show_roofline(prepared: Prepared, plan: Plan, log: Path | None, as_json: bool) -> None:
    """Time the network with the configs that `build` would take, and print the table.

    Raises:
        TargetError: the target's code does not run here.
        BoardError: the network cannot be compiled, or run.
    """
    target = prepared.target
    must_fit(target)
    winners = best_trials(read_trials(target, None if log is None else [log]))
    plan, _ = choose_plan(plan, target, winners)
    configs, used, _ = choose_configs(prepared, plan, winners)
    with Farm(target) as farm:
        peak_flops = farm.peak_flops_per_core() * plan.threads
        bandwidths = farm.bandwidths(plan.threads)
        answer = farm.run_networks([plan], [configs], rounds=ROUNDS, whole=True)
    if isinstance(answer, Failed):
        raise BoardError(
            f"the network was not timed on {target.name}: {answer.failure}: {answer.detail}"
        )
    steps_s = [robust_mean(times) for times in answer.steps[0].T.tolist()]
    rows = roofline(plan, steps_s, peak_flops, bandwidths)
    whole_s = robust_mean(answer.whole_s)
    layers_s = sum(r.seconds * r.runs for r in rows)
    bound_s = sum(r.bound_s * r.runs for r in rows)
    if as_json:
        text = {
            "model": prepared.imported.name, "target": target.name, "threads": plan.threads,
            "tuned_tasks": len(used), "tasks": len(configs), "peak_flops": peak_flops,
            "bandwidths": [
                {"level": b.level.name, "bytes_per_s": b.bytes_per_s} for b in bandwidths
            ],
            "layers": msgspec.to_builtins(rows), "layers_s": layers_s, "bound_s": bound_s,
            "network_s": whole_s, "low_under": LOW,
        }  # fmt: skip
        print(json.dumps(text))
        return
    cells = [
        [
            r.layer, str(r.runs), f"{r.seconds * 1e6:.1f}",
            f"{r.flops_per_s / 1e9:.1f}" if r.flops else "",
            f"{r.peak_share:.0%}" if r.flops else "",
            f"{r.bytes_per_s / 1e9:.1f}", r.level, r.bound,
            f"{r.bound_s * 1e6:.1f}", f"{r.share:.0%}", "low" if r.low else "",
        ]
        for r in rows
    ]  # fmt: skip
    flops, runs = plan.flops / layers_s, sum(r.runs for r in rows)
    cells.append(
        [
            "total", str(runs), f"{layers_s * 1e6:.1f}", f"{flops / 1e9:.1f}",
            f"{flops / peak_flops:.0%}", "", "", "", f"{bound_s * 1e6:.1f}",
            f"{bound_s / layers_s:.0%}", "",
        ]
    )  # fmt: skip
    print_table(
        (
            "layer", "runs", "us", "GFLOP/s", "of peak", "GB/s", "data in", "bound", "bound us",
            "of bound", f"under {LOW:.0%}",
        ),
        cells,
        title=f"{prepared.imported.name} on {target.name}, {plan.threads} thread(s), "
        f"{len(used)} of {len(configs)} kernels tuned",
    )  # fmt: skip
    limits = ", ".join(f"{b.level.name} {b.bytes_per_s / 1e9:.0f} GB/s" for b in bandwidths)
    print(
        f"measured limits of {plan.threads} thread(s): "
        f"FMA peak {peak_flops / 1e9:.0f} GFLOP/s, {limits}"
    )
    print(f"the network takes {whole_s * 1e6:.0f} us without clock readings between its kernels")
