"""tvmsep against other engines on this machine's GPU: a table to publish.

    python benchmarks/cuda.py --budget 30m
    python benchmarks/cuda.py --networks mobilenet_v2 --dtypes float16 --log v2.jsonl --budget 0
    python benchmarks/cuda.py --engines tvmsep,tvmsep-untuned,torch --json results.json

For each network and dtype: tunes it (`--budget` each; the logs are kept in `--logs` and gone on
with), then compares with torch (cuDNN, eager, and torch.compile) and with TensorRT where it is
installed. float32 is float32: TF32 is off everywhere. A round runs every engine once, each in a
fresh process, in shuffled order; its figure is the median of its timed runs, from the input in the
device's memory until the output lies there. `error` is the largest difference from onnxruntime's
output on the CPU; an engine beyond 1e-4 (2e-3 for float16) is marked and is no best peer.
`of peak` is the share of the data sheet's float32 peak.

Needs a CUDA device: nothing is measured on an emulated one.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.gpu import GPU_ENGINES
from harness import environment, report
from harness.model import specs, write_network
from harness.protocol import write_json
from harness.rounds import Row, Series, summarise
from harness.runner import Runner
from x86 import check_writable, compare, install, parser, positive, say, terminated

from tvmsep.contracts import InputError, Target, TvmsepError
from tvmsep.contracts.workload import TOLERANCE

NEEDS = {"tensorrt": ("tensorrt", "torch")}
"""Engines that are compared only where these modules are installed beside tvmsep."""
HEAD = ("engine", "version", "lowest ms", "highest ms", "ratio", "paired", "of peak", "error", "")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line, its lists taken apart.

    Raises:
        InputError: a value that makes no sense here.
        SystemExit: argparse has said why.
    """
    from tvmsep.cli.options import seconds

    p = parser(__doc__ or "")
    p.add_argument("--networks", default="mobilenet_v1,mobilenet_v2", metavar="A,B",
                   help="built-ins with their options, or .onnx files (%(default)s)")  # fmt: skip
    p.add_argument("--engines", metavar="A,B", help=f"({', '.join(GPU_ENGINES)}; what is there)")
    p.add_argument("--dtypes", default="float32,float16", metavar="A,B", help="(%(default)s)")
    p.add_argument("--target", metavar="T", help="(the one whose capability this GPU has)")
    p.add_argument("--batch", type=positive, default=1, help="pictures a call (%(default)s)")
    p.add_argument("--budget", default="20m", metavar="TIME",
                   help="of tuning, each network and dtype; 0: none (%(default)s)")  # fmt: skip
    p.add_argument("--logs", type=Path, default=Path("cuda-logs"), metavar="DIR",
                   help="where tuning logs are kept (%(default)s)")  # fmt: skip
    p.add_argument("--log", action="append", metavar="FILE", help="further logs for `tvmsep`")
    p.add_argument("--rounds", type=positive, default=5, help="(%(default)s)")
    p.add_argument("--runs", type=positive, default=200, help="timed runs a process (%(default)s)")
    p.add_argument("--timeout", type=positive, default=300, metavar="S",
                   help="seconds for one measuring process (%(default)s)")  # fmt: skip
    p.add_argument("--seed", type=int, default=0, help="of the order within rounds (%(default)s)")
    p.add_argument("--environments", type=Path, metavar="DIR", help="(the user's cache)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    args = p.parse_args(words)
    args.networks, args.threads = specs(args.networks), [1]
    args.engines = _engines(args.engines)
    args.dtypes = list(dict.fromkeys(d.strip() for d in args.dtypes.split(",")))
    for dtype in args.dtypes:
        if dtype not in TOLERANCE:
            raise InputError(f"--dtypes: no dtype {dtype!r}: there are {', '.join(TOLERANCE)}")
    args.budget = None if args.budget.strip() == "0" else seconds(args.budget)
    for log in args.log or ():
        if not Path(log).is_file():
            raise InputError(f"--log {log}: no such file")
    args.log = [str(Path(log).resolve()) for log in args.log or ()]
    if args.json is not None:
        check_writable(args.json)
    return args


def _engines(text: str | None) -> list[str]:
    """Those asked for, or all that can be had."""

    def lacks(name: str) -> list[str]:
        return [m for m in NEEDS.get(name, ()) if importlib.util.find_spec(m) is None]

    if text is None:
        return [name for name in GPU_ENGINES if not lacks(name)]
    names = list(dict.fromkeys(e.strip() for e in text.split(",")))
    for name in names:
        if name not in GPU_ENGINES:
            known = ", ".join(GPU_ENGINES)
            raise InputError(f"--engines: no engine {name!r}: there are {known}")
        if lacks(name):
            modules = " ".join(NEEDS[name])
            raise InputError(f"--engines: {name} needs `pip install {modules}` beside tvmsep")
    return names


def find_target(name: str | None) -> Target:
    """The target that is asked for, else the first whose capability is this device's.

    Raises:
        InputError: there is no device, it is emulated, or no target is for it.
    """
    from tvmsep.bundle.device import capability, device_misfit, emulated
    from tvmsep.targets import load_target, target_names

    targets = [load_target(n) for n in ([name] if name else target_names())]
    reasons: list[str] = []
    ours = [t for t in targets if t.gpu is not None]
    if name and not ours:
        raise InputError(f"--target {name} has no GPU: give one of a CUDA device")
    for target in sorted(ours, key=lambda t: t.gpu is not None and t.gpu.ptx):
        assert target.gpu is not None
        why = device_misfit(target.gpu)
        if why is None and not target.gpu.ptx and capability() != target.gpu.compute_capability:
            why = f"{target.name} is tuned for {target.gpu.arch}, the device is sm_{capability()}"
        if why is None and emulated():
            raise InputError("the CUDA device here is emulated: its times say nothing about speed")
        if why is None:
            return target
        reasons.append(why)
    told = reasons[0] if reasons else "no target has a GPU"
    raise InputError(f"nothing can be measured here: {told}")


def tune(spec: str, model: Path, dtype: str, target: Target, args: argparse.Namespace) -> list[str]:
    """Tune one network, and the logs that `tvmsep` is then built from."""
    import tvmsep

    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in Path(spec).name)
    log = (args.logs / f"{target.name}-{safe}-{dtype}.jsonl").resolve()
    if args.budget is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        say(f"tuning {spec} in {dtype} for {target.name}: {args.budget:g} s; log {log}")
        tvmsep.tune(
            str(model), out=model.with_name(f"tuned-{dtype}.tvmsep"), target=target, dtype=dtype,
            budget_s=args.budget, log=log, say=say,
        )  # fmt: skip
    return [*([str(log)] if log.is_file() else []), *args.log]


def table(rows: Sequence[Row], series: Sequence[Series], versions: dict[str, str]) -> str:
    """Markdown, the fastest first."""
    lost = {s.turn.engine: s.failure for s in series if s.failure is not None}

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for r in rows:
        note = "WRONG OUTPUT" if r.wrong else str(lost.get(r.turn.engine, ""))
        cells = (
            r.turn.engine, versions.get(r.turn.engine, ""), f"{1e3 * r.lowest_s:.3f}",
            f"{1e3 * r.highest_s:.3f}", number(r.ratio), number(r.paired),
            f"{100 * r.peak_share:.1f} %", f"{r.error:.1e}", note,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compare_all(args: argparse.Namespace, target: Target, folder: Path) -> None:
    """Everything that the command line asks for, with its files in `folder`."""
    assert target.gpu is not None
    engines = [GPU_ENGINES[name] for name in args.engines]
    pythons, failed = install(engines, args.environments or environment.cache_folder())
    engines = [e for e in engines if e.name in pythons]
    if not engines:
        raise InputError("no engine could be installed: see above")
    found: list[dict[str, Any]] = []
    for n, spec in enumerate(args.networks):
        for dtype in args.dtypes:
            here = folder / f"{n}-{dtype}"
            here.mkdir()
            network = write_network(spec, args.batch, target, here)
            logs = tune(spec, network.model, dtype, target, args)
            runner = Runner(
                network, here, pythons, "native", args.runs, args.timeout, logs, dtype=dtype,
                target=target.name,
            )  # fmt: skip
            series, gone, _ = compare(runner, engines, args, table=GPU_ENGINES)
            peers = frozenset(e.name for e in engines if not e.ours)
            rows = summarise(
                series, peers=peers, flops=network.flops,
                peak_flops_per_core=target.gpu.fp32_flops, error_limit=TOLERANCE[dtype],
            )  # fmt: skip
            print(f"{spec}, {dtype}, batch {args.batch}, {target.name}\n")
            print(table(rows, series, runner.versions), end="\n\n")
            left_out = {**failed, **gone}
            for name, why in left_out.items():
                print(f"  {name}: {why}")
            found.append(_json(spec, dtype, runner, rows, left_out))
            if args.json is not None:
                about = report.machine(target.name, [])
                write_json(args.json, {"machine": about, "networks": found})


def _json(
    spec: str, dtype: str, runner: Runner, rows: Sequence[Row], left_out: dict[str, Any]
) -> dict[str, Any]:
    return {
        "network": spec, "dtype": dtype, "sha256": runner.network.sha256,
        "versions": runner.versions, "facts": runner.facts, "rows": [asdict(r) for r in rows],
        "left_out": {name: str(why) for name, why in left_out.items()},
    }  # fmt: skip


def main(words: Sequence[str]) -> None:
    """Find the device before anything is installed or tuned, then compare."""
    args = parse(words)
    target = find_target(args.target)
    with tempfile.TemporaryDirectory(prefix="tvmsep-cuda-") as folder:
        compare_all(args, target, Path(folder))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminated)
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except TvmsepError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
