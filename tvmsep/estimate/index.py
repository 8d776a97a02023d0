"""Where a kernel reads and writes: TIR's index expressions evaluated by NumPy, many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = Mapping[int, NDArray[Any]]
"""What each variable stands for, by its hash: arrays that broadcast against each other."""

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "FloorDiv": np.floor_divide,
    "FloorMod": np.mod, "Div": np.floor_divide, "Mod": np.mod, "Min": np.minimum,
    "Max": np.maximum, "LT": np.less, "LE": np.less_equal, "GT": np.greater,
    "GE": np.greater_equal, "EQ": np.equal, "NE": np.not_equal, "And": np.logical_and,
    "Or": np.logical_or,
}  # fmt: skip
_CALLS: dict[str, Callable[..., Any]] = {
    "shift_right": np.right_shift, "shift_left": np.left_shift, "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or, "bitwise_xor": np.bitwise_xor, "if_then_else": np.where,
    "likely": lambda x: x,
}  # fmt: skip
_CHILDREN = ("a", "b", "base", "condition", "true_value", "false_value", "body")


class Unknown(Exception):
    """An index that is no function of threads and loops alone, such as one read from memory."""


def kind_of(node: Any) -> str:
    """The name of a node's class."""
    return type(node).__name__


def called(node: Any) -> str:
    """What a call calls, without its dialect; empty for other nodes."""
    return str(getattr(node.op, "name", "")).rpartition(".")[2] if kind_of(node) == "Call" else ""


def evaluate(expr: Any, values: Values) -> Any:
    """The expression for every combination of the variables; a vector by its first lane.

    Raises:
        Unknown: it holds something that is not arithmetic on the variables.
    """
    kind = kind_of(expr)
    if kind == "Var":
        if hash(expr) not in values:
            raise Unknown(f"variable {expr}")
        return values[hash(expr)]
    if kind == "IntImm":
        return np.int64(int(expr.value))
    if kind == "Ramp":
        return evaluate(expr.base, values)
    if kind in ("Broadcast", "Cast"):
        return evaluate(expr.value, values)
    if kind == "Not":
        return np.logical_not(evaluate(expr.a, values))
    if kind in _BINARY:
        return _BINARY[kind](evaluate(expr.a, values), evaluate(expr.b, values))
    if kind == "Select":
        parts = (expr.condition, expr.true_value, expr.false_value)
        return np.where(*(evaluate(p, values) for p in parts))
    if called(expr) in _CALLS:
        return _CALLS[called(expr)](*(evaluate(a, values) for a in expr.args))
    raise Unknown(f"{kind} {called(expr)} in an index")


def children(expr: Any) -> Iterator[Any]:
    """The expressions that one is made of."""
    kind = kind_of(expr)
    if kind in ("Var", "IntImm", "FloatImm", "StringImm"):
        return
    if kind == "Call":
        yield from expr.args
    elif kind == "TensorLoad":
        yield from expr.indices
    elif kind in ("Broadcast", "Cast", "Let"):
        yield expr.value
        if kind == "Let":
            yield expr.body
    else:
        yield from (getattr(expr, name) for name in _CHILDREN if hasattr(expr, name))


def variables(expr: Any) -> set[int]:
    """Hashes of the variables that an expression holds."""
    if kind_of(expr) == "Var":
        return {hash(expr)}
    return set().union(*map(variables, children(expr)))


def lanes(index: Any) -> int:
    """How many elements a vector index names."""
    return int(index.lanes) if kind_of(index) == "Ramp" else 1
