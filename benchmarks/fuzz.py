"""Damaged files of every kind: each is read rightly or refused by one message.

    python benchmarks/fuzz.py --count 5000 --seed 0

Sound files (an ONNX model, Relay programs with their params, a bundle, a shipped log, target
files) are changed at random and read in worker processes with a time and a memory limit. A fault is
an exception that is no message, a process that dies, a time-out, or a new file beside the input.
`--keep` keeps the files that made one. Exit status 1 if there is one. A bundle's code is never run.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from harness.fuzzing import LIMIT_S, Seeds, attempt, mutate, mutate_member, warm
from harness.onnx_mutation import mutate_onnx

from tvmsep.measure.worker import Worker, WorkerDied, WorkerError, WorkerTimeout

ROOT = Path(__file__).parents[1]
MODEL = "mobilenet_v3_small:width=0.25,resolution=32,classes=4"
SIDE = 32


def seeds(folder: Path) -> list[Seeds]:
    """One of each kind and more; the bundle is built here."""
    import tvmsep
    from tvmsep.frontends import builtin_proto

    relay = ROOT / "tests" / "data" / "relay"
    sys.path.append(str(ROOT / "tests"))
    from family_kit import NETWORKS

    protos = [builtin_proto(MODEL), *(make(SIDE) for make in NETWORKS.values())]
    onnx_files = [p.SerializeToString(deterministic=True) for p in protos]
    found: list[Seeds] = [{"x.onnx": data} for data in onnx_files]
    found.append({"x.relay": (relay / "nhwc_let_33.relay").read_bytes()})
    both = {s: (relay / f"mini_v3_48.{s}").read_bytes() for s in ("relay", "params")}
    found.append({f"x.{s}": data for s, data in both.items()})
    bundle = folder / "seed.tvmsep"
    tvmsep.build(MODEL, out=bundle, target="x86-avx2", threads=1, logs=())
    found.append({"x.tvmsep": bundle.read_bytes()})
    log = next(iter(sorted((ROOT / "logs").rglob("*.jsonl"))))
    found.append({"x.jsonl": b"".join(log.read_bytes().splitlines(keepends=True)[:12])})
    target = (ROOT / "targets" / "x86-avx2.toml").read_bytes()
    found += [{"x.toml": target}, {"x.toml": b"resize = 256\ncrop = 224\nmean = [0.5, 0.5, 0.5]\n"}]
    return found


def case(kinds: list[Seeds], folder: Path, seed: int, n: int) -> Path:
    """Write damaged file `n` of a seed, and what belongs to it; the path of the one to open."""
    rng = random.Random(f"{seed}/{n}")
    files = dict(kinds[n % len(kinds)])
    victim = rng.choice(list(files))
    if victim == "x.onnx" and rng.random() < 0.8:
        files[victim] = mutate_onnx(files[victim], rng)
    elif victim == "x.tvmsep" and rng.random() < 0.6:
        files[victim] = mutate_member(folder.parent / "seed.tvmsep", rng)
    else:
        files[victim] = mutate(files[victim], rng)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder / next(iter(files))


def campaign(
    count: int, seed: int, keep: Path | None = None, limit_s: float = LIMIT_S
) -> tuple[Counter[str], list[str]]:
    """How often each kind of file was accepted and refused, and the faults."""
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="tvmsep-fuzz-") as scratch:
        place = Path(scratch)
        kinds = seeds(place)
        worker = Worker(warm)
        try:
            for n in range(count):
                path = case(kinds, place / "case", seed, n)
                before = {p.name for p in path.parent.iterdir()}
                try:
                    accepted = worker.call(attempt, str(path), limit_s=limit_s)
                    what = "accepted" if accepted else "refused"
                except (WorkerError, WorkerDied, WorkerTimeout) as error:
                    what = "FAULT"
                    faults.append(f"{path.suffix} {n}: {str(error).strip().splitlines()[-1]}")
                    if not isinstance(error, WorkerError):
                        worker.kill()
                        worker = Worker(warm)
                left = {p.name for p in path.parent.iterdir()} - before
                if left:
                    what = "FAULT"
                    faults.append(f"{path.suffix} {n}: left {', '.join(sorted(left))}")
                outcomes[f"{path.suffix} {what}"] += 1
                if what == "FAULT" and keep is not None:
                    shutil.copytree(path.parent, keep / str(n), dirs_exist_ok=True)
        finally:
            worker.kill()
    return outcomes, faults


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files that made a fault")
    args = parser.parse_args()
    start = time.monotonic()
    outcomes, faults = campaign(args.count, args.seed, args.keep)
    for name, number in sorted(outcomes.items()):
        print(f"{name:20} {number}")
    for fault in faults:
        print(fault)
    print(f"{args.count} files, {len(faults)} faults, {time.monotonic() - start:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
