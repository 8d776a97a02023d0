"""The graph: nodes in the order they run, constants as NumPy arrays. Plain data, no TVM."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

VIEWS = ("reshape", "squeeze", "expand_dims", "flatten", "nn.batch_flatten")
"""Operators that move nothing in memory."""


@dataclass
class Node:
    """One operator; its output value has the node's name.

    `op` is the Relax operator's name without `relax.`; the composites that normalisation makes
    are `conv` and `conv_transposed` (with weight, bias, epilogue), `pool`, `resample`,
    `channels`, `eltwise`, `view`; on the way there also `act` and `affine`.
    """

    name: str
    op: str
    inputs: list[str]
    shape: tuple[int, ...]
    dtype: str = "float32"
    attrs: dict[str, Any] = field(default_factory=dict)
    epilogue: list[str] = field(default_factory=list)
    call: Any = None
    """The Relax call this came from, to emit again where no template takes the node. A call of
    a TIR function (`op` is `call_tir`) keeps that function in `attrs["function"]`."""


@dataclass
class Graph:
    """A network. `values` are node names, input names and constant names."""

    inputs: dict[str, tuple[int, ...]]
    nodes: dict[str, Node]
    constants: dict[str, Array]
    outputs: list[str]
    input_dtypes: dict[str, str] = field(default_factory=dict)

    def shape(self, value: str) -> tuple[int, ...]:
        """Logical shape of a value."""
        if value in self.nodes:
            return self.nodes[value].shape
        if value in self.constants:
            return tuple(self.constants[value].shape)
        return self.inputs[value]

    def uses(self) -> Counter[str]:
        """How often each value is read, outputs included."""
        count: Counter[str] = Counter(self.outputs)
        for node in self.nodes.values():
            count.update(node.inputs)
        return count

    def replace(self, old: str, new: str) -> None:
        """Let every reader of `old` read `new`."""
        for node in self.nodes.values():
            node.inputs = [new if i == old else i for i in node.inputs]
        self.outputs = [new if o == old else o for o in self.outputs]

    def prune(self) -> None:
        """Drop nodes and constants that nothing reads."""
        alive = set(self.outputs)
        for node in reversed(list(self.nodes.values())):
            if node.name in alive:
                alive.update(node.inputs)
        self.nodes = {n: v for n, v in self.nodes.items() if n in alive}
        self.constants = {n: v for n, v in self.constants.items() if n in alive}
