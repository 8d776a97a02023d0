"""A network of several images as the network of one, where no operator mixes images.

What comes behind the last image of more than one pixel, a classifier, stays a network of the whole
batch: it reads as many weights as the rest together, and from the memory, once for all images.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from tvmsep.graph.importer import TUPLE
from tvmsep.graph.ir import VIEWS, Graph, Node
from tvmsep.graph.normalise import is_vector

_ITEMWISE = (
    "abs", "add", "astype", "ceil", "clip", "divide", "erf", "exp", "floor", "isnan", "log",
    "logical_not", "maximum", "minimum", "multiply", "negative", "nn.gelu", "nn.leakyrelu",
    "nn.relu", "nn.relu6", "nn.silu", "power", "round", "rsqrt", "sigmoid", "sqrt", "subtract",
    "tanh", "where",
)  # fmt: skip
_IMAGEWISE = (
    "channels", "conv", "conv_transposed", "eltwise", "image.resize2d", "nn.adaptive_avg_pool2d",
    "nn.avg_pool2d", "nn.max_pool2d", "pool", "resample", "tuple_get", "view",
)  # fmt: skip
_ALONG_AXES = (
    "concat", "max", "mean", "min", "nn.batch_norm", "nn.log_softmax", "nn.prelu", "nn.softmax",
    "split", "sum",
)  # fmt: skip


def one_image(graph: Graph) -> Graph | None:
    """The graph for one image of its batch; None if an operator may read several, or none is known.

    Every value of the graph has the batch as its first axis, else there is no such graph: that is
    how a value that all images share, or one made of all of them, is told.

    Args:
        graph: as `normalise` makes it; it is left as it is.
    """
    batches = {shape[0] if shape else 0 for shape in graph.inputs.values()}
    if len(batches) != 1 or (n := batches.pop()) < 2:
        return None
    made = [*graph.inputs, *graph.nodes]
    shapes = {name: graph.shape(name) for name in made}
    if any(shape != TUPLE and shape[:1] != (n,) for shape in shapes.values()):
        return None
    if not all(_apart(node, graph) for node in graph.nodes.values()):
        return None
    if any(o in graph.constants for o in graph.outputs):
        return None
    return Graph(
        {name: _one(shape) for name, shape in graph.inputs.items()},
        {name: _node(node) for name, node in graph.nodes.items()},
        graph.constants,
        list(graph.outputs),
        dict(graph.input_dtypes),
    )


def split_head(graph: Graph) -> tuple[Graph, Graph | None]:
    """The graph without its head, and the head: what reads nothing but vectors, one an image.

    The head's inputs are values of the body, which returns them before the outputs that it makes
    itself. It is None, and the body the graph, where that would have no weights.

    Args:
        graph: as `normalise` makes it; it is left as it is.
    """
    read = {o: 0 for o in graph.outputs}  # by the body's nodes
    head: dict[str, Node] = {}
    for node in reversed(graph.nodes.values()):
        made = [i for i in node.inputs if i not in graph.constants]
        vectors = all(i in graph.nodes and is_vector(graph.shape(i)) for i in made)
        if not read.get(node.name) and made and vectors:
            head[node.name] = node
        else:
            read.update(dict.fromkeys(made, 1))
    if not any(node.op == "conv" for node in head.values()):
        return graph, None
    nodes = {name: node for name, node in graph.nodes.items() if name not in head}
    ends = {i: None for name in graph.nodes if name in head for i in head[name].inputs}
    ends = {i: None for i in ends if i in nodes}
    made = [o for o in graph.outputs if o not in head]
    if not ends or any(o not in nodes for o in made):
        return graph, None
    body = dataclasses.replace(graph, nodes=nodes, outputs=[*ends, *made])
    behind = Graph(
        {name: graph.shape(name) for name in ends},
        {name: node for name, node in graph.nodes.items() if name in head},
        graph.constants,
        [o for o in graph.outputs if o in head],
        {name: nodes[name].dtype for name in ends},
    )
    return body, behind


def _one(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if shape == TUPLE else (1, *shape[1:])


def _node(node: Node) -> Node:
    attrs = dict(node.attrs)
    if "workload" in attrs:
        attrs["workload"] = msgspec.structs.replace(attrs["workload"], n=1)
    return dataclasses.replace(
        node, inputs=list(node.inputs), shape=_one(node.shape), attrs=attrs,
        epilogue=list(node.epilogue),
    )  # fmt: skip


def _apart(node: Node, graph: Graph) -> bool:
    """Whether each image of what a node makes comes from the same image of what it reads."""
    a = node.attrs
    fixed = [graph.constants[i] for i in node.inputs if i in graph.constants]
    rank = len(node.shape)
    if node.op in _IMAGEWISE:
        return not fixed
    if node.op in VIEWS:  # the batch is first before and after
        return not fixed
    if node.op in _ITEMWISE:
        ranks = {len(graph.shape(i)) for i in node.inputs if i not in graph.constants}
        # A constant is shared if it has no axis for the batch, or none of its length.
        return ranks <= {rank} and all(c.ndim < rank or c.shape[0] == 1 for c in fixed)
    if node.op in _ALONG_AXES:  # what is constant there is a vector along that axis
        source = len(graph.shape(node.inputs[0]))
        alone = node.inputs[0] not in graph.constants and all(c.ndim == 1 for c in fixed)
        return alone and _elsewhere(a["axis"], source)
    match node.op:
        case "matmul":
            x, y = node.inputs
            weight = graph.constants.get(y)
            alone = x not in graph.constants and len(graph.shape(x)) > 1
            return alone and weight is not None and weight.ndim == 2
        case "permute_dims":
            return bool(a["axes"]) and a["axes"][0] % rank == 0
        case "nn.pad":
            return not any(a["pad_width"][:2])
        case "strided_slice":
            return all(axis % rank for axis in a["args"][0])
        case "take":
            return not (node.inputs[0] in graph.constants or len(fixed) != 1) and _elsewhere(
                a["axis"], len(graph.shape(node.inputs[0]))
            )
    return False


def _elsewhere(axes: Any, rank: int) -> bool:
    """Whether axes, as attributes have them, are known and leave the batch out."""
    if axes is None:
        return False
    return all(axis % rank for axis in ([axes] if isinstance(axes, int) else axes))
