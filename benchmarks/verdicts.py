"""How often `tvmsep compare` is right: a network against itself, and against 3 % more work.

    python benchmarks/verdicts.py --times 100 --json verdicts.json
    python benchmarks/verdicts.py --only more --times 20 --threads 1

The network with more work is the same but for one kernel: in some of its tiles the whole
computation is done again. The result stays the same, and nothing sleeps. The kernel is one of the
quickest for its multiply-adds, so that 4 % more of them take some 3 % more time: how much they
take is printed at the end, from all rounds together.

A network against itself must be `cant_tell`; the one with more work must be `slower`. With `--json`
an interrupted run keeps what it has, and the same command goes on with it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from harness.protocol import write_json

from tvmsep import api
from tvmsep.compare import stats
from tvmsep.compare.engines import OURS, Job
from tvmsep.compare.rounds import ROUNDS, Entrant, play

NETWORK = "mobilenet_v2"
KERNEL = "pointwise 14x14 96>576+relu6"
"""Three of the network's layers, a tenth of its work, bound by arithmetic."""


def more_work(func: Any, share: Fraction) -> Any:
    """The kernel, doing the computation of `share` of its parallel tiles twice."""
    from tvm import s_tir, tirx

    root = func.body
    loop = root.block.body
    twice = tirx.if_then_else(loop.loop_var % share.denominator < share.numerator, 2, 1)
    again = tirx.For(tirx.Var("again", "int32"), 0, twice, tirx.ForKind.SERIAL, loop.body)
    wide = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, again)
    block = root.block
    body = s_tir.SBlock(
        block.iter_vars, block.reads, block.writes, block.name_hint, wide, block.init,
        block.alloc_buffers, block.match_buffers, block.annotations,
    )  # fmt: skip
    return func.with_body(s_tir.SBlockRealize(root.iter_values, root.predicate, body))


def write_bundles(folder: Path, threads: int, extra: float) -> tuple[Path, Path, float]:
    """The network, the network with more work, and by how much that is."""
    from tvmsep.bundle import Package, write_bundle
    from tvmsep.compiler import compile_library, emit, lower

    plain, heavy = folder / "plain.tvmsep", folder / "heavy.tvmsep"
    api.build(NETWORK, out=plain, threads=[threads], logs=())
    prepared = api.prepare(NETWORK, threads=[threads])
    plan = prepared.plans[threads]
    tasks = plan.tasks(prepared.target)
    (task,) = (t for t in tasks if t.workload.label == KERNEL)
    macs = sum(t.count * t.workload.macs for t in tasks)
    part = task.count * task.workload.macs / macs
    share = Fraction(extra / part).limit_denominator(16)
    configs, _, _ = api.choose_configs(prepared, plan, {})
    module = emit(plan, prepared.target, configs)
    # The kernels' names count them in the order in which the network calls them first.
    seen = list(dict.fromkeys(s.workload for s in plan.steps if s.workload is not None))
    name = f"{task.workload.op}_{seen.index(task.workload)}"
    module[module.get_global_var(name)] = more_work(module[name], share)
    library = compile_library(lower(module, prepared.target), prepared.target)
    with Package(plain) as package:
        m = package.manifest
        write_bundle(
            heavy, name=m.name, target=m.target, inputs=m.inputs, outputs=m.outputs,
            libraries={threads: library}, weights=package.weights(),
            relax={threads: module.script(show_meta=False)},
            peak_ram_bytes={threads: m.variants[0].peak_ram_bytes}, estimate_s=None, log_lines=[],
            log_total=0, source=m.source, licence=m.licence, preprocess=m.preprocess,
            labels=m.labels, flops=m.flops, peak_gflops_per_core=None,
        )  # fmt: skip
    return plain, heavy, float(share) * part


def verdict(a: Path, b: Path, threads: int, rounds: int, seed: int) -> dict[str, Any]:
    """One comparison as `tvmsep compare` makes it: the verdict on `a`."""
    inputs = [np.random.default_rng(seed).standard_normal((1, 3, 224, 224), dtype=np.float32)]
    entrants = [
        Entrant(name, OURS.adapter, Job(str(path), threads), True)
        for name, path in (("a", a), ("b", b))
    ]
    begin = time.monotonic()
    played, _ = play(entrants, inputs, rounds=rounds, seed=seed)
    figures = [r.figures_s for r in played]
    pair = _pair(figures)
    return {
        "verdict": pair.verdict, "ratio": pair.ratio, "low": pair.low, "high": pair.high,
        "seconds": time.monotonic() - begin, "figures_s": figures,
        "others": statistics.mean(r.load.others or 0.0 for r in played),
    }  # fmt: skip


def main() -> None:
    """Run both series and print how often the verdict was right."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--times", type=int, default=100, help="comparisons each (%(default)s)")
    p.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    p.add_argument("--rounds", type=int, default=ROUNDS, help="of a comparison (%(default)s)")
    p.add_argument(
        "--extra", type=float, default=0.04, help="share of multiply-adds added (%(default)s)"
    )
    p.add_argument("--only", choices=("same", "more"), help="one of the two series")
    p.add_argument("--json", type=Path, metavar="FILE", help="keep every figure there")
    args = p.parse_args()
    done: dict[str, Any] = {"same": [], "more": []}
    if args.json is not None and args.json.exists():
        done = json.loads(args.json.read_text())
    with tempfile.TemporaryDirectory(prefix="tvmsep-verdicts-") as name:
        plain, heavy, extra = write_bundles(Path(name), args.threads, args.extra)
        print(f"{NETWORK}, threads {args.threads}, {extra:.2%} more multiply-adds", flush=True)
        for n in range(args.times):
            for series, path in (("same", plain), ("more", heavy)):
                if args.only not in (None, series) or len(done[series]) > n:
                    continue
                found = verdict(path, plain, args.threads, args.rounds, n)
                done[series].append(found)
                print(
                    f"{series} {n + 1}: {found['verdict']:9} {found['ratio']:.4f} "
                    f"({found['low']:.4f} to {found['high']:.4f}), {found['seconds']:.0f} s, "
                    f"others {found['others']:.0%}",
                    flush=True,
                )
                if args.json is not None:
                    write_json(args.json, {**done, "threads": args.threads, "extra": extra})
    for series, right in (("same", "cant_tell"), ("more", "slower")):
        if found := done[series]:
            figures = [f for one in found for f in one["figures_s"]]
            hits = sum(_pair(one["figures_s"]).verdict == right for one in found)
            whole = _pair(figures)
            print(
                f"{series}: {right} {hits} of {len(found)}; longest "
                f"{max(one['seconds'] for one in found):.0f} s; all {len(figures)} rounds: ratio "
                f"{whole.ratio:.4f} ({whole.low:.4f} to {whole.high:.4f})"
            )


def _pair(figures: Sequence[Sequence[float]]) -> stats.Pair:
    return stats.pair([a for a, _ in figures], [b for _, b in figures])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
