"""What a choice of the channel block for each tensor could gain: an estimate.

    python benchmarks/blocks.py mobilenet_v1 mobilenet_v2 --target x86-avx2 --threads 1

The network in several layouts, each all through, takes turns with itself, kernels timed between
clock readings, each layout in a process of its own. If every kernel could have the layout that
suits it, and conversions cost nothing, the network would take the sum of each one's least time.
Printed twice, as a ratio to the best layout for all: with the layout that is least chosen and timed
in the same turns, which is too hopeful since the least of several noisy times is less than each
kernel's own, and chosen in one half of the turns and timed in the other, which may miss some. The
truth lies between. Kernels run their defaults; `default` is the layout that a plan has by itself.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from harness.network import step_times
from numpy.typing import NDArray

from tvmsep.api import Prepared, choose_configs, prepare
from tvmsep.graph import Plan
from tvmsep.graph.plan import layouts as known_layouts
from tvmsep.targets import load_target


def main() -> None:
    """Time the layouts and print the bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--target", default="x86-avx2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--layouts", help="as nchw8c,nchw16c; by default all that the target has")
    args = parser.parse_args()
    target = load_target(args.target)
    names = args.layouts.split(",") if args.layouts else ["default", *known_layouts(target)]
    if args.turns < 2:
        parser.error("--turns: at least 2, one to choose in and one to time in")
    for model in args.models:
        how = {"target": target, "threads": args.threads}
        made = [prepare(model, layout=layout(x), **how) for x in names]
        turns = [[once(one, args.threads, ROUNDS) for one in made] for _ in range(args.turns)]
        print(f"{model}, {args.threads} thread(s), {target.name}")
        show(names, [joined(each) for each in zip(*turns, strict=True)])


ROUNDS = 4
"""Of a turn."""
Times = dict[str, NDArray[np.float64]]
"""Of each layer, in each round or turn."""


def layout(name: str) -> str | None:
    """As `prepare` takes it."""
    return None if name == "default" else name


def once(prepared: Prepared, threads: int, rounds: int) -> Times:
    """One layout's turn: its weights differ from the others', so it has a session of its own."""
    plan = prepared.plans[threads]
    configs = choose_configs(prepared, plan, {})[0]
    (times,) = step_times(prepared.target, [plan], [configs], rounds)
    return in_layers(plan, times)


def joined(turns: Sequence[Times]) -> Times:
    """The median of each turn."""
    return {label: np.array([np.median(t[label]) for t in turns]) for label in turns[0]}


def in_layers(plan: Plan, times: NDArray[np.float64]) -> Times:
    """Seconds of each layer's kernels in each round; what moves values alone is one layer."""
    found: Times = defaultdict(lambda: np.zeros(len(times)))
    for k, step in enumerate(plan.steps):
        w = step.workload
        moves = w is None or w.op in ("pack", "unpack", "eltwise", "channels")
        found["moves" if w is None or moves else w.label] += times[:, k]
    return found


def show(names: list[str], times: list[Times]) -> None:
    """Sums of each layout, and of the least of each layer."""
    layers = list(times[0])
    if any(set(t) != set(layers) for t in times):
        raise SystemExit("these layouts have different layers: they do not compare one by one")
    whole = np.array([[t[label] for label in layers] for t in times])
    for name, sums in zip(names, whole.sum(axis=1), strict=True):
        ratio = np.median(sums / whole[0].sum(axis=0))
        print(f"  {name:9} {np.median(sums) * 1e3:7.3f} ms, {ratio:.3f} of {names[0]}, paired")
    middle = np.median(whole, axis=2)
    hopeful = middle.min(axis=0).sum() / middle.sum(axis=1).min()
    held = []
    for seen in (slice(0, None, 2), slice(1, None, 2)):
        rest = slice(1 - seen.start, None, 2)
        least = np.median(whole[:, :, seen], axis=2).argmin(axis=0)
        chosen = whole[least, np.arange(len(layers))][:, rest].sum(axis=0)
        best = np.median(whole.sum(axis=1)[:, seen], axis=1).argmin()
        held.append(np.median(chosen / whole[best].sum(axis=0)[rest]))
    print(
        f"  each layer's own, conversions free: {hopeful:.3f} of the best one for all in the same "
        f"turns, {np.mean(held):.3f} in the others"
    )


if __name__ == "__main__":
    main()
