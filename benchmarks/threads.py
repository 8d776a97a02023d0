"""What a second thread is worth, beside what a second core of this machine is worth at all.

    python benchmarks/threads.py mobilenet_v1 mobilenet_v2 --threads 2 --batch 8
    python benchmarks/threads.py mobilenet_v2 --busy 1

In turns, in fresh processes: the network on one thread; as many processes of that at once, which
share nothing but the machine; the network on several threads; and a batch on several threads. The
second of these says what there is to win: two CPUs of a virtual machine may be one core's two
hyperthreads, share a clock budget, or stand beside a neighbour. Times are of one image. With
`--busy` a program without end holds on to so many CPUs meanwhile (Linux only).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tvmsep.api import build
from tvmsep.contracts import TvmsepError

TURN_S = 0.4
"""About how long one turn lasts."""


class Seat:
    """A process that runs a bundle so many times when told to."""

    def __init__(self, bundle: Path, threads: int) -> None:
        words = [sys.executable, __file__, "--seat", str(bundle), str(threads)]
        self._child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.images = int(self._line())

    def _line(self) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise TvmsepError(f"a process of this benchmark ended with {self._child.wait(10)}")
        return line

    def start(self, runs: int) -> None:
        """Begin so many runs."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{runs}\n")
        self._child.stdin.flush()

    def wait(self) -> float:
        """Seconds that they took."""
        return float(self._line())

    def end(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.wait()


def sit(bundle: str, threads: int) -> None:
    """What a seat's process does: a line with a count comes in, one with seconds goes out."""
    from tvmsep.bundle import Bundle

    with Bundle.load(bundle, threads=threads) as net:
        (x,) = net.manifest.specialisations[0].inputs
        picture = np.random.default_rng(0).standard_normal(x.shape, dtype=np.float32)
        net(picture)
        print(x.shape[0], flush=True)
        for line in sys.stdin:
            start = time.perf_counter()
            for _ in range(int(line)):
                net(picture)
            print(time.perf_counter() - start, flush=True)


@dataclass
class Way:
    """One way to use the machine, and seconds an image of each of its turns."""

    name: str
    seats: list[Seat]
    image_s: list[float] = field(default_factory=list)

    def turn(self, runs: int) -> float:
        """Run all seats at once; seconds an image."""
        for seat in self.seats:
            seat.start(runs)
        slowest = max(seat.wait() for seat in self.seats)
        return slowest / (runs * sum(seat.images for seat in self.seats))


@contextlib.contextmanager
def busy(cpus: int) -> Iterator[None]:
    """Programs that run without end on the last so many CPUs."""
    where = sorted(os.sched_getaffinity(0))[-cpus:] if cpus else []
    endless = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    children = [subprocess.Popen([sys.executable, "-c", endless, str(cpu)]) for cpu in where]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def play(model: str, threads: int, batch: int, rounds: int, target: str, log: bool) -> list[Way]:
    """Build the bundles and let the ways take turns.

    Raises:
        TvmsepError: the model cannot be built, or does not run here.
    """
    joint = "," if ":" in model else ":"
    with tempfile.TemporaryDirectory(prefix="tvmsep-threads-") as folder:
        one, many = Path(folder) / "one.tvmsep", Path(folder) / "many.tvmsep"
        logs: Any = None if log else []
        build(model, out=one, target=target, threads=[1, threads], logs=logs)
        build(f"{model}{joint}batch={batch}", out=many, target=target, threads=[threads], logs=logs)
        ways = [
            Way("one thread", [Seat(one, 1)]),
            Way(f"{threads} processes of one thread", [Seat(one, 1) for _ in range(threads)]),
            Way(f"{threads} threads", [Seat(one, threads)]),
            Way(f"batch {batch}, {threads} threads", [Seat(many, threads)]),
        ]
        try:
            runs = [max(1, round(TURN_S / (way.turn(1) * way.seats[0].images))) for way in ways]
            for _ in range(rounds):
                for way, count in zip(ways, runs, strict=True):
                    way.image_s.append(way.turn(count))
        finally:
            for seat in [seat for way in ways for seat in way.seats]:
                seat.end()
    return ways


def main() -> int:
    """Parse the command line and print a table a network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])  # type: ignore[union-attr]
    parser.add_argument("models", nargs="*", default=["mobilenet_v1", "mobilenet_v2"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--target", default="local")
    parser.add_argument("--no-logs", action="store_true", help="the analytic defaults alone")
    parser.add_argument("--busy", type=int, default=0, help="CPUs that another program uses")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = {}
    for model in args.models:
        try:
            with busy(args.busy):
                ways = play(
                    model, args.threads, args.batch, args.rounds, args.target, not args.no_logs
                )
        except TvmsepError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        alone = ways[0].image_s
        table = Table("way", "ms an image: least", "median", "times one thread", title=model)
        rows = []
        for way in ways:
            ratios = [a / b for a, b in zip(alone, way.image_s, strict=True)]
            least, middle = min(way.image_s) * 1e3, median(way.image_s) * 1e3
            rows.append(
                {"way": way.name, "least_ms": least, "median_ms": middle, "times": median(ratios)}
            )
            table.add_row(way.name, f"{least:.2f}", f"{middle:.2f}", f"{median(ratios):.2f}")
        found[model] = rows
        if not args.json:
            Console(width=100).print(table)
    if args.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--seat"]:
        sit(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(main())
