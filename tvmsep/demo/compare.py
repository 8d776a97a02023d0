"""One bundle against onnxruntime, interleaved in one process so that both meet the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

ROUNDS = 20
WARM_RUNS = 2
RUNS = 8
REST_S = 0.25
"""Pause before each turn: an engine's idle threads spin for a while before they sleep."""


@dataclass(frozen=True)
class Comparison:
    """Times of one run in seconds, one value per timed run, taken in turns."""

    threads: int
    ours_s: tuple[float, ...]
    theirs_s: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Our median over theirs: below 1 is faster."""
        return statistics.median(self.ours_s) / statistics.median(self.theirs_s)


def spread(times_s: tuple[float, ...]) -> tuple[float, float]:
    """Lower and upper quartile in seconds."""
    low, _, high = statistics.quantiles(times_s, n=4)
    return low, high


def against_onnxruntime(
    bundle: Path, proto: onnx.ModelProto, threads: int, *, rounds: int = ROUNDS
) -> Comparison:
    """Time a bundle and onnxruntime on the same input, in turns.

    Args:
        bundle: a `.tvmsep` file with one input.
        proto: the model it was made from.
        threads: of both.
        rounds: turns of each; a turn is `RUNS` timed runs.

    Raises:
        ImportError: onnxruntime is not installed.
        TvmsepError: the bundle does not load here.
    """
    import onnxruntime

    from tvmsep.bundle import Bundle

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    with Bundle.load(bundle, threads) as net:
        (array,) = net.noise(0)
        feed = {session.get_inputs()[0].name: array}
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(rounds):
            ours += _turn(lambda: net(array))
            theirs += _turn(lambda: session.run(None, feed))
    return Comparison(threads, tuple(ours), tuple(theirs))


def _turn(call: Callable[[], Any]) -> list[float]:
    time.sleep(REST_S)
    for _ in range(WARM_RUNS):
        call()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
