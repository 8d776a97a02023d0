"""Along what each value is divided over the threads: what else it could be, and plans with that.

By rows a core finds what it wrote in its own cache, and reads all weights of a layer. By channels
it reads its part of the weights, and all of the image, most of which others wrote. With weights of
`W` bytes and an image of `I`, `n` threads read `(n - 1) W` bytes more by rows and `(n - 1) I` more
by channels. Where the two are far apart the better one is known; else it hangs on what a line costs
that another core wrote, on how evenly rows divide, and on the neighbours, between which a value may
have to cross. There both are timed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import msgspec

from tvmsep.contracts import Workload
from tvmsep.contracts.workload import Split
from tvmsep.graph.plan import Layout, Plan, Step

CLOSE = 4.0
"""Weights so many times the image, or the image so many times the weights, are far apart."""
_OTHER: Mapping[Split, Split] = {"rows": "channels", "channels": "rows"}


def open_splits(plan: Plan) -> dict[str, Split]:
    """Values whose split only times can tell, each with the one that the plan does not have.

    They are all values of one size of image where the largest weights read at that size (of equal
    ones those of the smaller image) and the image that they are applied to are not far apart, but
    those with less than a row or a block of channels for each thread.
    """
    if plan.threads == 1:
        return {}
    made = [(s.output, s.workload) for s in plan.steps if s.workload is not None]
    largest: dict[tuple[int, int], Workload] = {}
    for _, w in made:
        known = largest.get((w.oh, w.ow))
        if w.op == "pointwise" and (known is None or _weights(known) < _weights(w)):
            largest[w.oh, w.ow] = w
    close = {
        at for at, w in largest.items() if 1 / CLOSE <= w.oc / (w.n * w.ih * w.iw) <= CLOSE
    }  # fmt: skip
    return {
        value: _OTHER[w.out_split]
        for value, w in made
        if (w.oh, w.ow) in close and w.out_block and min(w.oh, w.out_blocks) >= plan.threads
    }


def _weights(w: Workload) -> tuple[int, int]:
    return w.ic * w.oc, w.oc


def resplit(plan: Plan, splits: Mapping[str, Split]) -> Plan:
    """The plan with the named values divided so: the same results from the same weights."""
    layouts = {v: Layout(x.block, splits.get(v, x.split)) for v, x in plan.layouts.items()}
    return dataclasses.replace(plan, steps=resplit_steps(plan.steps, splits), layouts=layouts)


def resplit_steps(steps: Iterable[Step], splits: Mapping[str, Split]) -> list[Step]:
    """The same of some of its steps."""
    found = []
    for step in steps:
        w = step.workload
        if w is not None:
            before = splits.get(step.inputs[0], w.in_split) if step.inputs else w.in_split
            after = before if w.op == "unpack" else splits.get(step.output, w.out_split)
            w = msgspec.structs.replace(w, in_split=before, out_split=after)
        found.append(dataclasses.replace(step, workload=w))
    return found


def other_splits(plan: Plan) -> list[Plan]:
    """Plans in which, beside the plan itself, each kernel stands between all splits that may be.

    All open values otherwise, those an even number of kernels behind an input, and those an odd
    number behind one. What a kernel writes is one kernel further than what it reads first, so it
    has then been seen with either split of both.
    """
    free = open_splits(plan)
    depth: dict[str, int] = {}
    for step in plan.steps:
        depth[step.output] = depth.get(step.inputs[0], 0) + 1 if step.inputs else 0
    halves = ([v for v in free if depth[v] % 2 == odd] for odd in (0, 1))
    return [resplit(plan, {v: free[v] for v in names}) for names in (list(free), *halves) if names]
