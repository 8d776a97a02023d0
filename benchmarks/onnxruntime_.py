"""tvmsep against onnxruntime on this machine: the figures that the README quotes.

    python benchmarks/onnxruntime_.py mobilenet_v1 mobilenet_v2 --threads 1,2 --rounds 5
    python benchmarks/onnxruntime_.py mobilenet_v2 --tuned v2.jsonl --json results.json

Every engine gets the same network and the same seeded input, in a fresh process each round (a
whole process can sit in a slow state), engines in turn within a round. A round's figure is the
median of its timed calls; the table shows the lowest and the median of the rounds, and the ratio
to onnxruntime's lowest. Both are called through their public Python API, input and output copies
included. Outputs are compared with onnxruntime's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WARM, CALLS = 10, 50


def child(engine: str, path: str, threads: int, source: str) -> None:
    """One engine in this process; prints one JSON line."""
    import numpy as np

    x = np.load(source)
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def call() -> object:
            return session.run(None, {name: x})[0]
    else:
        from tvmsep import Bundle

        net = Bundle.load(path, threads)

        def call() -> object:
            return net(x)

    for _ in range(WARM):
        out = call()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        out = call()
        times.append(time.perf_counter() - start)
    result = np.asarray(out).ravel()[:1000].tolist()
    print(json.dumps({"median_s": statistics.median(times), "min_s": min(times), "out": result}))


def run(engine: str, path: Path, threads: int, source: Path) -> dict:
    """A fresh process for one engine."""
    command = [sys.executable, __file__, "--child", engine, str(path), str(threads), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        sys.exit(f"{engine} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(spec: str, threads: int, log: str | None, rounds: int, folder: Path) -> list[dict]:
    """All engines on one network at one thread count."""
    import numpy as np
    import onnx

    import tvmsep
    from tvmsep.frontends import builtin_proto, load_model

    model = folder / "model.onnx"
    proto = builtin_proto(spec) if not spec.endswith(".onnx") else onnx.load(spec)
    onnx.save(proto, model)
    shape = load_model(str(model)).inputs[0].shape
    source = folder / "input.npy"
    np.save(source, np.random.default_rng(7).standard_normal(shape, dtype=np.float32))
    engines = {"onnxruntime": model, "tvmsep --no-logs": folder / "default.tvmsep"}
    tvmsep.build(str(model), out=engines["tvmsep --no-logs"], threads=[threads], logs=())
    if log:
        engines["tvmsep tuned"] = folder / "tuned.tvmsep"
        report = tvmsep.build(
            str(model), out=engines["tvmsep tuned"], threads=[threads], logs=[log]
        )
        print(f"# {spec}: {report.tuned} of {report.tasks} kernels tuned", file=sys.stderr)
    medians: dict[str, list[float]] = {e: [] for e in engines}
    outputs: dict[str, np.ndarray] = {}
    for _ in range(rounds):
        for engine, path in engines.items():
            answer = run(engine.split()[0], path, threads, source)
            medians[engine].append(answer["median_s"])
            outputs[engine] = np.asarray(answer["out"])
    base = outputs["onnxruntime"]
    rows = []
    for engine, values in medians.items():
        # Round by round: neighbours in time share the machine's mood.
        pairs = [a / b for a, b in zip(values, medians["onnxruntime"], strict=True)]
        rows.append(
            {
                "model": spec, "threads": threads, "engine": engine,
                "lowest_ms": 1e3 * min(values), "median_ms": 1e3 * statistics.median(values),
                "worst_ms": 1e3 * max(values),
                "ratio_lowest": min(values) / min(medians["onnxruntime"]),
                "ratio_paired": statistics.median(pairs),
                "max_rel_diff": float(np.abs(outputs[engine] - base).max() / np.abs(base).max()),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    """Parse, run, print."""
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="built-ins or .onnx files")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tuned", metavar="LOG", help="also run the configs of this tuning log")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    args = parser.parse_args()
    from tvmsep.targets import host_cpu, local_target

    rows: list[dict] = []
    machine = f"{host_cpu()[0]}, target {local_target().name}"
    print(f"# {machine}, {args.rounds} rounds of fresh processes")
    head = f"{'model':34}{'threads':>8}  {'engine':18}{'lowest':>9}{'median':>9}{'worst':>9}"
    print(head + f"{'ratio':>8}{'paired':>8}{'diff':>9}")
    for spec in args.models:
        for threads in map(int, args.threads.split(",")):
            with tempfile.TemporaryDirectory(prefix="tvmsep-") as folder:
                found = compare(spec, threads, args.tuned, args.rounds, Path(folder))
            rows += found
            for r in found:
                print(
                    f"{r['model']:34}{r['threads']:>8}  {r['engine']:18}{r['lowest_ms']:9.2f}"
                    f"{r['median_ms']:9.2f}{r['worst_ms']:9.2f}{r['ratio_lowest']:8.3f}"
                    f"{r['ratio_paired']:8.3f}{r['max_rel_diff']:9.1e}",
                    flush=True,
                )
    if args.json:
        about = {"cpu": machine, "system": platform.platform(), "python": sys.version}
        Path(args.json).write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
