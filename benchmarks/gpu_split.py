"""What dividing a pointwise layer's reduction over thread blocks would save, by the model of a GPU.

python benchmarks/gpu_split.py [--targets jetson-orin,t4,a100,h100] [--size 7] ["IC>OC" ...]

No template does it: blocks would write partial sums, and a second kernel add them up. Its launch,
its traffic and its waits are counted; nothing is run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from tvmsep.contracts import Target, TvmsepError, Workload
from tvmsep.schedules.cuda.limits import GLOBAL_LATENCY, L2_BYTES_PER_CLOCK, LAUNCH_S
from tvmsep.schedules.cuda.pointwise import geometry
from tvmsep.schedules.cuda.product import Product, Tiling
from tvmsep.schedules.cuda.tiles import candidates, predicted_seconds
from tvmsep.targets import load_target

LAYERS = ("1024>1024", "960>160", "960>320", "320>1280")
PARTS = (2, 4, 8)


def least(g: Product, w: Workload, t: Target) -> float:
    """Seconds of the best tiling."""
    assert t.gpu is not None
    return min(predicted_seconds(g, w, t.gpu, Tiling.of(c)) for c in candidates(g, w, t))


def row(t: Target, w: Workload) -> str:
    """A line of the table: one kernel, and the best number of parts with the second kernel."""
    if t.gpu is None:
        raise TvmsepError(f"target {t.name} has no GPU: give one with a [gpu] table")
    g, clock, found = geometry(w), t.gpu.clock_ghz * 1e9, {}
    rate = t.gpu.sms * L2_BYTES_PER_CLOCK * clock
    one = least(g, w, t)
    for parts in PARTS:
        if g.depth % (parts * g.vector_k):
            continue
        # Parts of the reduction are as images: their blocks are independent, each writes its own.
        first = least(replace(g, depth=g.depth // parts, batch=g.batch * parts), w, t)
        moved = 4 * (parts + 1) * w.oc * w.oh * w.ow
        found[first + LAUNCH_S + moved / rate + 2 * GLOBAL_LATENCY / clock] = parts
    if not found:
        raise TvmsepError(f"{w.ic} channels do not divide by {PARTS}: give other layers")
    best = min(found)
    return (
        f"| {t.name} | {w.ic}>{w.oc} | {1e6 * one:.1f} | {found[best]} | {1e6 * best:.1f} "
        f"| {100 * (1 - best / one):.0f} % |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("layers", nargs="*", default=LAYERS, metavar="IC>OC")
    parser.add_argument("--targets", default="jetson-orin,t4,a100,h100")
    parser.add_argument("--size", type=int, default=7)
    args = parser.parse_args(argv)
    print("| target | channels | one kernel us | parts | divided us | saved |")
    print("|---|---|---|---|---|---|", flush=True)
    try:
        for name in args.targets.split(","):
            for layer in args.layers:
                ic, oc = map(int, layer.split(">"))
                w = Workload(
                    op="pointwise", ic=ic, oc=oc, ih=args.size, iw=args.size, in_block=4,
                    out_block=4, epilogue=("bias", "relu6"),
                )  # fmt: skip
                print(row(load_target(name), w), flush=True)
    except (TvmsepError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
