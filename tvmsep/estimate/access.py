"""What one load or store of a scheduled CUDA kernel costs: sectors, turns of the banks, footprint.

Its index is evaluated for all threads of a block and the turns of the loops around it at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmsep.estimate.index import Unknown, evaluate, lanes, variables

SECTOR, LINE, BANKS, WORD = 32, 128, 32, 4
"""Bytes that memory moves at once, of a cache line; banks of shared memory, bytes of each."""
_MOST_POINTS = 1 << 18
"""Addresses that are looked at together; of more, whole turns of the outermost loops are left out
and counted."""


@dataclass(frozen=True)
class Access:
    """One load or store that stands in the kernel."""

    buffer: str
    scope: str
    """`global`, `shared`, or `local` where registers cannot hold it."""
    store: bool
    times: int
    """How often a thread does it."""
    warps: int
    """Warps of a block in which any thread does it."""
    sectors: float
    """32-byte sectors of a block's accesses at one time, all warps'."""
    wavefronts: float
    """Turns of the 128-byte data path for them: more than one a warp where banks or lines
    collide."""
    footprint: int
    """Bytes of distinct sectors that a block touches over the kernel's run."""
    window: int = 0
    """The same in one turn of the outermost serial loop around the access."""
    windows: int = 1
    """Turns of that loop."""


@dataclass(frozen=True)
class Loop:
    """A loop around an access; `var` is the hash of its variable."""

    var: int
    extent: int
    unrolled: bool


def item_bytes(dtype: str) -> int:
    """Of one element; of a vector type, of all its lanes."""
    scalar, _, many = dtype.partition("x")
    digits = "".join(c for c in scalar if c.isdigit())
    return int(digits or 8) // 8 * int(many or 1)


def access(
    buffer: str, dtype: str, scope: str, stored: bool, index: Any, loops: Sequence[Loop],
    conditions: Sequence[Any], grid: Mapping[int, NDArray[Any]],
) -> Access | None:  # fmt: skip
    """What one load or store costs; None where no thread does it.

    Loops are unrolled by the compiler, which then loads equal addresses once: a thread's distinct
    addresses over them count, not its turns.
    """
    item = item_bytes(dtype)
    used = variables(index)
    serial = [x for x in loops if not x.unrolled]
    unrolled = [x for x in loops if x.unrolled and x.var in used]
    zero = {x.var: np.zeros(1, np.int64) for x in loops}
    every = max((len(v) for v in grid.values()), default=1)
    try:
        active = np.ones(every, bool)
        for condition in conditions:
            active &= np.broadcast_to(
                np.asarray(evaluate(condition, {**zero, **grid}), bool), every
            )
    except Unknown:
        active = np.ones(every, bool)
    if not active.any():
        return None
    width = item * lanes(index)
    turns = math.prod(x.extent for x in serial)
    warps = int(active.reshape(-1, 32).any(1).sum()) if every % 32 == 0 else -(-every // 32)
    if scope == "local":
        words = width / WORD
        return Access(buffer, scope, stored, turns * math.prod(x.extent for x in unrolled),
                      warps, warps * 4 * words, warps * words, 0)  # fmt: skip
    try:
        at = np.broadcast_to(np.asarray(evaluate(index, {**zero, **grid}), np.int64), every) * item
        steps = _points(index, unrolled, {**zero, **{v: a[:1] for v, a in grid.items()}})
        times = turns * len(np.unique(steps))
        footprint = _footprint(index, item, width, loops, zero, grid, active)
        inside = [x for x in loops if x not in serial[:1]]
        window = _footprint(index, item, width, inside, zero, grid, active)
    except Unknown:  # a gather: every thread its own sector
        rng = np.random.default_rng(0)
        at, times = rng.integers(0, 1 << 24, every) * item, turns
        footprint = window = SECTOR * every * turns
    sectors = wavefronts = 0.0
    for first in range(0, every, 32):
        lines = at[first : first + 32][active[first : first + 32]]
        if not len(lines):
            continue
        parts = lines[:, None] + np.arange(0, width, WORD)
        if scope == "shared":
            wavefronts += bank_turns(lines, width)
        else:
            sectors += len(np.unique(parts // SECTOR))
            wavefronts += max(len(np.unique(parts // LINE)), len(np.unique(parts)) * WORD / LINE)
    return Access(buffer, scope, stored, times, warps, sectors, wavefronts, footprint, window,
                  serial[0].extent if serial else 1)  # fmt: skip


def bank_turns(at: NDArray[Any], width: int) -> float:
    """Turns that a warp's access to shared memory takes: a bank gives one word a turn.

    Vectors go in parts of 128 bytes' worth of threads; equal words are given to all at once.
    """
    group = max(1, 32 * WORD // max(width, WORD))
    turns = 0
    for first in range(0, len(at), group):
        words = np.unique((at[first : first + group, None] + np.arange(0, width, WORD)) // WORD)
        turns += int(np.bincount(words % BANKS).max())
    return turns


def _points(
    index: Any, loops: Sequence[Loop], rest: Mapping[int, NDArray[Any]]
) -> NDArray[np.int64]:
    """The index for every combination of the loops, whatever `rest` holds of the others."""
    values = dict(rest)
    count = math.prod(x.extent for x in loops)
    flat = np.arange(count, dtype=np.int64)
    for x in reversed(loops):
        values[x.var], flat = flat % x.extent, flat // x.extent
    return np.atleast_1d(np.asarray(evaluate(index, values), np.int64))


def _footprint(
    index: Any, item: int, width: int, loops: Sequence[Loop],
    zero: Mapping[int, NDArray[Any]], grid: Mapping[int, NDArray[Any]], active: NDArray[Any],
) -> int:  # fmt: skip
    """Bytes of the distinct sectors that a block touches, at most."""
    used = variables(index)
    inner = [x for x in loops if x.var in used]
    threads = {v: a[active] if len(a) == len(active) else a for v, a in grid.items()}
    left_out = 1
    while inner and math.prod(x.extent for x in inner) * int(active.sum()) > _MOST_POINTS:
        left_out *= inner.pop(0).extent
    columns = {v: np.atleast_1d(a)[:, None] for v, a in {**zero, **threads}.items()}
    at = np.unique(_points(index, inner, columns))
    sectors = np.unique((at * item)[:, None] // SECTOR + np.arange(-(-width // SECTOR)))
    return int(len(sectors)) * SECTOR * left_out
