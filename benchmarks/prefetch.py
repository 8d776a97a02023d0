"""What it is worth to ask for the next panel of weights while the present one is used.

    python benchmarks/prefetch.py mobilenet_v2 --threads 1 --rounds 24

Two forms of a network take turns, kernels timed between clock readings: both run the same configs,
those of the log (by default the shipped ones) or the defaults, once without the knob `prefetch` and
once with it wherever a kernel has it. Prints the layers that differ, the heaviest first, with the
medians of the rounds and of their ratios, and the network.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from harness.network import Configs, step_times
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tvmsep.api import Prepared, choose_configs, prepare, read_trials
from tvmsep.contracts import Config
from tvmsep.graph import Plan
from tvmsep.logs import chosen_by
from tvmsep.schedules import TEMPLATES
from tvmsep.tuner.choice import choose_plan

LEVEL = 2
"""Of the cache that the lines come to."""


def main() -> None:
    """Time both forms of each network and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--target", default="local")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--log", type=Path, help="a tuning log; by default those that ship")
    parser.add_argument("--defaults", action="store_true", help="configs of no log")
    args = parser.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    for model in args.models:
        prepared = prepare(model, target=args.target, threads=args.threads)
        trials = [] if args.defaults else read_trials(prepared.target, args.log and [args.log])
        winners = chosen_by(trials)
        plan = choose_plan(prepared.plans[args.threads], prepared.target, winners)[0]
        forms = both(prepared, plan, choose_configs(prepared, plan, winners)[0])
        times = step_times(prepared.target, [plan] * 2, forms, args.rounds)
        title = f"{model}, {args.threads} thread(s), {prepared.target.name}"
        console.print(table(title, plan, forms, times))


def both(prepared: Prepared, plan: Plan, chosen: Configs) -> tuple[Configs, Configs]:
    """The configs without the knob, and with it where the kernel's space has it."""
    off, on = dict(chosen), dict(chosen)
    for w, (name, config) in chosen.items():
        off[w] = name, Config(config, prefetch=0)
        asked = Config(config, prefetch=LEVEL)
        if asked in TEMPLATES[name].space(w, prepared.target, plan.threads):
            on[w] = name, asked
    return off, on


def table(
    title: str, plan: Plan, forms: tuple[Configs, Configs], times: list[NDArray[np.float64]]
) -> Table:
    """The layers that differ, and the network."""
    at = defaultdict[str, list[int]](list)
    for k, step in enumerate(plan.steps):
        w = step.workload
        if w is not None and forms[0].get(w) != forms[1].get(w):
            at[w.label].append(k)
    shown = Table(title=title, title_justify="left")
    for name in ("layer", "times", "without, us", "with, us", "ratio"):
        shown.add_column(name, justify="left" if name == "layer" else "right")
    rows = [(label, [t[:, ks].sum(axis=1) for t in times], len(ks)) for label, ks in at.items()]
    for label, (off, on), count in sorted(rows, key=lambda row: -float(np.median(row[1][0]))):
        shown.add_row(label, str(count), *figures(off, on))
    shown.add_section()
    off, on = (t.sum(axis=1) for t in times)
    shown.add_row("the network", "", *figures(off, on))
    return shown


def figures(off: NDArray[np.float64], on: NDArray[np.float64]) -> tuple[str, str, str]:
    """Medians of both in microseconds, and of their ratios in each round."""
    us = (f"{np.median(t) * 1e6:.1f}" for t in (off, on))
    return (*us, f"{np.median(on / off):.3f}")


if __name__ == "__main__":
    main()
