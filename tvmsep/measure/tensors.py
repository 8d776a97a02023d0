"""A task's tensors on a board, and how a loaded candidate is checked and timed with them.

Two harnesses: on a CPU the candidate's library brings one that was compiled for the task's shapes
(`harness.py`), on a CUDA device `compiler/events.c`, which takes any. Both sweep the caches, write
the input afresh and time the kernel alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tvmsep.codegen import example_inputs, reference, relative_error
from tvmsep.codegen.reference import Array, input_shapes, unblock
from tvmsep.compiler import stamps_dtype
from tvmsep.contracts import Target, Task, Workload
from tvmsep.contracts.workload import tolerance
from tvmsep.measure import harness
from tvmsep.measure.results import Failed, Measured

TRIAL_S = 0.02
"""Time one trial should spend in repeats, sweeps and producers included."""
MIN_REPEATS = 8
SLOW_TRIAL_S = 1.0
"""A candidate so slow that `MIN_REPEATS` take longer gets fewer, but at least `SLOW_REPEATS`."""
SLOW_REPEATS = 3
WARM_REPEATS = 2


def empty(shape: tuple[int, ...], dtype: str, device: Any, fill: Array | None = None) -> Any:
    """A tensor on a device, of any contents unless `fill` says."""
    from tvm import runtime

    tensor = runtime.empty(shape, dtype, device)
    return tensor if fill is None else tensor.copyfrom(fill)


def nbytes(w: Workload) -> int:
    """Roughly what a task's tensors take: its first input is there twice, and so is its output."""
    sizes = [math.prod(shape) for _, shape in input_shapes(w)]
    return (sum(sizes) + sizes[0] + 2 * math.prod(w.out_shape)) * np.dtype(w.dtype).itemsize


class TaskTensors:
    """One task's tensors on a board, and what its output must be.

    Args:
        task: whose they are.
        target: what candidates are compiled for.
        device: where the kernels run.
        host: the CPU that launches them.
        sweep: scratch memory of `harness.sweep_shape`.
        seed: of the random inputs.
    """

    def __init__(
        self, task: Task, target: Target, device: Any, host: Any, sweep: Any, seed: int
    ) -> None:
        w = task.workload
        self._channels, self._limit = w.oc, tolerance(w.dtype, target)
        inputs = example_inputs(w, seed)
        # fp32: some 1e-6 off, far below the tolerance, and several times sooner there.
        self._want = want = reference(w, inputs, "float32")
        made = [empty(a.shape, str(a.dtype), device, a) for a in inputs]
        self._source = empty(inputs[0].shape, str(inputs[0].dtype), device)
        made[0].copyto(self._source)  # on the board: RPC moves some 60 MB/s
        out = empty(want.shape, w.out_dtype, device)
        self._params, self._sweep = [*made, out], sweep
        self.nbytes = nbytes(w)
        self._poison: Any = None
        if target.gpu is None:
            self._stamps = empty((harness.MAX_REPEATS, 4), stamps_dtype(target), host)
        else:
            self._stamps = empty((harness.MAX_REPEATS, 2), "float64", host)
            nan = np.full(want.shape, np.nan, w.out_dtype)
            self._poison = empty(nan.shape, w.out_dtype, device, nan)

    def measure(self, module: Any, repeats: int | None) -> Measured | Failed:
        """Check a candidate's output, then time it; None repeats it as often as `TRIAL_S` allows.

        The output holds NaN before, so that an element left unwritten shows.
        """
        out = self._params[-1]
        if self._poison is None:
            module[harness.POISON](out)
        else:
            self._poison.copyto(out)
        module[harness.KERNEL](*self._params)
        got = out.numpy()
        error = relative_error(got, self._want, self._channels)
        if not error <= self._limit:
            detail = _difference(got, self._want, error, self._limit, self._channels)
            return Failed("wrong_output", detail)
        first = self._stamps_ns(module, WARM_REPEATS)
        each_s = int(first[-1, 1] - first[0, 1]) * 1e-9 / (WARM_REPEATS - 1)
        count = min(repeats or _repeats(each_s), harness.MAX_REPEATS)
        stamps = self._stamps_ns(module, count)
        return Measured(tuple(int(ns) / 1e9 for ns in stamps[:, 1] - stamps[:, 0]), error)

    def _stamps_ns(self, module: Any, count: int) -> Array:
        """When each run of the kernel began and ended: `[count, 2]` in nanoseconds."""
        timer = module[harness.TIMER]
        timer(self._source, *self._params, self._sweep, self._stamps, count)
        words = self._stamps.numpy()[:count]
        ns: Array
        if self._poison is None:
            words = words.astype(np.int64)
            ns = words[:, ::2] * 1_000_000_000 + words[:, 1::2]
        else:
            ns = np.rint(np.cumsum(words, axis=1) * 1e9).astype(np.int64)
        return ns


def _repeats(each_s: float) -> int:
    """How many repeats of `each_s` seconds make a trial."""
    if each_s * MIN_REPEATS > SLOW_TRIAL_S:
        return max(SLOW_REPEATS, int(SLOW_TRIAL_S / each_s))
    return max(MIN_REPEATS, min(harness.MAX_REPEATS, int(TRIAL_S / max(each_s, 1e-9))))


def _difference(got: Array, want: Array, error: float, limit: float, channels: int) -> str:
    """Where (image, channel, pixel) and by how much an output is wrong."""
    if got.ndim == 4:
        got, want = unblock(got, channels), unblock(want, channels)
    bad = ~np.isfinite(got)
    if np.isinf(error):
        at = np.unravel_index(int(bad.argmax()), got.shape)
        return (
            f"{int(bad.sum())} of {got.size} output elements are NaN or infinite, "
            f"or were never written; the first at {[int(i) for i in at]}"
        )
    gap = np.abs(got - want)
    at = np.unravel_index(int(np.where(bad, 0, gap).argmax()), got.shape)
    where = [int(i) for i in at]
    return (
        f"relative error {error:.2g} (limit {limit:g}); "
        f"at {where}: {got[at]:.6g} instead of {want[at]:.6g}"
    )
