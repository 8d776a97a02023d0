"""The timing harness: TIR that is linked with every candidate and times it as it will run.

A kernel called in a loop finds its weights in L2 and its input where it read it last: times that
no network sees (a depthwise layer can take twice as long when its producer was split over the
threads in another way). So one repeat is

1. sweep: each thread writes a scratch buffer of 1.5 times its L2, or its part of three quarters
   of the last-level cache, so that weights, residual and output are as far away as they are when
   the rest of a network has passed through since they were used. It writes because layers do: a
   sweep that only reads leaves weights in a shared last-level cache that a network finds gone
   (measured on MobileNetV2's classifier: 33 us after reading, 84 after writing, 130 in place);
2. produce: the input is written afresh from a copy, divided over the threads as the workload's
   `in_split` says its real producer divides it;
3. clock, kernel, clock; both readings are stored as they are.

The harness depends on the kernel's parameters, not on its config. It calls the kernel by the C
symbol of its packed function, left undefined here, so that it is compiled once per task and
linked with each candidate's object. It needs nothing from the board but libc's `clock_gettime`
and TVM's runtime: any stock TVM RPC server can run it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmsep.compiler import clock_call, stamps_dtype
from tvmsep.contracts import Target, Workload

if TYPE_CHECKING:
    from tvm import IRModule, tirx

KERNEL = "tvmsep_kernel"
"""Global symbol of every candidate's kernel."""
TIMER = "tvmsep_time"
"""`(source, *kernel parameters, sweep, stamps, repeats)`."""
POISON = "tvmsep_poison"
"""`(output)`: fills it with NaN, so that an element left unwritten shows."""
MAX_REPEATS = 256
"""Rows of the stamps tensor."""
LINE = 16
"""fp32 elements of a 64-byte cache line."""

Params = list[tuple[tuple[int, ...], str]]
"""Shape and dtype of each kernel parameter, in order: activation first, output last."""


def sweep_shape(t: Target, threads: int) -> tuple[int, int, int]:
    """Shape of the fp32 scratch buffer: `[threads, cache lines, 16]`."""
    each = max(3 * t.l2_bytes // 2, 3 * t.l3_bytes // 4 // threads)
    return threads, -(-each // 64), LINE


def params_of(func: tirx.PrimFunc) -> Params:
    """Shapes and dtypes of a kernel's parameters."""
    types = [p.ty for p in func.params]
    return [(tuple(int(d) for d in ty.shape), str(ty.dtype)) for ty in types]


def _produce(shape: tuple[int, ...], split: str, threads: int) -> list[str]:
    """Body of the parallel loop over `t` that copies `src` to `a0`, both of `shape`."""
    if len(shape) == 4:
        n, blocks, pixels, lanes = shape
        at, inner = "{i}, {c}, {p}, v", f"for v in T.vectorized({lanes}):"
    elif len(shape) == 3:
        n, blocks, pixels = shape
        at, inner = "{i}, {c}, {p}", ""
    else:
        raise ValueError(f"an activation has 3 or 4 axes, this kernel's has {len(shape)}: {shape}")
    if split == "channels":
        outer, rest = n * blocks, pixels
        here = at.format(i=f"q // {blocks}", c=f"q % {blocks}", p="r")
    else:
        outer, rest = n * pixels, blocks
        here = at.format(i=f"q // {pixels}", c="r", p=f"q % {pixels}")
    chunk = -(-outer // threads)
    first = f"t * {chunk}"
    span = f"for k in range(T.max(0, T.min({chunk}, {outer} - {first}))):"
    # Pixels run inside, whichever axis is divided, so that both copies stream.
    loops = [span, f"    for r in range({rest}):"]
    if split != "channels":
        loops = [f"for r in range({rest}):", "    " + span]
    here = here.replace("q", f"({first} + k)")
    copy = f"a0[{here}] = src[{here}]"
    body = [inner, "    " + copy] if inner else [copy]
    return loops + ["        " + line for line in body]


def source(params: Params, w: Workload, t: Target, threads: int) -> str:
    """TVMScript of the harness for one list of kernel parameters."""

    def buffer(name: str, shape: tuple[int, ...], dtype: str) -> str:
        return f'{name}: T.Buffer({shape}, "{dtype}")'

    word = stamps_dtype(t)
    slots, lines, _ = sweep_shape(t, threads)
    args = [buffer(f"a{i}", *p) for i, p in enumerate(params)]
    out_shape, out_dtype = params[-1]
    flat = out_shape[-1]
    out_at = ", ".join([*(f"i{d}" for d in range(len(out_shape) - 1)), "v"])
    grid = ", ".join(f"i{d}" for d in range(1, len(out_shape) - 1))
    extents = ", ".join(str(d) for d in out_shape[1:-1])
    call = ", ".join(f"a{i}" for i in range(len(params)))
    text = [
        "@I.ir_module",
        "class Harness:",
        "    @T.prim_func(s_tir=True)",
        f"    def {TIMER}(",
        f"        {buffer('src', *params[0])},",
        *(f"        {a}," for a in args),
        f"        {buffer('sweep', (slots, lines, LINE), 'float32')},",
        f"        {buffer('stamps', (MAX_REPEATS, 4), word)},",
        "        repeats: T.int32,",
        "    ):",
        f'        T.func_attr({{"global_symbol": "{TIMER}", "tirx.noalias": True}})',
        "        for r in range(repeats):",
        f"            for t in T.parallel({slots}):",
        f"                for i in range({lines}):",
        f"                    for v in T.vectorized({LINE}):",
        "                        sweep[t, i, v] = sweep[t, i, v] + T.float32(1)",
        f"            for t in T.parallel({threads}):",
        *("                " + s for s in _produce(params[0][0], w.in_split, threads)),
        "            " + clock_call(t, "stamps[r, 0]"),
        f'            T.evaluate(T.call_cpacked("__tvm_ffi_{KERNEL}", {call}))',
        "            " + clock_call(t, "stamps[r, 2]"),
        "",
        "    @T.prim_func(s_tir=True)",
        f"    def {POISON}({args[-1].replace(f'a{len(params) - 1}', 'out', 1)}):",
        f'        T.func_attr({{"global_symbol": "{POISON}", "tirx.noalias": True}})',
        f"        for i0 in range({out_shape[0]}):",
        f"            for {grid} in T.grid({extents}):",
        f"                for v in range({flat}):",
        f'                    out[{out_at}] = T.Cast("{out_dtype}", T.float32("nan"))',
    ]
    return "\n".join(text) + "\n"


def module(params: Params, w: Workload, t: Target, threads: int) -> IRModule:
    """The harness as TIR, ready for `tvm.tirx.build`."""
    import tvm

    return tvm.script.from_source(source(params, w, t, threads))
