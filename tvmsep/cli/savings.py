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
from tvmsep.contracts import Target, TvmsepError
from tvmsep.contracts.words import counted
from tvmsep.graph import Plan
from tvmsep.logs import LogFile, best_trials
from tvmsep.measure import Farm, ModelBoard
from tvmsep.report import Saving, measure_savings
from tvmsep.report.savings import saving_tasks
from tvmsep.tuner import tune_tasks
from tvmsep.tuner.choice import choose_splits


def show_savings(
    prepared: Prepared, plan: Plan, budget_s: float | None, log: Path | None, as_json: bool
) -> None:
    """Measure (and tune, where a budget is given) and print the table.

    For a GPU that is not here the times are the model's, and labelled so.

    Raises:
        TvmsepError: no board measures, and none is modelled or tuning was asked for.
    """
    target = prepared.target
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="tvmsep-") as scratch,
        LogFile(log or Path(scratch) / "savings.jsonl", target=target.name) as records,
        _board(target, budget_s) as board,
    ):
        plan = choose_splits(plan, target, best_trials(records.trials))
        if budget_s is not None:
            tasks = {t: None for _, a, b in saving_tasks(plan, target) for t in (*a, *b)}
            with TuneProgress() as progress:
                tune_tasks(
                    list(tasks), target, board, records,
                    peak_flops_per_core=board.peak_flops_per_core(), budget_s=budget_s,
                    progress=progress,
                )  # fmt: skip
        for saving in measure_savings(plan, target, board, best_trials(records.trials)):
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
    modelled = isinstance(board, ModelBoard)
    if as_json:
        text = {"threads": plan.threads, "target": target.name, "modelled": modelled}
        print(json.dumps({**text, "savings": rows}))
        return
    print_table(
        (
            "block", "M>N", "kernel", "output", "standard us", "dw + pw us", "faster",
            "fewer multiplications", "configs",
        ),
        [_cells(r) for r in rows],
        title=f"{prepared.imported.name} on {target.name}, "
        + ("modelled, not measured" if modelled else counted("thread", plan.threads)),
    )  # fmt: skip


def _board(target: Target, budget_s: float | None) -> Farm | ModelBoard:
    """This machine, or the model of a GPU that it does not have."""
    farm = Farm(target)
    try:
        farm.connect()
    except TvmsepError as error:
        farm.close()
        if target.gpu is None or budget_s is not None:
            raise
        print(f"times are modelled, not measured: {error}", file=sys.stderr)
        return ModelBoard(target)
    except BaseException:
        farm.close()
        raise
    return farm


def _cells(row: dict[str, Any]) -> list[str]:
    b = row["block"]
    return [
        b["name"], f"{b['in_channels']}>{b['out_channels']}",
        f"{b['kernel'][0]}x{b['kernel'][1]}", f"{b['output'][0]}x{b['output'][1]}",
        f"{row['standard_s'] * 1e6:.1f}", f"{row['separable_s'] * 1e6:.1f}",
        f"{row['speedup']:.1f}x", f"{row['theory']:.1f}x", "tuned" if row["tuned"] else "default",
    ]  # fmt: skip
