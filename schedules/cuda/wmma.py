"""TVM's tensor intrinsics for the fragments of tensor cores: WMMA of float16 into float32.

They are those of `tvm.s_tir.tensor_intrin.cuda`, for the shapes and scopes used here. That module
parses a hundred of them when it is imported, for 16 seconds; a shape's five take half of one.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

DEPTH = 16
"""Extent of the reduction in every fragment of float16."""
SHAPES = {"16x16": (16, 16), "8x32": (8, 32)}
"""Rows and columns of an accumulator by the name that a knob has for them."""

_COPY = """
@T.prim_func(s_tir=True)
def {name}(a: T.handle, c: T.handle) -> None:
{strides}
    A = T.match_buffer(a, ({r}, {s}), "{dtype}", align=64, offset_factor={s}, scope="{source}"{a})
    C = T.match_buffer(c, ({r}, {s}), "{dtype}", align=64, offset_factor={s}, scope="{to}"{c})
    with T.sblock("root"):
        T.reads(A[0:{r}, 0:{s}])
        T.writes(C[0:{r}, 0:{s}])
        {body}
"""
_FILL = """
@T.prim_func(s_tir=True)
def {name}(c: T.handle) -> None:
{strides}
    C = T.match_buffer(
        c, ({m}, {n}), "float32", align=64, offset_factor={n}, scope="wmma.accumulator"{c}
    )
    with T.sblock("root"):
        T.reads()
        T.writes(C[0:{m}, 0:{n}])
        {body}
"""
_SYNC = """
@T.prim_func(s_tir=True)
def {name}(a: T.handle, b: T.handle, c: T.handle) -> None:
{strides}
    A = T.match_buffer(
        a, ({m}, 16), "float16", align=64, offset_factor=16, scope="wmma.matrix_a"{a}
    )
    B = T.match_buffer(
        b, (16, {n}), "float16", align=64, offset_factor={n}, scope="wmma.matrix_b"{b}
    )
    C = T.match_buffer(
        c, ({m}, {n}), "float32", align=64, offset_factor={n}, scope="wmma.accumulator"{c}
    )
    with T.sblock("root"):
        T.reads(C[0:{m}, 0:{n}], A[0:{m}, 0:16], B[0:16, 0:{n}])
        T.writes(C[0:{m}, 0:{n}])
        {body}
"""
_EACH = """for i, j in T.grid({r}, {s}):
            with T.sblock("each"):
                vi, vj = T.axis.remap("SS", [i, j])
                C[vi, vj] = {value}"""
_MULTIPLY = """for i, j, k in T.grid({m}, {n}, 16):
            with T.sblock("each"):
                vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                C[vi, vj] = C[vi, vj] + (
                    T.Cast("float32", A[vi, vk]) * T.Cast("float32", B[vk, vj])
                )"""


class Intrinsics(NamedTuple):
    """Names under which a shape's intrinsics are registered."""

    load_a: str
    load_b: str
    fill: str
    sync: str
    store: str


@cache
def intrinsics(shape: str) -> Intrinsics:
    """Register the intrinsics of a shape, one of SHAPES, with TVM."""
    m, n = SHAPES[shape]
    names = Intrinsics(*(f"tvmsep_wmma_{shape}_{part}" for part in Intrinsics._fields))
    _copy(names.load_a, m, DEPTH, "shared", "wmma.matrix_a", "float16", (m, n))
    _copy(names.load_b, DEPTH, n, "shared", "wmma.matrix_b", "float16", (m, n))
    _copy(names.store, m, n, "wmma.accumulator", "shared", "float32", (m, n))
    fill = f"T.evaluate(T.tvm_fill_fragment(C.data, {m}, {n}, 16, {_at('C', 'c', m, n)}, " + (
        "T.float32(0), dtype='void'))"
    )
    _register(names.fill, _FILL, "c", _EACH.format(r=m, s=n, value="T.float32(0)"), fill, m=m, n=n)
    a, b, c = _at("A", "a", m, DEPTH), _at("B", "b", DEPTH, n), _at("C", "c", m, n)
    sync = (
        f"T.evaluate(T.tvm_mma_sync(C.data, {c}, A.data, {a}, B.data, {b}, C.data, {c}, "
        "dtype='void'))"
    )
    _register(names.sync, _SYNC, "abc", _MULTIPLY.format(m=m, n=n), sync, m=m, n=n)
    return names


def _copy(
    name: str, r: int, s: int, source: str, to: str, dtype: str, shape: tuple[int, int]
) -> None:
    """Between shared memory and a fragment."""
    stored = to == "shared"
    fragment = _at("A", "a", r, s) if stored else _at("C", "c", r, s)
    data, other, stride, access = ("A", "C", "c1", "w") if stored else ("C", "A", "a1", "r")
    call = "tvm_store_matrix_sync" if stored else "tvm_load_matrix_sync"
    body = (
        f"T.evaluate(T.{call}({data}.data, {shape[0]}, {shape[1]}, 16, {fragment}, "
        f"{other}.access_ptr('{access}', ptr_type='{dtype}'), {stride}, 'row_major', dtype='void'))"
    )
    _register(
        name, _COPY, "ac", _EACH.format(r=r, s=s, value="A[vi, vj]"), body, r=r, s=s,
        source=source, to=to, dtype=dtype,
    )  # fmt: skip


def _at(buffer: str, letter: str, rows: int, columns: int) -> str:
    """Which of an array's fragments begins where a buffer does."""
    place, stride = f"{buffer}.elem_offset", f"{letter}1"
    above = f"{place} // {stride} // {rows} * ({stride} // {columns})"
    return f"{above} + {place} % {stride} // {columns}"


def _register(
    name: str, pattern: str, letters: str, means: str, does: str, **values: int | str
) -> None:
    """What an intrinsic means, and what it does with buffers of any strides."""
    from tvm.s_tir import TensorIntrin
    from tvm.script import from_source

    plain = pattern.format(
        name="means", body=means, strides="", **dict.fromkeys(letters, ""), **values
    )
    strided = pattern.format(
        name="does", body=does,
        strides="\n".join(f"    {x}{d} = T.int32()" for x in letters for d in "10"),
        **{x: f", strides=[{x}1, {x}0]" for x in letters}, **values,
    )  # fmt: skip
    TensorIntrin.register(name, from_source(plain), from_source(strided), override=True)
