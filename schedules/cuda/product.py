"""The matrix product that all heavy CUDA templates are: tiles in shared memory and in registers.

Pattern
    out[n, c, p] = epilogue(sum over k of a[n, k, p] * b[n % groups, c, k])
    with channels `c`, pixels `p` and a reduction `k` over whatever the template gathers

Strategy
    1. A thread block owns `threads_oc * tile_oc` vectors of channels by `threads_p * tile_p`
       vectors of pixels. Neighbouring threads own neighbouring pixels, so a warp's store is one
       run of memory; pixels and channels past the end are computed and not stored.
    2. Walk the reduction `step_k` vectors at a time: all threads copy that part of both operands
       into shared memory, 128 bits each where the layout allows.
    3. Each thread multiplies its fragments, `tile_oc` by `tile_p` vectors, in registers: every
       value that it loads from shared memory is used `tile_p` or `tile_oc` times. Fragments are
       read 128 bits at once and without bank conflicts: pixels lie in the order of threads, rows
       of weights are padded to different banks.
    4. `split_k` groups of threads take every `split_k`-th step and add up through shared memory,
       for images too small to fill the device.
    5. `pipeline`: "none"; "registers" loads the next step into registers before it multiplies the
       present one, and stores it after; "shared" has two buffers and copies into one while the
       other is read; "async" does that by cp.async, past the registers (from sm_80).
    6. The epilogue runs on the accumulators; residuals are read and outputs written as vectors.

Idea of the hierarchy: CUTLASS (NVIDIA, "Fast Linear Algebra in CUDA C++", 2017); of splitting the
reduction inside a block: its "sliced-K".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, gcd
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Workload
from tvmsep.schedules.cuda.epilogue import finish

if TYPE_CHECKING:
    from tvm import s_tir, te

Read = Callable[..., Any]


def element_bytes(dtype: str) -> int:
    """Bytes of one element of `dtype`."""
    return {"float32": 4, "float16": 2}[dtype]


def lanes(extent: int, dtype: str) -> int:
    """The longest vector, of 128 bits at most, that divides `extent`."""
    return gcd(extent, 16 // element_bytes(dtype))


@dataclass(frozen=True)
class Product:
    """The geometry of one product. Extents are elements, `vector_*` elements of one vector."""

    batch: int
    """Images times groups."""
    groups: int
    channels: int
    """Of one group, with the padding of its last block."""
    pixels: int
    depth: int
    vector_c: int
    vector_p: int
    vector_k: int
    along: str
    """What a vector of the first operand runs along in memory: "k", "p", or "" for none."""
    k_first: bool
    """Whether neighbours in memory of the first operand are neighbours in the reduction."""
    dtype: str
    tap_reads: int = 0
    """Reads for one element of the first operand where it is computed, not copied."""

    @classmethod
    def of(
        cls, w: Workload, depth: int, *, gathered: bool = False, taps: int = 0, images: bool = False
    ) -> Product:
        """The geometry that a workload's blocks give.

        Args:
            w: what is computed.
            depth: extent of the reduction, padding of its blocks included.
            gathered: whether the first operand's pixels are not the input's, one after the other.
            taps: see `tap_reads`.
            images: whether images of one pixel are taken for pixels of one image.
        """
        pixels = w.n if images else w.oh * w.ow
        groups = 1 if taps else w.groups
        channels = w.out_blocks * w.out_block // groups
        plain = w.in_block <= 1
        vector_c = lanes(w.out_block, w.dtype)
        vector_p = lanes(pixels, w.dtype) if w.out_block == 1 and not images else 1
        vector_k = lanes(depth if plain else w.in_block, w.dtype)
        if plain and gathered:  # TVM writes no indices for eight taps at once
            vector_k = gcd(vector_k, 4)
        along = "k" if not plain and vector_k > 1 else "p" if plain and not gathered else ""
        return cls(
            batch=groups if images else w.n * groups, groups=groups, channels=channels,
            pixels=pixels, depth=depth,
            vector_c=vector_c, vector_p=vector_p, vector_k=vector_k,
            along="" if along == "p" and vector_p == 1 else along,
            k_first=w.in_block > vector_k, dtype=w.dtype, tap_reads=taps,
        )  # fmt: skip

    @property
    def rows(self) -> int:
        """Vectors of channels."""
        return self.channels // self.vector_c

    @property
    def columns(self) -> int:
        """Vectors of pixels."""
        return self.pixels // self.vector_p

    @property
    def steps(self) -> int:
        """Vectors of the reduction."""
        return self.depth // self.vector_k


@dataclass(frozen=True)
class Tiling:
    """A config's numbers, in vectors, and what follows from them and the geometry."""

    tile_p: int
    tile_oc: int
    threads_p: int
    threads_oc: int
    step_k: int
    split_k: int
    pipeline: str

    @classmethod
    def of(cls, c: Config) -> Tiling:
        """The knobs of `c`."""
        return cls(
            c.int("tile_p"), c.int("tile_oc"), c.int("threads_p"), c.int("threads_oc"),
            c.int("step_k"), c.int("split_k"), str(c["pipeline"]),
        )  # fmt: skip

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.threads_p * self.threads_oc * self.split_k

    def grid(self, g: Product) -> tuple[int, int, int]:
        """Blocks over pixels, channels and batch."""
        across = ceil(g.columns / (self.threads_p * self.tile_p))
        return across, ceil(g.rows / (self.threads_oc * self.tile_oc)), g.batch

    def rounds(self, g: Product) -> int:
        """Steps that each group of threads walks."""
        return ceil(g.steps / (self.step_k * self.split_k))


def typed_inputs(w: Workload, suffix: str = "") -> tuple[te.Tensor | None, te.Tensor | None]:
    """Placeholders for bias (float32 always) and residual, where the epilogue has them."""
    from tvm import te

    bias = res = None
    if "bias" in w.epilogue:
        bias = te.placeholder((w.out_blocks, w.out_block), name="bias" + suffix)
    if "add" in w.epilogue:
        res = te.placeholder(w.out_shape, w.dtype, name="residual")
    return bias, res


def stages(
    g: Product, t: Tiling, w: Workload, read: Read, weight: Read, bias: Any, res: Any
) -> te.Tensor:
    """The stages `a`, `b`, `acc`, (`part`,) (`res`,) `fin`, `tile` and `out`.

    Args:
        g: the geometry.
        t: the tiling, which shapes all stages but the last.
        w: the workload, for its epilogue and the output's blocks.
        read: `a[n, k, p]`, of one element of the first operand.
        weight: `b[group, c, k]`.
        bias: `[ob, o]` or None.
        res: the residual at (image, channel block, pixel, lane), or None.

    Returns:
        The output as `[batch, c vector, p vector, p lane, c lane]`; `store_layout` is its layout.
    """
    from tvm import te

    nv, pv, kv, cv = g.batch, g.vector_p, g.vector_k, g.vector_c
    pb, cb, _ = t.grid(g)
    depth = t.rounds(g) * t.step_k * t.split_k
    group = (lambda n: n % g.groups) if g.groups > 1 else lambda _: 0

    def column(pb: Any, pi: Any, tp: Any) -> Any:
        return within((pb * t.tile_p + pi) * t.threads_p + tp, g.columns, t.tile_p * t.threads_p)

    def row(cb: Any, ci: Any, tc: Any) -> Any:
        return within((cb * t.tile_oc + ci) * t.threads_oc + tc, g.rows, t.tile_oc * t.threads_oc)

    def operand(n: Any, k: Any, pb: Any, pi: Any, tp: Any, u: Any, lane: Any) -> Any:
        # What is computed is computed for every index: none may be past the end.
        near = within(k, g.steps, t.step_k * t.split_k) if g.tap_reads else k
        value = read(n, near * kv + lane, column(pb, pi, tp) * pv + u)
        if depth == g.steps:
            return value
        from tvm import tirx

        return te.if_then_else(k < g.steps, value, tirx.const(0, g.dtype))

    if g.along == "p":
        a = te.compute(
            (nv, depth, kv, pb, t.tile_p, t.threads_p, pv),
            lambda n, k, lane, pb, pi, tp, u: operand(n, k, pb, pi, tp, u, lane),
            name="a",
        )
    else:
        a = te.compute((nv, depth, pb, t.tile_p, t.threads_p, pv, kv), operand, name="a")
    b = te.compute(
        (g.groups, cb, t.tile_oc, t.threads_oc, depth, kv, cv),
        lambda gr, cb, ci, tc, k, lane, v: weight(
            gr, row(cb, ci, tc) * cv + v, within(k, g.steps, t.step_k * t.split_k) * kv + lane
        ),
        name="b",
    )
    ro = te.reduce_axis((0, t.rounds(g)), name="ro")
    ri = te.reduce_axis((0, t.step_k), name="ri")
    rl = te.reduce_axis((0, kv), name="rl")
    shape = (nv, cb, t.tile_oc, t.threads_oc, pb, t.tile_p, t.threads_p, pv, cv)

    def product(z: Any, n: Any, cb: Any, ci: Any, tc: Any, pb: Any, pi: Any, tp: Any, u: Any,
                v: Any) -> Any:  # fmt: skip
        k = (ro * t.split_k + z) * t.step_k + ri
        first = a[n, k, rl, pb, pi, tp, u] if g.along == "p" else a[n, k, pb, pi, tp, u, rl]
        second = b[group(n), cb, ci, tc, k, rl, v]
        if g.dtype != "float32":
            first, second = first.astype("float32"), second.astype("float32")
        return te.sum(first * second, axis=[ro, ri, rl])

    if t.split_k > 1:
        acc = te.compute((t.split_k, *shape), product, name="acc")
        part = te.compute((t.split_k, *shape), lambda *i: acc(*i), name="part")
    else:
        acc = te.compute(shape, lambda *i: product(0, *i), name="acc")

    def place(n: Any, c: Any, p: Any) -> tuple[Any, ...]:
        """Where channel `c` of batch entry `n` lies in the blocked output."""
        if g.groups > 1:
            n, c = n // g.groups, n % g.groups * g.channels + c
        return n, c // w.out_block, p, c % w.out_block

    def spot(n: Any, cb: Any, ci: Any, tc: Any, pb: Any, pi: Any, tp: Any, u: Any, v: Any) -> Any:
        return place(n, row(cb, ci, tc) * cv + v, column(pb, pi, tp) * pv + u)

    rest = te.compute(shape, lambda *i: res(*spot(*i)), name="rest") if res is not None else None

    def value(*i: Any) -> Any:
        if t.split_k == 1:
            total = acc(*i)
        else:
            total = sum((part(z, *i) for z in range(1, t.split_k)), part(0, *i))
        _, ob, _, o = spot(*i)
        add = rest(*i).astype("float32") if rest is not None else None
        done = finish(
            w.epilogue, total, bias(ob, o).astype("float32") if bias is not None else None, add
        )
        return done if g.dtype == "float32" else done.astype(g.dtype)

    fin = te.compute(shape, value, name="fin")
    tile = te.compute(shape, lambda *i: fin(*i), name="tile")
    to, tp = t.tile_oc * t.threads_oc, t.tile_p * t.threads_p
    return te.compute(
        (nv, g.rows, g.columns, pv, cv),
        lambda n, c, p, u, v: tile[
            n, c // to, c // t.threads_oc % t.tile_oc, c % t.threads_oc,
            p // tp, p // t.threads_p % t.tile_p, p % t.threads_p, u, v,
        ],
        name="out",
    )  # fmt: skip


def store_layout(g: Product, w: Workload) -> Callable[..., tuple[Any, ...]]:
    """How the stage `out` lies in memory: as `Workload.out_shape` says."""
    images = w.op == "dense"

    def place(n: Any, c: Any, p: Any, u: Any, v: Any) -> tuple[Any, ...]:
        channel = c * g.vector_c + v
        if g.groups > 1:
            n, channel = n // g.groups, n % g.groups * g.channels + channel
        block, lane = channel // w.out_block, channel % w.out_block
        if images:
            return p, block, n, lane
        return n, block, p * g.vector_p + u, lane

    return place


def schedule(sch: s_tir.Schedule, g: Product, t: Tiling, w: Workload) -> None:
    """The docstring's steps, in s_tir primitives."""
    out, tile, fin, acc = (sch.get_sblock(s) for s in ("out", "tile", "fin", "acc"))
    n, cb, ci, tc, pb, pi, tp, u, v = sch.get_loops(tile)
    for loop, axis in ((n, "z"), (cb, "y"), (pb, "x")):  # 1.
        sch.bind(loop, f"blockIdx.{axis}")
    sch.reorder(n, cb, pb, tc, tp, ci, pi, u, v)
    mine, z = sch.split(sch.fuse(ci, pi), [None, t.split_k])
    sch.reorder(z, tc, tp, mine)
    _bind_threads(sch, z, tc, tp)
    sch.unroll(mine)
    sch.vectorize(sch.fuse(u, v))
    sch.annotate(n, "pragma_unroll_explicit", 0)
    sch.set_scope(fin, 0, "local")
    sch.compute_at(fin, mine, preserve_unit_loops=True)
    unroll(sch, sch.get_loops(fin)[-9:])
    if "add" in w.epilogue:  # 6.
        rest = sch.get_sblock("rest")
        sch.set_scope(rest, 0, "local")
        sch.compute_at(rest, mine, preserve_unit_loops=True)
        sch.vectorize(sch.fuse(*sch.get_loops(rest)[-2:]))
    sch.set_scope(acc, 0, "local")
    if t.split_k > 1:  # 4.
        part = sch.get_sblock("part")
        sch.set_scope(part, 0, "shared")
        sch.compute_at(part, pb, preserve_unit_loops=True)
        z, n, cb, ci, tc, pb, pi, tp, u, v = sch.get_loops(part)[-10:]
        sch.reorder(z, tc, tp, n, cb, pb, ci, pi, u, v)
        _bind_threads(sch, z, tc, tp)
        rest, vector = sch.split(sch.fuse(u, v), [None, lanes(g.vector_p * g.vector_c, "float32")])
        unroll(sch, (ci, pi, rest))
        sch.vectorize(vector)
    sch.compute_at(acc, tp, preserve_unit_loops=True)
    ro = _multiply(sch, g, t, acc)
    for operand in ("a", "b"):
        _fetch(sch, g, t, w, operand, ro)
    init = sch.decompose_reduction(acc, ro)
    unroll(sch, sch.get_loops(init)[-9:])
    _pipeline(sch, t, ro)
    sch.transform_layout(out, ("write", 0), store_layout(g, w))
    sch.reverse_compute_inline(out)  # last: its condition is more than primitives understand


def _multiply(sch: s_tir.Schedule, g: Product, t: Tiling, acc: Any) -> Any:
    """Step 3; returns the loop over steps of the reduction."""
    *spatial, ro, ri, rl = sch.get_loops(acc)[-12:]
    sch.reorder(ro, ri, rl, *spatial)
    unroll(sch, (ri, rl, *spatial))
    for index, per_lane in enumerate((g.along == "p", g.vector_c > 1)):
        fragment = sch.cache_read(acc, index, "local")
        sch.compute_at(fragment, rl if per_lane else ri, preserve_unit_loops=True)
        *rest, last, lane = sch.get_loops(fragment)[-7:]
        if sch.get(lane).extent == 1:
            lane = sch.fuse(last, lane)
        else:
            rest.append(last)
        unroll(sch, rest)
        # TVM refuses asynchronous copies into what it has made an array of vectors, which it
        # does where all accesses are vectors; the compiler joins these loads all the same.
        (sch.unroll if t.pipeline == "async" else sch.vectorize)(lane)
    return ro


def _fetch(sch: s_tir.Schedule, g: Product, t: Tiling, w: Workload, name: str, ro: Any) -> None:
    """Step 2 for one operand: threads in turn take vectors, in the order in which memory has them.

    The stride from one thread's row to the next is made 16 bytes more than whole turns of the 32
    banks wherever neighbouring threads would meet in one bank.
    """
    operand = sch.get_sblock(name)
    sch.set_scope(operand, 0, "shared")
    sch.compute_at(operand, ro, preserve_unit_loops=True)
    loops = sch.get_loops(operand)[-7:]
    banks = (128 // element_bytes(g.dtype), 16 // element_bytes(g.dtype))
    if name == "b":
        gr, cb, ci, tc, k, lane, v = loops
        vector = g.vector_c > 1 or (w.out_block == 1 and g.vector_k > 1)
        if w.out_block > g.vector_c:
            sch.reorder(gr, cb, k, lane, ci, tc, v)
            order = [k, lane, ci, tc, v]
        else:
            order = [ci, tc, k, lane, v]
        if g.vector_c == 1 and w.out_block == 1:
            order = [ci, tc, k, sch.fuse(lane, v)]
        sch.storage_align(operand, 0, 3, *banks)
    elif g.along == "p":
        n, k, lane, pb, pi, tp, u = loops
        sch.reorder(n, pb, k, lane, pi, tp, u)
        order, vector = [k, lane, pi, tp, u], True
    else:
        n, k, pb, pi, tp, u, lane = loops
        order = [pi, tp, u, k, lane] if g.k_first else [k, pi, tp, u, lane]
        vector = g.along == "k"
        if not vector:
            order = [k, lane, pi, tp, u]
        sch.reorder(n, pb, *order)
        if g.k_first:
            sch.storage_align(operand, 0, 1, *banks)
    last = [order.pop()] if vector else []
    turn, z, y, x = sch.split(sch.fuse(*order), [None, t.split_k, t.threads_oc, t.threads_p])
    _bind_threads(sch, z, y, x)
    if t.pipeline != "registers":  # TVM moves serial loops alone; the compiler unrolls them too
        sch.unroll(turn)
    for loop in last:
        sch.vectorize(loop)


def _pipeline(sch: s_tir.Schedule, t: Tiling, ro: Any) -> None:
    """Step 5: which parts of the loop body belong to the next step, and their order."""
    if t.pipeline == "none":
        return
    if t.pipeline == "registers":
        for name in ("a", "b"):
            sch.annotate(sch.get_sblock(name), "tirx.manifest_shared_memory_local_stage", 1)
        sch.annotate(ro, "software_pipeline_stage", [0, 0, 0, 0, 1])
        sch.annotate(ro, "software_pipeline_order", [0, 3, 1, 4, 2])
        return
    sch.annotate(ro, "software_pipeline_stage", [0, 0, 1])
    sch.annotate(ro, "software_pipeline_order", [0, 1, 2])
    if t.pipeline == "async":
        sch.annotate(ro, "software_pipeline_async_stages", [0])


def _bind_threads(sch: s_tir.Schedule, z: Any, y: Any, x: Any) -> None:
    for loop, axis in ((z, "z"), (y, "y"), (x, "x")):
        sch.bind(loop, f"threadIdx.{axis}")


def unroll(sch: s_tir.Schedule, loops: Iterable[Any]) -> None:
    """Unroll each of the loops."""
    for loop in loops:
        sch.unroll(loop)


def within(index: Any, extent: int, tile: int) -> Any:
    """`index`, held below `extent` where whole tiles reach past it."""
    from tvm import te

    return index if extent % tile == 0 else te.min(index, extent - 1)
