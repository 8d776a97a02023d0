"""The traffic of fused and separate kernels on a GPU: the table of docs/cuda.md. Nothing is run.

python benchmarks/gpu_traffic.py [MODEL ...] [--target jetson-orin] [--dtype float16]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tvmsep import api
from tvmsep.contracts import TvmsepError
from tvmsep.estimate.pair import SAVED, Pair, model_pair
from tvmsep.graph import fusible


def pairs(model: str, target: str, dtype: str) -> dict[str, tuple[int, Pair]]:
    """Each kind of block of a network: how often it occurs, and both of its forms."""
    prepared = api.prepare(model, target=target, dtype=dtype)
    if prepared.target.gpu is None:
        raise TvmsepError(f"target {target} has no GPU: give one with a [gpu] table")
    (plan,) = prepared.plans.values()
    found = list(fusible(plan, prepared.target).values())
    return {w.label: (found.count(w), model_pair(w, prepared.target)) for w in dict.fromkeys(found)}


def table(rows: dict[str, tuple[int, Pair]]) -> str:
    """In Markdown; kilobytes, and microseconds of the model."""
    lines = [
        "| block | times | separate KB | fused KB | less | at most | separate us | fused us "
        "| fused |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label, (count, p) in rows.items():
        lines.append(
            f"| {label.removeprefix('dwpw ')} | {count} | {p.separate_bytes / 1e3:.0f} "
            f"| {p.fused.memory_bytes / 1e3:.0f} | {100 * p.saved:.0f} % "
            f"| {100 * p.most:.0f} % | {1e6 * p.separate_s:.1f} | {1e6 * p.fused.seconds:.1f} "
            f"| {'yes' if p.worth else 'no'} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=["mobilenet_v1", "mobilenet_v2"])
    parser.add_argument("--target", default="jetson-orin")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"))
    args = parser.parse_args(argv)
    try:
        for model in args.models:
            print(f"{model}, {args.target}, {args.dtype}; fused from {100 * SAVED:.0f} % less on\n")
            print(table(pairs(model, args.target, args.dtype)), end="\n\n")
    except TvmsepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
