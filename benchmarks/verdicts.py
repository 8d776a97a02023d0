"""How often `tvmsep compare` is right: a network against itself, and against 3 % more work.

    python benchmarks/verdicts.py --times 100 --json verdicts.json
    python benchmarks/verdicts.py --network mobilenet_v2:resolution=160 --threads 1 --times 20

Each comparison has three entrants: a network, the same bundle once more, and the network with more
work, which is the same but for one kernel: in some of its tiles the whole computation is done
again. The result stays the same, and nothing sleeps. The kernel is one of the quickest for its
multiply-adds, so that 3 % more of them take some 3 % more time: how much they take is printed at
the end, from all rounds together.

The network against itself must be `cant_tell`; the one with more work must be `slower`. With
`--json` an interrupted run keeps what it has, and the same command goes on with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness.protocol import write_json

from tvmsep import api
from tvmsep.bundle import Package
from tvmsep.compare import stats
from tvmsep.compare.comparison import machine
from tvmsep.compare.engines import OURS, Job
from tvmsep.compare.rounds import ROUNDS, Entrant, play

NETWORK = "mobilenet_v2"
CHANNELS = (96, 576)
"""Of the pointwise kernel that gets more work: three layers of MobileNetV2, a tenth of its work,
bound by arithmetic."""
SERIES = (("same", "cant_tell"), ("more", "slower"))


def more_work(func: Any, share: float) -> tuple[Any, float]:
    """The kernel, doing `share` of its parallel tiles twice, evenly spread, and the exact share."""
    from tvm import s_tir, tirx

    root = func.body
    loop = root.block.body
    extent = int(loop.extent)
    tiles = min(extent, max(1, round(share * extent)))
    twice = tirx.if_then_else(loop.loop_var * tiles % extent < tiles, 2, 1)
    again = tirx.For(tirx.Var("again", "int32"), 0, twice, tirx.ForKind.SERIAL, loop.body)
    wide = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, again)
    block = root.block
    body = s_tir.SBlock(
        block.iter_vars, block.reads, block.writes, block.name_hint, wide, block.init,
        block.alloc_buffers, block.match_buffers, block.annotations,
    )  # fmt: skip
    realize = s_tir.SBlockRealize(root.iter_values, root.predicate, body)
    return func.with_body(realize), tiles / extent


def write_bundles(
    folder: Path, network: str, threads: int, extra: float
) -> tuple[Path, Path, float]:
    """The network, the network with more work, and by how much that is."""
    from tvmsep.bundle import write_bundle
    from tvmsep.compiler import compile_library, emit, lower

    plain, heavy = folder / "plain.tvmsep", folder / "heavy.tvmsep"
    api.build(network, out=plain, threads=[threads], logs=())
    prepared = api.prepare(network, threads=[threads])
    plan = prepared.plans[threads]
    tasks = plan.tasks(prepared.target)
    fits = [t for t in tasks if (t.workload.ic, t.workload.oc) == CHANNELS]
    if not fits:
        sys.exit(f"{network} has no pointwise kernel of {CHANNELS[0]} to {CHANNELS[1]} channels")
    task = fits[0]
    macs = sum(t.count * t.workload.macs for t in tasks)
    part = task.count * task.workload.macs / macs
    configs, _, _ = api.choose_configs(prepared, plan, {})
    module = emit(plan, prepared.target, configs)
    # The kernels' names count them in the order in which the network calls them first.
    seen = list(dict.fromkeys(s.workload for s in plan.steps if s.workload is not None))
    name = f"{task.workload.op}_{seen.index(task.workload)}"
    module[module.get_global_var(name)], share = more_work(module[name], extra / part)
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
    return plain, heavy, share * part


def verdicts(plain: Path, heavy: Path, threads: int, rounds: int, seed: int) -> dict[str, Any]:
    """One comparison as `tvmsep compare` makes it, and its verdicts in both series."""
    with Package(plain) as package:
        shapes = [i.shape for i in package.manifest.inputs]
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal(s, dtype=np.float32) for s in shapes]
    entrants = [
        Entrant(name, OURS.adapter, Job(str(path), threads), True)
        for name, path in (("plain", plain), ("same", plain), ("more", heavy))
    ]
    begin = time.monotonic()
    played, _ = play(entrants, inputs, rounds=rounds, seed=seed)
    found: dict[str, Any] = {
        "seconds": time.monotonic() - begin,
        "others": statistics.mean(r.load.others or 0.0 for r in played),
    }
    for which, (series, _) in enumerate(SERIES, 1):
        logs = [r.log_ratio(which, 0) for r in played]
        found[series] = {**dataclasses.asdict(stats.pair(logs)), "log_ratios": logs}
    return found


def main() -> None:
    """Run the comparisons and print how often the verdicts were right."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--network", default=NETWORK, help="MobileNetV2 of some size (%(default)s)")
    p.add_argument("--times", type=int, default=100, help="comparisons (%(default)s)")
    p.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    p.add_argument("--rounds", type=int, default=ROUNDS, help="of a comparison (%(default)s)")
    p.add_argument(
        "--extra", type=float, default=0.03, help="share of multiply-adds added (%(default)s)"
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="keep every figure there")
    args = p.parse_args()
    done: list[dict[str, Any]] = []
    asked = {k: getattr(args, k) for k in ("network", "threads", "rounds", "extra")}
    if args.json is not None and args.json.exists():
        kept = json.loads(args.json.read_text())
        if kept.get("asked") != asked:
            sys.exit(f"{args.json} holds other comparisons than these: give another --json")
        done = kept["comparisons"]
    with tempfile.TemporaryDirectory(prefix="tvmsep-verdicts-") as name:
        plain, heavy, extra = write_bundles(Path(name), args.network, args.threads, args.extra)
        print(f"{args.network}, threads {args.threads}, {extra:.2%} more multiply-adds", flush=True)
        for n in range(len(done), args.times):
            done.append(verdicts(plain, heavy, args.threads, args.rounds, n))
            told = ", ".join(
                f"{s} {done[n][s]['verdict']} {done[n][s]['ratio']:.4f} "
                f"({done[n][s]['low']:.4f} to {done[n][s]['high']:.4f})"
                for s, _ in SERIES
            )
            print(
                f"{n + 1}: {told}, {done[n]['seconds']:.0f} s, others {done[n]['others']:.0%}",
                flush=True,
            )
            if args.json is not None:
                about = {"asked": asked, "exactly": extra, "machine": machine()}
                write_json(args.json, {**about, "comparisons": done})
    for series, right in SERIES if done else ():
        hits = sum(one[series]["verdict"] == right for one in done)
        whole = stats.pair([x for one in done for x in one[series]["log_ratios"]])
        print(
            f"{series}: {right} {hits} of {len(done)}; all {whole.rounds} rounds: ratio "
            f"{whole.ratio:.4f} ({whole.low:.4f} to {whole.high:.4f})"
        )
    seconds = sorted(one["seconds"] for one in done)
    if seconds:
        print(f"seconds each: median {statistics.median(seconds):.0f}, longest {seconds[-1]:.0f}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
