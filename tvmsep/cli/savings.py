"""`inspect --savings`: the honest picture of what separability buys on this machine."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from tvmsep.api import Prepared
from tvmsep.cli.progress import TuneProgress
from tvmsep.cli.table import print_table
from tvmsep.contracts.words import counted
from tvmsep.graph import Plan
from tvmsep.logs import LogFile, best_trials
from tvmsep.measure import Farm
from tvmsep.report import Saving, measure_savings
from tvmsep.report.savings import saving_tasks
from tvmsep.tuner import tune_tasks


def show_savings(
    prepared: Prepared, plan: Plan, budget_s: float | None, log: Path | None, as_json: bool
) -> None:
    """Measure (and tune, where a budget is given) and print the table."""
    target = prepared.target
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="tvmsep-") as scratch,
        LogFile(log or Path(scratch) / "savings.jsonl", target=target.name) as records,
        Farm(target) as farm,
    ):
        if budget_s is not None:
            tasks = {t: None for _, a, b in saving_tasks(plan, target) for t in (*a, *b)}
            with TuneProgress() as progress:
                tune_tasks(
                    list(tasks), target, farm, records,
                    peak_flops_per_core=farm.peak_flops_per_core(), budget_s=budget_s,
                    progress=progress,
                )  # fmt: skip
        for saving in measure_savings(plan, target, farm, best_trials(records.trials)):
            if isinstance(saving, Saving):
                rows.append(
                    {
                        **msgspec.to_builtins(saving),
                        "theory": saving.block.saving,
                        "speedup": saving.speedup,
                    }
                )
            else:
                failed.append(f"{saving[0].name}: {saving[1].failure}: {saving[1].detail}")
    for line in failed:
        print(f"not measured: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps({"threads": plan.threads, "target": target.name, "savings": rows}))
        return
    print_table(
        (
            "block", "M>N", "kernel", "output", "standard us", "dw + pw us", "faster",
            "fewer multiplications", "configs",
        ),
        [_cells(r) for r in rows],
        title=f"{prepared.imported.name} on {target.name}, {counted('thread', plan.threads)}",
    )  # fmt: skip


def _cells(row: dict[str, Any]) -> list[str]:
    b = row["block"]
    return [
        b["name"], f"{b['in_channels']}>{b['out_channels']}",
        f"{b['kernel'][0]}x{b['kernel'][1]}", f"{b['output'][0]}x{b['output'][1]}",
        f"{row['standard_s'] * 1e6:.1f}", f"{row['separable_s'] * 1e6:.1f}",
        f"{row['speedup']:.1f}x", f"{row['theory']:.1f}x", "tuned" if row["tuned"] else "default",
    ]  # fmt: skip
