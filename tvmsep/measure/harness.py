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

The harness depends on how many parameters the kernel has and of which rank, not on its config nor
on its sizes. It calls the kernel by the C symbol of its packed function, left undefined here, so
that it is compiled once for many tasks and linked with each candidate's object. It needs nothing
from the board but libc's `clock_gettime` and TVM's runtime: any stock TVM RPC server can run it.

On a CUDA device `compiler/events.c` does the same three things, with copies inside the device's
memory for 1. and 2. and events for the clock; one object file serves every candidate.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tvmsep.compiler import TIME, clock_call, stamps_dtype
from tvmsep.contracts import Target, Workload

if TYPE_CHECKING:
    from tvm import tirx

KERNEL = "tvmsep_kernel"
"""Global symbol of every candidate's kernel."""
TIMER = TIME
"""`(source, *kernel parameters, sweep, stamps, repeats)`."""
POISON = "tvmsep_poison"
"""`(output)`: fills it with NaN, so that an element left unwritten shows."""
MAX_REPEATS = 256
"""Rows of the stamps tensor."""
LINE = 16
"""fp32 elements of a 64-byte cache line."""


def names() -> Iterator[str]:
    """Other names of `KERNEL`'s length, under which candidates are linked into a network."""
    return (f"kernel_{i:06d}" for i in itertools.count())


Params = list[tuple[tuple[int, ...], str]]
"""Shape and dtype of each kernel parameter, in order: activation first, output last."""


def sweep_shape(t: Target, threads: int) -> tuple[int, int, int]:
    """Shape of the fp32 scratch buffer: `[threads, cache lines, 16]`; a GPU's has two halves."""
    if t.gpu is not None:
        return 2, -(-3 * t.gpu.l2_bytes // 2 // 64), LINE
    each = max(3 * t.l2_bytes // 2, 3 * t.l3_bytes // 4 // threads)
    return threads, -(-each // 64), LINE


def params_of(func: tirx.PrimFunc) -> Params:
    """Shapes and dtypes of a kernel's parameters."""
    types = [p.ty for p in func.params]
    return [(tuple(int(d) for d in ty.shape), str(ty.dtype)) for ty in types]


def _produce(shape: Sequence[str], split: str, threads: int) -> list[str]:
    """Body of the parallel loop over `t` that copies `src` to `a0`, both of `shape`."""
    if len(shape) == 4:
        n, blocks, pixels, lanes = shape
        vector = max(d for d in range(1, LINE + 1) if int(lanes) % d == 0)
        run = int(lanes) // vector  # vectors of a block, each of which is copied for itself
        at, inner = "{i}, {c}, {p}, v", f"for v in T.vectorized({vector}):"
        if run > 1:
            blocks = f"({blocks} * {run})"
            at = f"{{i}}, ({{c}}) // {run}, {{p}}, ({{c}}) % {run} * {vector} + v"
    elif len(shape) == 3:
        n, blocks, pixels = shape
        at, inner = "{i}, {c}, {p}", ""
    else:
        raise ValueError(f"an activation has 3 or 4 axes, this kernel's has {len(shape)}: {shape}")
    if split == "channels":
        outer, rest, size = f"{n} * {blocks}", pixels, blocks
        here = at.format(i=f"q // {size}", c=f"q % {size}", p="r")
    else:
        outer, rest, size = f"{n} * {pixels}", blocks, pixels
        here = at.format(i=f"q // {size}", c="r", p=f"q % {size}")
    chunk = f"(({outer} + {threads - 1}) // {threads})"
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


def _symbolic(shape: tuple[int, ...], name: str) -> list[str]:
    """Names for all axes of a shape but its vectors, which a loop has to know."""
    lanes = [str(shape[3])] if len(shape) == 4 else []
    return [f"{name}{d}" for d in range(len(shape) - len(lanes))] + lanes


def source(params: Params, w: Workload, t: Target, threads: int) -> str:
    """TVMScript of the harness for one list of kernel parameters.

    Shapes are read from the tensors when it runs, so that most tasks of a network share a few
    harnesses: compiling one takes longer than compiling a candidate.
    """

    def bind(name: str, handle: str, shape: Sequence[str], dtype: str) -> str:
        return f'{name} = T.match_buffer({handle}, ({", ".join(shape)},), "{dtype}")'

    def declare(shape: Sequence[str]) -> list[str]:
        return [f"        {d} = T.int32()" for d in shape if not d.isdigit()]

    word = stamps_dtype(t)
    slots, lines, _ = sweep_shape(t, threads)
    shapes = [_symbolic(shape, f"d{i}_") for i, (shape, _) in enumerate(params)]
    dtypes = [dtype for _, dtype in params]
    act, out = shapes[0], shapes[-1]
    args = ", ".join(f"a{i}" for i in range(len(params)))
    axes = ", ".join(f"i{d}" for d in range(len(out)))
    sweep, stamps = (str(slots), str(lines), str(LINE)), (str(MAX_REPEATS), "4")
    handles = ["h_src", *(f"h{i}" for i in range(len(params))), "h_sweep", "h_stamps"]
    text = [
        "@I.ir_module",
        "class Harness:",
        "    @T.prim_func(s_tir=True)",
        f"    def {TIMER}({', '.join(f'{h}: T.handle' for h in handles)}, repeats: T.int32):",
        f'        T.func_attr({{"global_symbol": "{TIMER}", "tirx.noalias": True}})',
        *declare([d for shape in shapes for d in shape]),
        "        " + bind("src", "h_src", act, dtypes[0]),
        *(
            "        " + bind(f"a{i}", f"h{i}", *p)
            for i, p in enumerate(zip(shapes, dtypes, strict=True))
        ),
        "        " + bind("sweep", "h_sweep", sweep, "float32"),
        "        " + bind("stamps", "h_stamps", stamps, word),
        "        for r in range(repeats):",
        f"            for t in T.parallel({slots}):",
        f"                for i in range({lines}):",
        f"                    for v in T.vectorized({LINE}):",
        "                        sweep[t, i, v] = sweep[t, i, v] + T.float32(1)",
        f"            for t in T.parallel({threads}):",
        *("                " + s for s in _produce(act, w.in_split, threads)),
        "            " + clock_call(t, "stamps[r, 0]"),
        f'            T.evaluate(T.call_cpacked("__tvm_ffi_{KERNEL}", {args}))',
        "            " + clock_call(t, "stamps[r, 2]"),
        "",
        "    @T.prim_func(s_tir=True)",
        f"    def {POISON}(h_out: T.handle):",
        f'        T.func_attr({{"global_symbol": "{POISON}", "tirx.noalias": True}})',
        *declare(out),
        "        " + bind("out", "h_out", out, dtypes[-1]),
        f"        for {axes} in T.grid({', '.join(out)}):",
        f'            out[{axes}] = T.Cast("{dtypes[-1]}", T.float32("nan"))',
    ]
    return "\n".join(text) + "\n"
