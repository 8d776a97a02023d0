"""Every kind of network that tvmsep takes, tuned here, against onnxruntime on the same threads.

    python benchmarks/zoo.py --budget 75 --rounds 5 --json zoo.json
    python benchmarks/zoo.py --networks unet,zoo:pplcnet --logs /tmp/zoo

The networks are the built-ins, published models with their own weights, and the rest of the family
as the tests define it, at 224x224. Each is tuned for `--budget` seconds into a log of its own
(`--logs` keeps them, and a second run goes on with what they hold), built, and timed against
onnxruntime in rounds of fresh processes, as in `x86.py`. The ratio is the lowest round's to the
lowest round's; `paired` is the median over rounds of the ratio within one. Exit status 1 if a
network is slower than onnxruntime.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import x86
from engines import ENGINES
from harness import environment, report
from harness.model import specs, write_network
from harness.protocol import write_json
from harness.rounds import Row, summarise
from harness.runner import Runner

from tvmsep.contracts import InputError, Target, TvmsepError

if TYPE_CHECKING:
    import onnx

ROOT = Path(__file__).parents[1]
SIDE = 224
PATCH = 16
MIN_CHANGE = 0.001
"""What another input must change the output by: ten times the error that is let pass."""
BUILT_IN = (
    "mobilenet_v1", "mobilenet_v1:width=0.25,resolution=128", "mobilenet_v2",
    "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet_1_0", "efficientnet_lite0",
)  # fmt: skip
PUBLISHED = ("zoo:mobilenet_v2", "zoo:pplcnet")


def family() -> dict[str, Callable[[int], onnx.ModelProto]]:
    """Name to definition, of those that the tests define."""
    sys.path.append(str(ROOT / "tests"))
    from family_kit import NETWORKS

    return NETWORKS


def one_output(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Several outputs joined as one row, as the harness compares one array."""
    from onnx import TensorProto, helper

    graph = proto.graph
    if len(graph.output) == 1:
        return proto
    shape = helper.make_tensor("joined_shape", TensorProto.INT64, [2], [1, -1])
    graph.initializer.append(shape)
    rows = []
    for value in graph.output:
        rows.append(f"{value.name}_row")
        graph.node.append(helper.make_node("Reshape", [value.name, shape.name], [rows[-1]]))
    graph.node.append(helper.make_node("Concat", rows, ["joined"], axis=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("joined", TensorProto.FLOAT, None))
    return proto


def written(name: str, folder: Path) -> str:
    """What `x86.py` calls the network: a built-in, or an ONNX file in `folder`."""
    import onnx

    if name in family():
        proto = family()[name](SIDE)
    elif name.startswith("zoo:"):
        from tvmsep.frontends import onnx_clean, zoo

        entry = zoo.model(name.removeprefix("zoo:"))
        proto = onnx_clean.clean(entry.proto(), entry.shapes)
    else:
        return name
    path = folder / f"{name.replace(':', '_')}.onnx"
    onnx.save(one_output(proto), path)
    return str(path)


def rough_inputs(path: Path, shape: tuple[int, ...]) -> None:
    """Two inputs of 16x16 patches: white noise would vanish in the mean over 224x224 pixels."""
    coarse = (2, *shape[:2], *(-(-s // PATCH) for s in shape[2:]))
    noise = 4 * np.random.default_rng(7).standard_normal(coarse, dtype=np.float32)
    fine = noise.repeat(PATCH, axis=3).repeat(PATCH, axis=4)
    np.save(path, np.ascontiguousarray(fine[..., : shape[2], : shape[3]]))


def tune(model: str, log: Path, args: argparse.Namespace) -> float:
    """Tune into `log`; seconds that took."""
    import tvmsep

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tvmsep.tune(
            model, out=Path(folder) / "net.tvmsep", threads=[args.threads], budget_s=args.budget,
            log=log, say=lambda text: x86.say(f"  {text}"),
        )  # fmt: skip
    return time.monotonic() - start


def measured(
    name: str, pythons: dict[str, Path], target: Target, peak: float,
    folder: Path, args: argparse.Namespace,
) -> tuple[list[Row], dict[str, Any]]:  # fmt: skip
    """Tune one network and time it: its rows, and what the JSON says of it."""
    model = written(name, folder)
    network = write_network(model, 1, target, folder)
    rough_inputs(network.inputs, network.shape)
    logs = args.logs or folder
    log = logs / f"{name.translate(str.maketrans(':=,', '___'))}.jsonl"
    took_s = tune(str(network.model), log, args) if args.budget else 0.0
    turn = argparse.Namespace(threads=[args.threads], rounds=args.rounds, seed=args.seed)
    runner = Runner(network, folder, pythons, "native", args.runs, args.timeout,
                    [str(log)] if log.is_file() else None)  # fmt: skip
    engines = [ENGINES[e] for e in args.engines]
    series, gone, change = x86.compare(runner, engines, turn, MIN_CHANGE)
    for who, why in gone.items():
        print(f"  {name}: {who}: {why}")
    rows = summarise(
        series, peers=frozenset(e.name for e in engines if not e.ours), flops=network.flops,
        peak_flops_per_core=peak, error_limit=report.ERROR_LIMIT,
    )  # fmt: skip
    said = report.network_json(runner, series, rows, change)
    return rows, {**said, "network": name, "tuned_s": took_s}


def table(results: dict[str, list[Row]]) -> list[str]:
    """Print all networks; those slower than the best peer."""
    from tvmsep.cli.table import print_table

    body, slower = [], []
    for name, rows in results.items():
        by = {r.turn.engine: r for r in rows}
        ours, peer = by.get("tvmsep") or by.get("tvmsep-untuned"), by.get("onnxruntime")
        if ours is None or peer is None or ours.ratio is None:
            slower.append(name)
            body.append((name, *[""] * 5, "not measured"))
            continue
        if ours.ratio > 1.0 or ours.wrong:
            slower.append(name)
        body.append(
            (name, f"{1e3 * ours.lowest_s:.3f}", f"{1e3 * peer.lowest_s:.3f}",
             f"{ours.ratio:.2f}", f"{ours.paired:.2f}", f"{ours.error:.0e}",
             "WRONG" if ours.wrong else "slower" if ours.ratio > 1.0 else "")
        )  # fmt: skip
    head = ("network", "tvmsep ms", "onnxruntime ms", "ratio", "paired", "error", "")
    print_table(head, body, left=1)
    return slower


def main() -> int:
    """The command."""
    names = [*BUILT_IN, *PUBLISHED, *family()]
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--networks", default=",".join(names), help="(%(default)s)")
    p.add_argument("--engines", default="tvmsep,onnxruntime", help="(%(default)s)")
    p.add_argument("--budget", type=float, default=75.0, help="tuning seconds each; 0: no tuning")
    p.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    p.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    p.add_argument("--runs", type=int, default=100, help="timed calls a process (%(default)s)")
    p.add_argument("--timeout", type=int, default=180, help="seconds a process (%(default)s)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--logs", type=Path, help="folder that keeps the tuning logs")
    p.add_argument("--json", type=Path, help="write everything measured there")
    args = p.parse_args()
    from tvmsep.targets import load_target

    args.engines = [e.strip() for e in args.engines.split(",")]
    if unknown := [e for e in args.engines if e not in ENGINES]:
        raise InputError(f"--engines: no engine {unknown[0]!r}: there are {', '.join(ENGINES)}")
    if args.logs is not None:
        args.logs = args.logs.resolve()
        args.logs.mkdir(parents=True, exist_ok=True)
    target = load_target("local")
    pythons, _ = x86.install([ENGINES[e] for e in args.engines], environment.cache_folder())
    peak = x86.measure_peak(target)
    results: dict[str, list[Row]] = {}
    said = []
    for name in specs(args.networks):
        folder = Path(tempfile.mkdtemp(prefix="tvmsep-zoo-"))
        try:
            x86.say(f"{name}: {len(results) + 1} of {len(specs(args.networks))}")
            results[name], facts = measured(name, pythons, target, peak, folder, args)
            said.append(facts)
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
        if args.json is not None:
            machine = report.machine(target.name, [peak])
            settings = {k: v for k, v in vars(args).items() if k not in ("json", "logs")}
            write_json(args.json, {"machine": machine, "settings": settings, "networks": said})
    slower = table(results)
    print(f"{len(results)} networks, {len(slower)} slower than onnxruntime: "
          f"{', '.join(slower) or 'none'}")  # fmt: skip
    return 1 if slower else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        os._exit(130)
    except TvmsepError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
