"""Recognise activations in the ways in which exporters spell them.

Every scalar function of one value is first brought to the form
`gain * clip(alpha * x + beta, low, high)`; hard-sigmoid, hard-swish, ReLU and ReLU6 are then
plain comparisons of numbers, whatever the spelling: `clip(x + 3, 0, 6) / 6`, `HardSigmoid`,
`max` then `min`, a product divided by six afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from tvmsep.graph.ir import Graph, Node

_INF = math.inf


@dataclass(frozen=True)
class _Form:
    """`gain * clip(alpha * x + beta, low, high)`, times `x` again if `times_x`."""

    source: str
    alpha: float = 1.0
    beta: float = 0.0
    low: float = -_INF
    high: float = _INF
    gain: float = 1.0
    times_x: bool = False
    sigmoid: bool = False

    @property
    def clipped(self) -> bool:
        return self.sigmoid or self.low > -_INF or self.high < _INF

    def scaled(self, factor: float) -> _Form:
        if self.clipped:
            return replace(self, gain=self.gain * factor)
        return replace(self, alpha=self.alpha * factor, beta=self.beta * factor)

    def shifted(self, term: float) -> _Form | None:
        return None if self.clipped else replace(self, beta=self.beta + term)

    def bounded(self, low: float, high: float) -> _Form | None:
        if self.sigmoid or self.times_x or self.gain != 1.0:
            return None
        # The later clip wins where the two ranges do not meet.
        return replace(self, low=min(max(self.low, low), high), high=min(max(self.high, low), high))

    def name(self) -> str | None:
        """The activation's name in `tvmsep.schedules.epilogue`, or None."""
        if self.sigmoid:
            if (self.alpha, self.beta) != (1.0, 0.0) or not _near(self.gain, 1.0):
                return None
            return "silu" if self.times_x else "sigmoid"
        if not self.clipped:
            return None
        if not self.times_x and self.gain == 1.0 and (self.alpha, self.beta) == (1.0, 0.0):
            if self.low == 0.0:
                if self.high == _INF:
                    return "relu"
                if self.high == 6.0:
                    return "relu6"
            low = max(self.low, -3.4e38)
            return f"clip:{low:.9g}:{min(self.high, 3.4e38):.9g}"
        # gain * clip(a x + b, 0, h) = clip(gain a x + gain b, 0, gain h)
        if self.low != 0.0 or self.gain <= 0 or not _near(self.high * self.gain, 1.0):
            return None
        alpha, beta = self.alpha * self.gain, self.beta * self.gain
        standard = _near(alpha, 1 / 6) and _near(beta, 0.5)
        if self.times_x:
            return "hard_swish" if standard else None
        return "hard_sigmoid" if standard else f"hard_sigmoid:{alpha:.9g}:{beta:.9g}"


def _near(a: float, b: float) -> bool:
    """Equal but for the rounding of fp32 and of constants that exporters print."""
    return abs(a - b) <= 1e-6 * max(1.0, abs(b))


def _scalar(graph: Graph, value: str) -> float | None:
    array = graph.constants.get(value)
    if array is None or array.size != 1:
        return None
    return float(np.asarray(array).reshape(()))


def _operands(graph: Graph, node: Node) -> tuple[str, float | None]:
    """(the varying input, the scalar constant beside it or None)."""
    left, right = node.inputs
    constant = _scalar(graph, right)
    if constant is not None and graph.shape(left) == node.shape:
        return left, constant
    constant = _scalar(graph, left)
    if constant is not None and node.op != "divide" and graph.shape(right) == node.shape:
        return right, constant
    return left, None


def _form(graph: Graph, forms: dict[str, _Form], node: Node) -> _Form | None:
    """The form of one node, given the forms of its inputs (none: of this node alone)."""

    def of(value: str) -> _Form:
        return forms.get(value) or _Form(value)

    match node.op:
        case "nn.relu":
            return of(node.inputs[0]).bounded(0.0, _INF)
        case "nn.relu6":
            return of(node.inputs[0]).bounded(0.0, 6.0)
        case "clip":
            low, high = (float(a) for a in node.attrs["args"])
            return of(node.inputs[0]).bounded(low, high)
        case "sigmoid":
            return _Form(node.inputs[0], sigmoid=True)
        case "nn.silu":
            return _Form(node.inputs[0], sigmoid=True, times_x=True)
        case "maximum" | "minimum" | "add" | "subtract" | "multiply" | "divide":
            source, constant = _operands(graph, node)
            if constant is not None:
                return _with_scalar(node, of(source), constant, node.inputs[0] == source)
            if node.op == "multiply":
                return _times_x(forms, node)
    return None


def _with_scalar(node: Node, form: _Form, constant: float, scalar_right: bool) -> _Form | None:
    match node.op:
        case "maximum":
            return form.bounded(constant, _INF)
        case "minimum":
            return form.bounded(-_INF, constant)
        case "add":
            return form.shifted(constant)
        case "subtract":
            return form.shifted(-constant) if scalar_right else None
        case "multiply":
            return form.scaled(constant)
        case "divide" if constant != 0.0:
            return form.scaled(1.0 / constant)
    return None


def _times_x(forms: dict[str, _Form], node: Node) -> _Form | None:
    """`x * f(x)`, or `(c * x) * f(x)`."""
    for x, fx in (node.inputs, node.inputs[::-1]):
        form = forms.get(fx)
        if form is None or form.times_x or not form.clipped:
            continue
        if form.source == x:
            return replace(form, times_x=True)
        left = forms.get(x)
        if left and left.source == form.source and not left.clipped and left.beta == 0.0:
            return replace(form, times_x=True, gain=form.gain * left.alpha)
    return None


def recognise(graph: Graph) -> None:
    """Turn every recognised activation into a node `act` on its source; prune the rest."""
    forms: dict[str, _Form] = {}
    for node in graph.nodes.values():
        if len(node.shape) not in (2, 4):
            continue
        if node.op == "nn.leakyrelu":
            node.op, node.attrs = "act", {"name": f"leaky_relu:{node.attrs['alpha']:.9g}"}
            continue
        form = _form(graph, forms, node) or _form(graph, {}, node)
        if form is None or node.dtype != "float32" or graph.shape(form.source) != node.shape:
            continue
        forms[node.name] = form
    for name, form in forms.items():
        node = graph.nodes[name]
        alone = _form(graph, {}, node)
        if form.name() is None and alone is not None and alone.name() is not None:
            form = alone
        act = form.name()
        if act is not None:
            node.op, node.inputs, node.attrs = "act", [form.source], {"name": act}
    graph.prune()
