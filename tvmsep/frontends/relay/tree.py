"""Relay programs as plain data: what the parser makes and the importer reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class Place(NamedTuple):
    """Where in the file, both from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class TensorType:
    """`Tensor[(1, ?), float32]`; an unknown dimension is None."""

    shape: tuple[int | None, ...]
    dtype: str


Type = Any
"""A `TensorType`, a tuple of types, or None where the text leaves it open."""


@dataclass(frozen=True, slots=True)
class Expr:
    """Any expression."""

    at: Place


@dataclass(frozen=True, slots=True)
class Name(Expr):
    """`%x`, `%0`, `@f` or an operator's name, with its sign."""

    text: str


@dataclass(frozen=True, slots=True)
class Literal(Expr):
    """A scalar."""

    value: float | int | bool
    dtype: str


@dataclass(frozen=True, slots=True)
class Meta(Expr):
    """`meta[relay.Constant][3]`."""

    kind: str
    index: int


@dataclass(frozen=True, slots=True)
class TupleOf(Expr):
    """`(%a, %b)`."""

    fields: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Project(Expr):
    """`%a.0`."""

    source: Expr
    index: int


@dataclass(frozen=True, slots=True)
class Call(Expr):
    """`callee(args, key=value)`."""

    callee: Expr
    args: tuple[Expr, ...]
    attrs: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Scope(Expr):
    """Bindings (name, its declared type, expression), then a result."""

    bindings: tuple[tuple[Name, Type, Expr], ...]
    result: Expr


@dataclass(frozen=True, slots=True)
class Param:
    """A function's parameter."""

    name: Name
    type: Type


@dataclass(frozen=True, slots=True)
class Function(Expr):
    """`fn (%x: ...) -> ... { ... }`."""

    params: tuple[Param, ...]
    returns: Type
    body: Scope
