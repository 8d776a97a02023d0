"""A normalised graph becomes a plan: the whole of it, or a batch by its images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tvmsep.contracts import Target
from tvmsep.graph.batch import one_image, split_head
from tvmsep.graph.ir import Graph
from tvmsep.graph.normalise import is_vector
from tvmsep.graph.plan import Plan
from tvmsep.graph.planner import Planner


def make_plan(
    graph: Graph, target: Target, threads: int, returned: Sequence[str] | None = None, *,
    layout: str = "", dtype: str = "float32", by_image: bool = True,
) -> Plan:  # fmt: skip
    """Plan a normalised graph for a target at a thread count.

    On a CPU a batch is planned by its images if they have nothing to do with each other, are more
    than vectors, and not fewer than the threads: one a thread if the threads divide them evenly,
    else one after the other on all threads.

    Args:
        graph: what to compute.
        target: for what; its facts choose blocks.
        threads: how many the network will run on.
        returned: values that the plan returns in place of the graph's outputs, to look inside;
            they change no choice. Each is an input, an output or a kernel's.
        layout: one of `layouts(target, dtype)`, or "" for the default.
        dtype: of activations between kernels and of weights; the boundary stays float32.
        by_image: False for kernels that each compute the whole batch.

    Raises:
        ModelError: an operator that neither a template nor Relax can compute.
    """
    shape = next(iter(graph.inputs.values()), (1,))
    batch = shape[0] if shape else 1
    body, head, single = graph, None, None
    if target.gpu is None and batch > 1:
        body, head = split_head(graph)
        if not all(is_vector(node.shape) for node in body.nodes.values()):
            single = one_image(body)
    if single is None:
        return Planner(graph, target, threads, returned, layout, dtype).run()
    # Cut here at any thread count: variants of one network share their parameters.
    images, turns, own = 1, 1, threads
    if by_image and batch >= threads:
        images = threads if batch % threads == 0 else 1
        body, turns, own = single, batch // images, 1 if images > 1 else threads
    wanted = graph.outputs if returned is None else returned
    behind = [o for o in wanted if head and o in head.nodes]
    made = [*(head.inputs if head else ()), *(o for o in wanted if o not in behind)]
    made, behind = list(dict.fromkeys(made)), list(dict.fromkeys(behind))
    plan = Planner(body, target, own, made, layout, dtype).run()
    return dataclasses.replace(
        plan,
        images=images,
        turns=turns,
        head=Planner(head, target, threads, behind, layout, dtype).run() if head else None,
        order=tuple(map([*made, *behind].index, wanted)),
    )
