"""A bundle under load: threads call it together, every answer is checked, memory must stay flat.

    tvmsep build mobilenet_v2 -o net.tvmsep
    python benchmarks/stress.py net.tvmsep
    python benchmarks/stress.py net.tvmsep other.tvmsep --calls 10000 --callers 2

Each thread calls each bundle in turn, with one of a few inputs whose answers were noted before.
Three in four calls block; the fourth is awaited by an event loop of the thread's own. Printed are
how many calls were wrong, how long it took, and how resident memory grew from the end of the first
tenth to the end of the run. The exit status is 1 for a wrong answer, or more than 1 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvmsep.bundle import Bundle

INPUTS = 4
GROWTH_BYTES = 1 << 20


def rss_bytes() -> int:
    """Resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@dataclass
class Result:
    """What a run showed."""

    calls: int
    wrong: int
    errors: list[str]
    seconds: float
    grown_bytes: int

    @property
    def good(self) -> bool:
        """Every answer right, memory flat."""
        return not self.wrong and not self.errors and self.grown_bytes <= GROWTH_BYTES


def stress(nets: Sequence[Bundle], calls: int, callers: int = 2) -> Result:
    """Call bundles from several threads at once.

    Args:
        nets: who is called, in turn.
        calls: all calls together.
        callers: how many threads.
    """
    inputs = [[net.noise(seed) for seed in range(INPUTS)] for net in nets]
    wanted = [
        [parts(net(*arrays)) for arrays in mine]
        for net, mine in zip(nets, inputs, strict=True)
    ]  # fmt: skip
    done, wrong, errors = [0] * callers, [0] * callers, []
    gate = threading.Barrier(callers + 1, timeout=60)
    share = calls // callers

    def call(me: int) -> None:
        loop = asyncio.new_event_loop()
        try:
            gate.wait()
            for i in range(share):
                net, which = (i + me) % len(nets), (3 * i + me) % INPUTS
                arrays = inputs[net][which]
                if i % 4 == 3:
                    got = loop.run_until_complete(nets[net].acall(*arrays))
                else:
                    got = nets[net](*arrays)
                same = zip(parts(got), wanted[net][which], strict=True)
                wrong[me] += not all(np.array_equal(a, b) for a, b in same)
                done[me] += 1
        except Exception as error:  # a thread has nobody else to tell
            errors.append(f"{type(error).__name__}: {error}")
        finally:
            loop.close()

    threads = [threading.Thread(target=call, args=(me,)) for me in range(callers)]
    for thread in threads:
        thread.start()
    gate.wait()
    begin = time.monotonic()
    while sum(done) < share * callers // 10 and any(t.is_alive() for t in threads):
        time.sleep(0.005)
    before = rss_bytes()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begin
    gc.collect()
    return Result(sum(done), sum(wrong), errors, seconds, rss_bytes() - before)


def parts(result: object) -> tuple[np.ndarray, ...]:
    """The outputs of a call, also of one output."""
    return result if isinstance(result, tuple) else (result,)  # type: ignore[return-value]


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--callers", type=int, default=2)
    parser.add_argument("--threads", type=int, help="of each bundle")
    asked = parser.parse_args()
    nets = [Bundle.load(path, asked.threads) for path in asked.bundles]
    result = stress(nets, asked.calls, asked.callers)
    for net in nets:
        net.close()
    for error in result.errors:
        print(error)
    print(
        f"{result.calls} calls of {len(nets)} bundle(s) from {asked.callers} threads in "
        f"{result.seconds:.1f} s: {result.wrong} wrong; memory grew by "
        f"{result.grown_bytes / 1024:.0f} KiB to {rss_bytes() / 1e6:.0f} MB"
    )
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
