"""The constants in a Relay file's metadata section.

The section is a graph of objects in JSON: nodes refer to each other by their place in a list. From
the root, a map of type names, `relay.Constant` leads to a list of constants, each of which names
an entry of `b64ndarrays`.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from tvmsep.contracts import ModelError
from tvmsep.frontends.relay.params import Array, decode_array

_CONSTANT = "relay.Constant"


class _Node(msgspec.Struct):
    type_key: str
    attrs: dict[str, Any] = {}
    keys: list[str] = []
    data: list[int] = []


class _Section(msgspec.Struct):
    root: int
    nodes: list[_Node]
    b64ndarrays: list[str] = []


def constants(section: str, path: object) -> list[Array]:
    """All `meta[relay.Constant][n]`, in their order.

    Args:
        section: the JSON; empty where the file has no such section.
        path: names the file in messages.

    Raises:
        ModelError: the section is damaged.
    """
    if not section.strip():
        return []
    try:
        graph = msgspec.json.decode(section.encode(), type=_Section)
        root = _node(graph, graph.root)
        table = dict(zip(root.keys, root.data, strict=True))
        if _CONSTANT not in table:
            return []
        listed = _node(graph, table[_CONSTANT]).data
        return [_constant(graph, index, n) for n, index in enumerate(listed)]
    except (msgspec.DecodeError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"the metadata of {path} is damaged: {error}; save it again with "
            "mod.astext(show_meta_data=True)"
        ) from error


def _node(graph: _Section, index: int) -> _Node:
    if not 0 <= index < len(graph.nodes):
        raise ValueError(f"it refers to node {index} of {len(graph.nodes)}")
    return graph.nodes[index]


def _constant(graph: _Section, index: int, n: int) -> Array:
    node = _node(graph, index)
    if node.type_key != _CONSTANT:
        raise ValueError(f"node {index} is a {node.type_key or 'null'}, not a {_CONSTANT}")
    at = int(node.attrs["data"])
    if not 0 <= at < len(graph.b64ndarrays):
        raise ValueError(f"it refers to array {at} of {len(graph.b64ndarrays)}")
    try:
        data = base64.b64decode(graph.b64ndarrays[at], validate=True)
    except binascii.Error as error:
        raise ValueError(f"array {at} is no base64 ({error})") from error
    return decode_array(data, f"meta[{_CONSTANT}][{n}]")
