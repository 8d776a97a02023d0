"""Which register tiles pointwise layers want, and what unrolling their input channels is worth.

    python benchmarks/tiles.py mobilenet_v1 --target x86-avx2 --tiles 4x2,6x2,4x3,3x4 --unroll 8,1

Forms of the network take turns, kernels timed between clock readings: the defaults, and the same
with each tile (pixels x output blocks) and each unrolling in every pointwise layer that can have
it. Prints each layer's time with its default, and the median of each form's ratios to it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from harness.network import Configs, step_times
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tvmsep.api import Prepared, choose_configs, prepare
from tvmsep.contracts import Config, Workload
from tvmsep.graph import Plan
from tvmsep.schedules import TEMPLATES

Form = tuple[int, int, int]
"""Pixels and output blocks of the tile, input channels unrolled."""
Times = NDArray[np.float64]
"""Seconds `[rounds, steps]`."""


def main() -> None:
    """Time the forms of each network and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--target", default="local")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tiles", default="4x2,5x2,6x2,4x3,3x4")
    parser.add_argument("--unroll", default="8,1")
    args = parser.parse_args()
    forms: list[Form] = []
    for unroll in map(int, args.unroll.split(",")):
        for tile in args.tiles.split(","):
            pixels, blocks = map(int, tile.split("x"))
            forms.append((pixels, blocks, unroll))
    console = Console()
    if not console.is_terminal:
        console = Console(width=60 + 8 * len(forms))
    for model in args.models:
        prepared = prepare(model, target=args.target, threads=args.threads)
        plan = prepared.plans[args.threads]
        variants = [choose_configs(prepared, plan, {})[0]]
        variants += [changed(prepared, plan, variants[0], form) for form in forms]
        times = step_times(prepared.target, [plan] * len(variants), variants, args.rounds)
        title = f"{model}, {args.threads} thread(s), {prepared.target.name}"
        console.print(table(title, plan, forms, variants, times))


def changed(prepared: Prepared, plan: Plan, configs: Configs, form: Form) -> Configs:
    """The configs with a form's tile and unrolling, in each pointwise layer that can have them.

    The orders of loops are tried as the default, one panel after the other, one tile of pixels
    after the other: the first that the space has.
    """
    tile_p, tile_oc, unroll = form
    found = dict(configs)
    for w, (name, config) in configs.items():
        if name != "pointwise":
            continue
        space = TEMPLATES[name].space(w, prepared.target, plan.threads)
        tiled = Config(config, tile_p=tile_p, tile_oc=tile_oc, unroll=unroll)
        orders = (
            tiled, Config(tiled, loop="oc", chunks=1),
            Config(tiled, loop="px", chunks=1, prefetch=0),
        )  # fmt: skip
        if (first := next((c for c in orders if c in space), None)) is not None:
            found[w] = name, first
    return found


def table(
    title: str,
    plan: Plan,
    forms: Sequence[Form],
    variants: Sequence[Configs],
    times: Sequence[Times],
) -> Table:
    """Pointwise layers, the heaviest first; a layer that cannot have a form has no ratio."""
    layers = defaultdict[Workload, list[int]](list)
    for k, step in enumerate(plan.steps):
        if step.workload is not None and step.template == "pointwise":
            layers[step.workload].append(k)
    shown = Table(title=title, title_justify="left")
    shown.add_column("layer")
    shown.add_column("default")
    for name in ("us", *(f"{p}x{o} u{u}" for p, o, u in forms)):
        shown.add_column(name, justify="right")
    rows = {w: [t[:, ks].sum(axis=1) for t in times] for w, ks in layers.items()}
    for w, (base, *others) in sorted(rows.items(), key=lambda row: -float(np.median(row[1][0]))):
        cells = [
            f"{np.median(t / base):.3f}" if form_of(variant[w][1]) == form else ""
            for form, variant, t in zip(forms, variants[1:], others, strict=True)
        ]
        pixels, blocks, unroll = form_of(variants[0][w][1])
        default = f"{pixels}x{blocks} u{unroll}"
        shown.add_row(w.label, default, f"{np.median(base) * 1e6:.1f}", *cells)
    return shown


def form_of(config: Config) -> Form:
    """What the tables call a config."""
    return config.int("tile_p"), config.int("tile_oc"), config.int("unroll")


if __name__ == "__main__":
    main()
