"""Relay's text format, as TVM up to 0.19 printed it, parsed into plain data.

The grammar covers what the printer writes for networks: definitions, `fn`, `let`, `%0 = ...;`,
tuples and projections, calls with attributes, types, `meta[...]` references, and the infix
operators of programs written by hand. Types in comments (`/* ty=... */`) are skipped.
Nodes are built while parsing, so deeply nested text cannot exhaust Python's stack here.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import ModelError
from tvmsep.frontends.relay.tree import (
    Call,
    Expr,
    Function,
    Literal,
    Meta,
    Name,
    Param,
    Place,
    Project,
    Scope,
    TensorType,
    TupleOf,
    Type,
)

if TYPE_CHECKING:
    from lark import Lark


GRAMMAR = r"""
start: definition+ | function
definition: "def" GLOBAL type_params? "(" _parameters? ")" ["->" type] block
type_params: "[" IDENT ("," IDENT)* "]"
function: "fn" type_params? "(" _parameters? ")" ["->" type] block
_parameters: (parameter | attr) ("," (parameter | attr))* ","?
parameter: VAR [":" type]

block: "{" binding* expr "}"
?binding: GRAPH "=" expr ";" -> graph_binding
       | "let" (VAR | GRAPH) [":" type] "=" expr ";" -> let_binding

?expr: expr /==|!=|<=|>=|<|>/ sum -> infix
     | sum
?sum: sum /[-+]/ product -> infix
    | product
?product: product /[*\/]/ unary -> infix
        | unary
?unary: MINUS unary -> negative
      | postfix
?postfix: atom
        | postfix "(" (_argument ("," _argument)* ","?)? ")" -> call
        | postfix "." INDEX -> project
_argument: expr | attr
?atom: (GRAPH | VAR | GLOBAL | IDENT) -> name
     | NUMBER -> literal
     | meta
     | function
     | OPEN ")" -> tuple_of
     | OPEN expr ")" -> group
     | OPEN binding+ expr ")" -> group
     | OPEN expr "," (expr ("," expr)* ","?)? ")" -> tuple_of
     | (IF | MATCH) -> refused
meta: "meta" "[" IDENT "]" "[" NUMBER "]"

attr: (IDENT | STRING) "=" value
?value: NUMBER -> number_value
      | MINUS NUMBER -> negative_value
      | STRING -> string_value
      | IDENT -> word_value
      | meta -> meta_value
      | ("[" | OPEN) (value ("," value)* ","?)? ("]" | ")") -> list_value
      | "{" (STRING ("=" | ":") value ("," STRING ("=" | ":") value)*)? "}" -> map_value

?type: "Tensor" "[" OPEN (dim ("," dim)* ","?)? ")" "," IDENT "]" -> tensor_type
     | IDENT -> scalar_type
     | OPEN (type ("," type)* ","?)? ")" -> tuple_type
     | "fn" "(" (type ("," type)*)? ")" "->" type -> function_type
dim: NUMBER | "?" | IDENT

IF: "if"
MATCH: "match"
OPEN: "("
MINUS: "-"
GRAPH: /%[0-9]+/
VAR: /%[A-Za-z_]\w*((\.|::)\w+)*/
GLOBAL: /@[A-Za-z_][\w.]*/
IDENT: /[A-Za-z_]\w*(\.[A-Za-z_]\w*)*/
INDEX: /[0-9]+/
NUMBER: /[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?([fiu]([0-9]+)?)?(?![\w.])|(inf|nan)f([0-9]+)?(?!\w)/
STRING: /"([^"\\\n]|\\.)*"/
%ignore /\s+/
%ignore /\/\*([^*]|\*(?!\/))*\*\//
%ignore /\/\/[^\n]*/
"""

_HEADER = re.compile(r"\s*(?:#\[version = \"|v)0\.0\.\d+(?:\"\])?[ \t]*(?=\n)")
_METADATA = re.compile(r"^#\[metadata\]\s*$", re.MULTILINE)
_INFIX = {
    "+": "add", "-": "subtract", "*": "multiply", "/": "divide", "==": "equal", "<": "less",
    ">": "greater", "<=": "less_equal", ">=": "greater_equal", "!=": "not_equal",
}  # fmt: skip
_KINDS = {"f": "float", "i": "int", "u": "uint"}
_NUMBER = re.compile(r"(inf|nan|[0-9]+)(\.[0-9]+)?([eE][-+]?[0-9]+)?(?:([fiu])([0-9]*))?")


@dataclass(frozen=True)
class Program:
    """A parsed file."""

    functions: dict[str, Function]
    """By global name; a function that was printed alone is `@main`."""
    metadata: str
    """The JSON of the metadata section; empty where there is none."""


def parse(text: str, path: object) -> Program:
    """Read Relay text.

    Args:
        text: the whole file.
        path: names it in messages.

    Raises:
        ModelError: it is not Relay text, or holds what networks do not; says the line and column.
    """
    header = _HEADER.match(text)
    if header is None:
        raise ModelError(
            f'{path} is no Relay text: it does not begin with #[version = "0.0.5"]; save one with '
            "mod.astext(show_meta_data=True)"
        )
    section = _METADATA.search(text, header.end())
    code = text[: section.start()] if section else text
    code = re.sub(r"[^\n]", " ", header.group()) + code[header.end() :]  # keeps lines and columns
    import lark

    try:
        functions: dict[str, Function] = _parser().parse(code)  # type: ignore[assignment]
    except lark.exceptions.VisitError as error:
        if isinstance(error.orig_exc, _Refusal):
            raise ModelError(f"{path}, {error.orig_exc}") from error
        raise
    except _Refusal as error:
        raise ModelError(f"{path}, {error}") from error
    except lark.exceptions.UnexpectedInput as error:
        raise ModelError(f"{path}, {_unexpected(error, code)}") from error
    return Program(functions, text[section.end() :] if section else "")


class _Refusal(Exception):
    """Says where and why."""


def at(place: Place) -> str:
    """`line 3, column 8`, as messages have it."""
    return f"line {place.line}, column {place.column}"


def _unexpected(error: Any, code: str) -> str:
    line, column = error.line, error.column
    if line is None or line < 1:  # the end of the file has no place of its own
        return "the text ends too early: it is cut off; copy it again"
    rest = code.splitlines()[line - 1][column - 1 :] if line <= code.count("\n") + 1 else ""
    found = re.match(r"\w+|.", rest)
    word = found.group() if found else "the end"
    if word in ("type", "extern", "free_var"):
        return (
            f"{at(Place(line, column))}: `{word}` is not supported: only plain networks are; save "
            "the module with mod.astext(show_meta_data=True) after relay.transform.InferType()"
        )
    if not rest.strip() and code[len(code.rstrip()) :].count("\n") + line >= code.count("\n"):
        return "the text ends too early: it is cut off; copy it again"
    return (
        f"{at(Place(line, column))}: unexpected {word!r}: this is not Relay text as TVM prints it"
    )


@functools.cache
def _parser() -> Lark:
    from lark import Lark, Transformer

    build = type("Build", (_Build, Transformer), {})
    return Lark(GRAMMAR, parser="lalr", lexer="contextual", transformer=build())


def _place(token: Any) -> Place:
    return Place(token.line, token.column)


def _literal(token: Any, sign: int = 1) -> Literal:
    found = _NUMBER.fullmatch(str(token))
    if found is None or len(token) > 64:
        raise _Refusal(f"{at(_place(token))}: {str(token)[:70]} is no number")
    whole, fraction, exponent, kind, bits = found.groups()
    floating = kind == "f" or not whole.isdigit() or (kind is None and bool(fraction or exponent))
    if floating:
        value = sign * float(f"{whole}{fraction or ''}{exponent or ''}")
        return Literal(_place(token), value, f"float{bits or 32}")
    if fraction or exponent:
        raise _Refusal(f"{at(_place(token))}: {token} is no integer")
    return Literal(_place(token), sign * int(whole), f"{_KINDS[kind or 'i']}{bits or 32}")


def _small(token: Any) -> int:
    """A token that is an index or a dimension."""
    value = _literal(token).value
    if not isinstance(value, int) or value >= 1 << 31:
        raise _Refusal(f"{at(_place(token))}: {token} is no index or size")
    return value


class _Build:
    """One method a rule; each takes the rule's children."""

    def start(self, c: list[Any]) -> dict[str, Function]:
        if isinstance(c[0], Function):
            return {"@main": c[0]}
        found: dict[str, Function] = {}
        for name, function in c:
            if name in found:
                raise _Refusal(f"{at(function.at)}: {name} is defined twice")
            found[name] = function
        return found

    def definition(self, c: list[Any]) -> tuple[str, Function]:
        return str(c[0]), _function(_place(c[0]), c[1:])

    def function(self, c: list[Any]) -> Function:
        return _function(c[-1].at, c)

    def type_params(self, c: list[Any]) -> None:
        raise _Refusal(f"{at(_place(c[0]))}: type parameters are not supported")

    def parameter(self, c: list[Any]) -> Param:
        return Param(Name(_place(c[0]), str(c[0])), c[1])

    def block(self, c: list[Any]) -> Scope:
        return Scope(c[-1].at, tuple(c[:-1]), c[-1])

    def graph_binding(self, c: list[Any]) -> tuple[Name, Type, Expr]:
        return Name(_place(c[0]), str(c[0])), None, c[1]

    def let_binding(self, c: list[Any]) -> tuple[Name, Type, Expr]:
        return Name(_place(c[0]), str(c[0])), c[1], c[2]

    def infix(self, c: list[Any]) -> Call:
        place = _place(c[1])
        return Call(place, Name(place, _INFIX[str(c[1])]), (c[0], c[2]), ())

    def negative(self, c: list[Any]) -> Expr:
        place, inner = _place(c[0]), c[1]
        if isinstance(inner, Literal):
            return Literal(place, -inner.value, inner.dtype)
        return Call(place, Name(place, "negative"), (inner,), ())

    def call(self, c: list[Any]) -> Call:
        args = tuple(a for a in c[1:] if isinstance(a, Expr))
        attrs = tuple(a for a in c[1:] if not isinstance(a, Expr))
        return Call(c[0].at, c[0], args, attrs)

    def project(self, c: list[Any]) -> Project:
        return Project(c[0].at, c[0], _small(c[1]))

    def name(self, c: list[Any]) -> Expr:
        place, text = _place(c[0]), str(c[0])
        if text in ("True", "False"):
            return Literal(place, text == "True", "bool")
        return Name(place, text)

    def literal(self, c: list[Any]) -> Literal:
        return _literal(c[0])

    def meta(self, c: list[Any]) -> Meta:
        return Meta(_place(c[0]), str(c[0]), _small(c[1]))

    def group(self, c: list[Any]) -> Expr:
        if len(c) == 2:
            return c[1]  # type: ignore[no-any-return]
        return Scope(_place(c[0]), tuple(c[1:-1]), c[-1])

    def tuple_of(self, c: list[Any]) -> TupleOf:
        return TupleOf(_place(c[0]), tuple(c[1:]))

    def refused(self, c: list[Any]) -> Expr:
        raise _Refusal(
            f"{at(_place(c[0]))}: control flow (`{c[0]}`) is not supported: only plain networks are"
        )

    def attr(self, c: list[Any]) -> tuple[str, Any]:
        return str(c[0]).strip('"'), c[1]

    def number_value(self, c: list[Any]) -> Any:
        return _literal(c[0]).value

    def negative_value(self, c: list[Any]) -> Any:
        return _literal(c[1], -1).value

    def string_value(self, c: list[Any]) -> str:
        return re.sub(r"\\(.)", r"\1", str(c[0])[1:-1])

    def word_value(self, c: list[Any]) -> Any:
        word = str(c[0])
        return {"None": None, "nullptr": None, "True": True, "False": False}.get(word, word)

    def meta_value(self, c: list[Any]) -> Meta:
        return c[0]  # type: ignore[no-any-return]

    def list_value(self, c: list[Any]) -> list[Any]:
        return [v for v in c if getattr(v, "type", "") != "OPEN"]

    def map_value(self, c: list[Any]) -> dict[str, Any]:
        return {str(k).strip('"'): v for k, v in zip(c[::2], c[1::2], strict=True)}

    def tensor_type(self, c: list[Any]) -> TensorType:
        return TensorType(tuple(c[1:-1]), str(c[-1]))

    def scalar_type(self, c: list[Any]) -> Type:
        return None if str(c[0]) == "_" else TensorType((), str(c[0]))

    def tuple_type(self, c: list[Any]) -> Type:
        return tuple(c[1:])

    def function_type(self, c: list[Any]) -> Type:
        return None

    def dim(self, c: list[Any]) -> int | None:
        return _small(c[0]) if c and c[0].type == "NUMBER" else None


def _function(place: Place, c: list[Any]) -> Function:
    """From parameters and attributes in any order, then the type returned, then the body."""
    *rest, returns, body = c
    return Function(place, tuple(p for p in rest if isinstance(p, Param)), returns, body)
