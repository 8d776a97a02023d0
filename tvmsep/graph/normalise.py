"""Bring a network to the few composites that templates compute.

In order: transposes cancel where they can; activations get their names; batch norms become
per-channel scale and shift; matrix products and convolutions become `conv` with weight and bias as
arrays; pads fold into the conv; scale, shift, activation and residual add fuse into the conv that
makes their input; what is left of scale and shift becomes a depthwise 1x1 conv.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmsep.contracts import ModelError
from tvmsep.graph.activations import recognise
from tvmsep.graph.interpret import channel_affine, pool_workload
from tvmsep.graph.ir import VIEWS, Array, Graph, Node
from tvmsep.graph.transposes import settle_transposes
from tvmsep.schedules.epilogue import EXPONENTIAL
from tvmsep.schedules.resample import COORDINATES, ROUNDINGS

_CONVS = ("conv", "conv_transposed")
_TAKE_ACTIVATIONS = (*_CONVS, "eltwise", "pool", "resample", "channels")


def normalise(graph: Graph) -> Graph:
    """Rewrite `graph` in place and return it."""
    _drop_identities(graph)
    settle_transposes(graph)
    _drop_identities(graph)
    recognise(graph)
    _name_affines(graph)
    _name_convs(graph)
    _name_pools(graph)
    _name_resizes(graph)
    _name_channels(graph)
    _fold_pads(graph)
    _fuse(graph)
    _leftover_affines(graph)
    _name_views(graph)
    graph.prune()
    return graph


def _order(node: Node) -> list[int]:
    """Where no axes are given: a transpose reverses them, anything else keeps them."""
    axes = list(range(len(node.shape)))
    return axes[::-1] if node.op == "permute_dims" else axes


def _drop_identities(graph: Graph) -> None:
    for node in list(graph.nodes.values()):
        source = graph.nodes.get(node.inputs[0]) if node.inputs else None
        if node.op == "tuple_get" and source is not None and source.op == "nn.dropout":
            graph.replace(node.name, source.inputs[0])
        elif (
            node.op in (*VIEWS, "broadcast_to", "astype", "permute_dims")
            and node.inputs
            and graph.shape(node.inputs[0]) == node.shape
            and (source.dtype if source else "float32") == node.dtype
            and list(node.attrs.get("axes") or _order(node))[: len(node.shape)]
            == list(range(len(node.shape)))
        ):
            graph.replace(node.name, node.inputs[0])
    graph.prune()


def _per_channel(array: Array, shape: tuple[int, ...]) -> Array | None:
    """A constant that broadcasts along channels only, as `[c]`; else None."""
    if len(shape) not in (2, 4) or array.ndim > len(shape):
        return None
    dims = (1,) * (len(shape) - array.ndim) + array.shape
    if any(d != 1 for i, d in enumerate(dims) if i != 1) or dims[1] not in (1, shape[1]):
        return None
    flat = array.reshape(-1).astype(np.float64)
    return np.broadcast_to(flat, (shape[1],)).copy()


def _name_affines(graph: Graph) -> None:
    """Batch norms, and add / multiply with per-channel constants, become `affine`."""
    for node in list(graph.nodes.values()):
        if node.dtype != "float32":
            continue
        if node.op == "tuple_get" and node.attrs["index"] == 0:
            norm = graph.nodes.get(node.inputs[0])
            if norm is None or norm.op != "nn.batch_norm" or len(node.shape) not in (2, 4):
                continue
            params = [graph.constants.get(i) for i in norm.inputs[1:]]
            if norm.attrs["axis"] != 1 or any(p is None for p in params):
                continue
            arrays: list[Any] = [None, *params]
            scale, shift = channel_affine(norm, arrays)
            node.op, node.inputs = "affine", [norm.inputs[0]]
            node.attrs = {"scale": scale, "shift": shift}
            continue
        if node.op not in ("add", "subtract", "multiply", "divide"):
            continue
        for at, (x, c) in enumerate((node.inputs, node.inputs[::-1])):
            if c not in graph.constants or graph.shape(x) != node.shape or x in graph.constants:
                continue
            vector = _per_channel(graph.constants[c], node.shape)
            if vector is None or (at == 1 and node.op == "divide"):
                continue
            one, zero = np.ones_like(vector), np.zeros_like(vector)
            minus = -one if at == 1 and node.op == "subtract" else one
            pair = {
                "add": (one, vector),
                "subtract": (minus, -vector * minus),
                "multiply": (vector, zero),
                "divide": (one / vector if node.op == "divide" else one, zero),
            }[node.op]
            node.op, node.inputs = "affine", [x]
            node.attrs = {"scale": pair[0], "shift": pair[1]}
            break
    graph.prune()


def _name_convs(graph: Graph) -> None:
    """`nn.conv2d` and 2-D `matmul` with constant weights become `conv`."""
    for node in graph.nodes.values():
        if node.dtype != "float32" or len(node.inputs) != 2:
            continue
        x, wt = node.inputs
        weight = graph.constants.get(wt)
        if weight is None or x in graph.constants:
            continue
        if node.op == "nn.conv2d":
            if node.attrs["data_layout"] != "NCHW" or node.attrs["kernel_layout"] != "OIHW":
                raise ModelError(
                    f"{node.name}: convolutions are supported in NCHW / OIHW layout, this one is "
                    f"{node.attrs['data_layout']} / {node.attrs['kernel_layout']}"
                )
            a = node.attrs
            pads = a["padding"] if len(a["padding"]) == 4 else list(a["padding"]) * 2
            attrs: dict[str, Any] = {k: tuple(a[k]) for k in ("strides", "dilation")}
            attrs |= {"pads": tuple(pads), "groups": a["groups"], "weight": weight}
        elif node.op == "matmul" and weight.ndim == 2 and len(graph.shape(x)) == 2:
            attrs = {"strides": (1, 1), "dilation": (1, 1), "pads": (0, 0, 0, 0), "groups": 1}
            attrs["weight"] = np.ascontiguousarray(weight.T)[:, :, None, None]
        elif node.op == "nn.conv2d_transpose" and _plans_transposed(node, weight):
            a = node.attrs
            pads = a["padding"] if len(a["padding"]) == 4 else list(a["padding"]) * 2
            node.op, node.inputs = "conv_transposed", [x]
            node.attrs = {k: tuple(a[k]) for k in ("strides", "dilation")}
            node.attrs |= {"pads": tuple(pads), "groups": a["groups"], "bias": None}
            # As a convolution's: [oc, ic / groups, kh, kw].
            g = a["groups"]
            parts = weight.reshape(g, -1, *weight.shape[1:]).swapaxes(1, 2)
            node.attrs["weight"] = parts.reshape(-1, *parts.shape[2:])
            continue
        else:
            continue
        node.op, node.inputs = "conv", [x]
        node.attrs = {**attrs, "bias": None}


def _plans_transposed(node: Node, weight: Array) -> bool:
    """Whether the planner makes kernels of this transposed convolution."""
    a = node.attrs
    if a["data_layout"] != "NCHW" or a["kernel_layout"] != "IOHW":
        return False
    if a["groups"] == 1 and tuple(a["strides"]) != (1, 1):
        return tuple(a["dilation"]) == (1, 1)
    reach = [(k - 1) * d for k, d in zip(weight.shape[2:], a["dilation"], strict=True)]
    return all(p <= r for p, r in zip(a["padding"], reach * 2, strict=False))


def _name_resizes(graph: Graph) -> None:
    """Resizing to the nearest pixel, or linearly between pixels, becomes `resample`."""
    for node in graph.nodes.values():
        if node.op != "image.resize2d" or node.dtype != "float32" or len(node.shape) != 4:
            continue
        a = node.attrs
        kind = {"nearest_neighbor": "nearest", "linear": "linear"}.get(a["method"])
        mode, rounding = a["coordinate_transformation_mode"], a["rounding_method"]
        if kind is None or mode not in COORDINATES or a["layout"] != "NCHW":
            continue
        if kind == "nearest":
            if rounding not in ROUNDINGS:
                continue
            mode = f"{mode}:{rounding}"
        node.inputs = node.inputs[:1]
        node.op, node.attrs = "resample", {"kind": f"{kind}:{mode}"}


def _name_channels(graph: Graph) -> None:
    """Images joined, cut or interleaved along their channels become `channels`."""
    for node in graph.nodes.values():
        if node.dtype != "float32" or len(node.shape) != 4:
            continue
        kind = _channels_kind(graph, node)
        if kind:
            node.op, node.attrs = "channels", {"kind": kind}
    graph.prune()


def _channels_kind(graph: Graph, node: Node) -> str:
    """What a node does to channels, its inputs made those of that; empty if it does more."""
    source = graph.nodes.get(node.inputs[0])
    if node.op == "concat":
        made = any(i in graph.nodes for i in node.inputs)
        fixed = any(i in graph.constants for i in node.inputs)
        return "concat" if node.attrs["axis"] in (1, -3) and made and not fixed else ""
    if node.op == "tuple_get" and source is not None and source.op == "split":
        if source.attrs["axis"] not in (1, -3) or source.inputs[0] in graph.constants:
            return ""
        sizes = source.attrs["indices_or_sections"]
        whole, index = graph.shape(source.inputs[0])[1], node.attrs["index"]
        first = whole // sizes * index if isinstance(sizes, int) else [0, *sizes][index]
        node.inputs = [source.inputs[0]]
        return f"slice:{first}"
    if node.op == "strided_slice" and node.inputs[0] not in graph.constants:
        shape = graph.shape(node.inputs[0])
        axes, begin, end, *strides = node.attrs["args"]
        if list(axes) != [1] or any(s != [1] for s in map(list, strides) if s):
            return ""
        first = begin[0] + shape[1] if begin[0] < 0 else begin[0]
        del end  # the output's shape says it
        return f"slice:{first}" if 0 <= first and first + node.shape[1] <= shape[1] else ""
    if node.op == "reshape" and source is not None and source.op == "permute_dims":
        before = graph.nodes.get(source.inputs[0])
        if before is None or before.op != "reshape" or before.inputs[0] in graph.constants:
            return ""
        shape = graph.shape(before.inputs[0])
        n, c, *image = shape
        groups = before.shape[1]
        apart = before.shape == (n, groups, c // groups, *image)
        if shape == node.shape and apart and source.attrs["axes"] == [0, 2, 1, 3, 4]:
            node.inputs = [before.inputs[0]]
            return f"shuffle:{groups}"
    return ""


def _name_pools(graph: Graph) -> None:
    """2-D pools, and means over both image axes, become `pool`."""
    for node in graph.nodes.values():
        x = graph.shape(node.inputs[0]) if node.inputs else ()
        if node.dtype != "float32" or len(x) != 4:
            continue
        if node.op == "mean":
            axes = node.attrs["axis"]
            if sorted(a % 4 for a in axes or ()) != [2, 3]:
                continue
        elif node.op == "nn.adaptive_avg_pool2d":
            if node.attrs["output_size"] not in ([1], [1, 1]):
                continue
        elif node.op in ("nn.max_pool2d", "nn.avg_pool2d"):
            if node.attrs["layout"] != "NCHW":
                continue
            if node.op == "nn.avg_pool2d" and node.attrs["ceil_mode"]:
                continue
        else:
            continue
        workload = pool_workload(node, x)
        if workload.kind.startswith("avg") and (workload.dh, workload.dw) != (1, 1):
            continue
        node.op, node.attrs = "pool", {"workload": workload}


def _fold_pads(graph: Graph) -> None:
    """Zeros around the image become the pads of the convolutions that read it."""
    for node in graph.nodes.values():
        while node.op == "conv":
            pad = graph.nodes.get(node.inputs[0])
            if pad is None or pad.op != "nn.pad" or pad.attrs["pad_mode"] != "constant":
                break
            widths = list(pad.attrs["pad_width"])
            if pad.attrs["pad_value"] != 0 or len(widths) != 8 or any(widths[:4]):
                break
            if min(widths) < 0:
                break
            top, left, bottom, right = node.attrs["pads"]
            node.attrs["pads"] = (
                top + widths[4], left + widths[6], bottom + widths[5], right + widths[7],
            )  # fmt: skip
            node.inputs = [pad.inputs[0]]
    graph.prune()


def _fuse(graph: Graph) -> None:
    """Fuse what follows a conv (or an elementwise node) into it, while it has one reader."""
    uses = graph.uses()
    order = {name: i for i, name in enumerate(graph.nodes)}
    result: dict[str, Node] = {}

    def producer(value: str) -> Node | None:
        node = result.get(value)
        return node if node is not None and uses[value] == 1 else None

    def absorb(into: Node, node: Node) -> None:
        """The fused node takes the later node's name and place."""
        del result[into.name]
        into.name = node.name
        result[node.name] = into

    for node in graph.nodes.values():
        if node.op == "affine":
            src = producer(node.inputs[0])
            if src is not None and src.op in _CONVS and not src.epilogue:
                _fold_affine(src, node.attrs["scale"], node.attrs["shift"])
                absorb(src, node)
                continue
        elif node.op == "act":
            src = producer(node.inputs[0])
            name = node.attrs["name"]
            second = name in EXPONENTIAL and src is not None and {*EXPONENTIAL} & {*src.epilogue}
            if src is not None and src.op in _TAKE_ACTIVATIONS and not second:
                src.epilogue.append(name)
                absorb(src, node)
                continue
            node.op, node.epilogue, node.attrs = "eltwise", [name], {"kind": "act"}
        elif node.op == "add" and _same_shapes(graph, node):
            if node.inputs[0] != node.inputs[1]:
                sources = [p for p in map(producer, node.inputs) if p is not None]
                sources = [p for p in sources if p.op == "conv" and "add" not in p.epilogue]
                if sources:
                    src = max(sources, key=lambda p: order[p.name])
                    other = next(i for i in node.inputs if i != src.name)
                    src.inputs.append(other)
                    src.epilogue.append("add")
                    absorb(src, node)
                    continue
            node.op, node.attrs = "eltwise", {"kind": "add"}
        elif node.op == "multiply" and len(node.shape) == 4 and node.dtype == "float32":
            kind = _multiply_kind(graph, node)
            if kind:
                node.op, node.attrs = "eltwise", {"kind": kind}
        result[node.name] = node
    graph.nodes = result


def _same_shapes(graph: Graph, node: Node) -> bool:
    return (
        node.dtype == "float32"
        and len(node.shape) in (2, 4)
        and all(graph.shape(i) == node.shape and i not in graph.constants for i in node.inputs)
    )


def _multiply_kind(graph: Graph, node: Node) -> str | None:
    """`mul`, or `scale` (second input one value a channel), inputs put in that order."""
    if any(i in graph.constants for i in node.inputs):
        return None
    a, b = (graph.shape(i) for i in node.inputs)
    if a == b:
        return "mul"
    per_channel = (*node.shape[:2], 1, 1)
    if a == node.shape and b == per_channel:
        return "scale"
    if b == node.shape and a == per_channel:
        node.inputs.reverse()
        return "scale"
    return None


def _fold_affine(conv: Node, scale: Array, shift: Array) -> None:
    weight, bias = conv.attrs["weight"], conv.attrs["bias"]
    conv.attrs["weight"] = weight.astype(np.float64) * scale[:, None, None, None]
    conv.attrs["bias"] = shift if bias is None else bias * scale + shift


def _leftover_affines(graph: Graph) -> None:
    """A scale and shift with no conv before it is a depthwise 1x1 conv."""
    for node in graph.nodes.values():
        if node.op != "affine":
            continue
        channels = node.shape[1]
        node.op = "conv"
        node.attrs = {
            "strides": (1, 1), "dilation": (1, 1), "pads": (0, 0, 0, 0), "groups": channels,
            "weight": node.attrs["scale"][:, None, None, None], "bias": node.attrs["shift"],
        }  # fmt: skip


def _name_views(graph: Graph) -> None:
    """Reshapes between `[n, c, 1, 1]` and `[n, c]` move nothing: `view`."""
    for node in graph.nodes.values():
        if node.op not in VIEWS or not node.inputs:
            continue
        source = graph.shape(node.inputs[0])
        if is_vector(source) and is_vector(node.shape) and source[:2] == node.shape[:2]:
            node.op = "view"


def is_vector(shape: tuple[int, ...]) -> bool:
    """Whether that is one value a channel, for each image."""
    return len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
