"""tvmsep against other engines on this x86 machine: the figures that the README quotes.

    python benchmarks/x86.py
    python benchmarks/x86.py --networks mobilenet_v2:width=1.4,resolution=160 --rounds 5
    python benchmarks/x86.py --engines tvmsep,onnxruntime,openvino --threads 2 --json results.json
    python benchmarks/x86.py --isa avx2 --engines tvmsep-untuned,openvino,inductor

Every engine gets the same ONNX file, the same seeded inputs and the same thread count, set through
its own API. Each has a virtual environment of its own, made the first time (they take some GB),
and each measurement a process of its own. A round runs all of them once, at all thread counts, in
shuffled order; a round's figure is the median of its timed calls, from one NumPy array to another.

The table shows for each engine the lowest and the highest round, and the lowest as a ratio to the
best peer's lowest. `paired` is the median over rounds of the ratio within a round, which slow
spells of the machine disturb less. `of peak` is the share of the FMA peak, measured before each
network. `error` is the largest difference from onnxruntime's output over two inputs; an engine
beyond float32's is marked and is no best peer. With `--isa avx2` the best peer is sought among
those that could be limited.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from engines import ENGINES, Engine
from harness import environment, report
from harness.model import MIN_CHANGE, check_change, specs, write_network
from harness.process import Failure
from harness.protocol import write_json
from harness.rounds import Sample, Turn, play, summarise
from harness.runner import Runner

from tvmsep.contracts import InputError, Target, TvmsepError

REFERENCE = "onnxruntime"
LOCK_TIMEOUT_S = 1800.0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see --help", file=sys.stderr)
        raise SystemExit(2)


def parser(about: str) -> argparse.ArgumentParser:
    """One whose mistakes are one line that begins with `error:`."""
    return _Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line, its lists taken apart.

    Raises:
        InputError: a value that makes no sense here.
        SystemExit: argparse has said why.
    """
    from tvmsep.cli.options import thread_counts
    from tvmsep.targets import host_cores

    p = parser(__doc__ or "")
    p.add_argument(
        "--networks",
        default="mobilenet_v1,mobilenet_v2",
        metavar="A,B",
        help="built-ins with their options, or .onnx files (%(default)s)",
    )
    p.add_argument("--engines", default=",".join(ENGINES), metavar="A,B", help="(%(default)s)")
    p.add_argument("--threads", metavar="N,N", help="(1 and all cores)")
    p.add_argument("--batch", type=positive, default=1, help="pictures a call (%(default)s)")
    p.add_argument("--rounds", type=positive, default=3, help="(%(default)s)")
    p.add_argument("--runs", type=positive, default=50, help="timed calls a process (%(default)s)")
    p.add_argument(
        "--isa",
        choices=("native", "avx2"),
        default="native",
        help="avx2: our x86-avx2 build, and peers held to AVX2 where they can be",
    )
    p.add_argument(
        "--log",
        action="append",
        metavar="FILE",
        help="tuning log or bundle for `tvmsep`, any number; else the logs that it ships",
    )
    p.add_argument(
        "--timeout",
        type=positive,
        default=180,
        metavar="S",
        help="seconds for one measuring process (%(default)s)",
    )
    p.add_argument("--seed", type=int, default=0, help="of the order within rounds (%(default)s)")
    p.add_argument("--environments", type=Path, metavar="DIR", help="(the user's cache)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    args = p.parse_args(words)
    args.networks = specs(args.networks)
    args.engines = list(dict.fromkeys(e.strip() for e in args.engines.split(",")))
    for name in args.engines:
        if name not in ENGINES:
            raise InputError(f"--engines: no engine {name!r}: there are {', '.join(ENGINES)}")
    args.threads = thread_counts(args.threads) or sorted({1, host_cores()})
    if args.threads[-1] > host_cores():
        raise InputError(f"--threads {args.threads[-1]}: this process may use {host_cores()} cores")
    if args.runs < 4:
        raise InputError(f"--runs {args.runs}: a median with its quartiles needs at least 4")
    for log in args.log or ():
        if not Path(log).is_file():
            raise InputError(f"--log {log}: no such file")
    args.log = args.log and [str(Path(log).resolve()) for log in args.log]
    if args.json is not None:
        check_writable(args.json)
    return args


def check_writable(path: Path) -> None:
    """Find out before the work rather than after it."""
    if path.is_dir():
        raise InputError(f"--json: cannot write {path}: it is a folder; give a file name")
    try:
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
    except OSError as error:
        raise InputError(
            f"--json: cannot write {path}: {error.strerror}; give another place"
        ) from error


def say(text: str) -> None:
    """Progress, kept out of what is piped."""
    print(text, file=sys.stderr, flush=True)


def install(engines: Sequence[Engine], root: Path) -> tuple[dict[str, Path], dict[str, Failure]]:
    """The interpreter of each engine; what cannot be installed is left out."""
    pythons, failed = {}, {}
    for engine in engines:
        if engine.requirements:
            say(f"environment of {engine.name}: {' '.join(engine.requirements)}")
        found = environment.python_of(engine, root)
        if isinstance(found, Failure):
            say(f"  left out, {found}")
            failed[engine.name] = found
        else:
            pythons[engine.name] = found
    return pythons, failed


def measure_peak(target: Target) -> float:
    """FMA peak of one core in FLOP/s."""
    from tvmsep.measure import Farm

    with Farm(target, builders=1) as farm:
        return farm.peak_flops_per_core()


def compare(
    runner: Runner, engines: Sequence[Engine], args: argparse.Namespace,
    least_change: float = MIN_CHANGE, table: Mapping[str, Engine] = ENGINES,
) -> tuple[list[Any], dict[str, Failure], float]:  # fmt: skip
    """All rounds on one network: series, what was left out, how far inputs move the output."""
    from tvmsep.measure.lock import HostLock

    lock = HostLock(LOCK_TIMEOUT_S)
    try:
        with lock.hold(exclusive=False):
            reference = runner.reference(ENGINES[REFERENCE])
        change = check_change(reference, runner.network.spec, least_change)
        turns, failed = [], {}
        for engine in engines:
            for threads in args.threads:
                say(f"preparing {engine.name}, threads {threads}")
                with lock.hold(exclusive=False):
                    why = runner.prepare(engine, threads)
                if why is None:
                    turns.append(Turn(engine.name, threads))
                else:
                    say(f"  left out, {why}")
                    failed[f"{engine.name}/{threads}"] = why

        def measure(turn: Turn) -> Sample | Failure:
            with lock.hold(exclusive=True):
                return runner.measure(table[turn.engine], turn, reference)

        done, begin = 0, time.monotonic()

        def told(turn: Turn, round_: int, result: Sample | Failure) -> None:
            nonlocal done
            done += 1
            left_s = (time.monotonic() - begin) / done * (len(turns) * args.rounds - done)
            what = (
                str(result) if isinstance(result, Failure) else f"{1e3 * result.median_s:8.2f} ms"
            )
            say(
                f"round {round_} of {args.rounds}, {left_s:4.0f} s left: "
                f"{turn.engine:15} threads {turn.threads} {what}"
            )

        return play(turns, args.rounds, args.seed, measure, told), failed, change
    finally:
        lock.close()


def main(words: Sequence[str]) -> None:
    """Install, and for each network: write it, prepare, measure, print."""
    from tvmsep.targets import load_target

    args = parse(words)
    target = load_target("x86-avx2" if args.isa == "avx2" else "local")
    folder = Path(tempfile.mkdtemp(prefix="tvmsep-x86-"))
    try:
        compare_all(args, target, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare_all(args: argparse.Namespace, target: Target, folder: Path) -> None:
    """Everything that the command line asks for, with its files in `folder`."""
    written = []
    for n, spec in enumerate(args.networks):  # before any environment is made: it may be wrong
        (folder / str(n)).mkdir()
        written.append(write_network(spec, args.batch, target, folder / str(n)))
    engines = [ENGINES[name] for name in args.engines]
    pythons, failed = install(engines, args.environments or environment.cache_folder())
    engines = [e for e in engines if e.name in pythons]
    if not engines:
        raise InputError("no engine could be installed: see above")
    peers = frozenset(e.name for e in engines if not e.ours)
    limited = frozenset(e.name for e in engines if e.limited) & peers
    if args.isa == "avx2" and limited:
        peers = limited
    left_out = {name: str(why) for name, why in failed.items()}
    networks: list[dict[str, Any]] = []
    peaks: list[float] = []
    for network in written:
        here, spec = network.model.parent, network.spec
        peaks.append(measure_peak(target))
        runner = Runner(network, here, pythons, args.isa, args.runs, args.timeout, args.log)
        series, gone, change = compare(runner, engines, args)
        rows = summarise(
            series, peers=peers, flops=network.flops, peak_flops_per_core=max(peaks),
            error_limit=report.ERROR_LIMIT,
        )  # fmt: skip
        report.show(runner, series, rows, ENGINES, max(peaks))
        lost = {f"{s.turn.engine}/{s.turn.threads}": s.failure for s in series if s.failure}
        for name, why in {**failed, **gone, **lost}.items():
            print(f"  {name}: {why}")
        if args.isa == "avx2":
            for engine in engines:
                state = "limited by" if engine.limited else "NOT limited:"
                print(f"  {engine.name}: {state} {engine.avx2}")
        print(flush=True)
        left_out |= {f"{spec}: {name}": str(why) for name, why in gone.items()}
        networks.append(report.network_json(runner, series, rows, change))
        if args.json is not None:
            about = {"isa": args.isa, "batch": args.batch, "rounds": args.rounds}
            write_json(
                args.json,
                {
                    "machine": report.machine(target.name, peaks),
                    "settings": about | {"runs": args.runs, "seed": args.seed},
                    "engines": report.engines_json(runner, [ENGINES[e] for e in args.engines]),
                    "left_out": left_out,
                    "networks": networks,
                },
            )
        shutil.rmtree(here, ignore_errors=True)


def terminated(*_: object) -> NoReturn:
    """Ends as a shell says that SIGTERM ended it."""
    raise SystemExit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminated)
    np.seterr(all="ignore")
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except TvmsepError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
