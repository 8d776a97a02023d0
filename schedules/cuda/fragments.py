"""Pointwise convolutions of float16 on tensor cores: the product of `product.py`, by fragments.

Pattern
    out[r, s] = epilogue(sum over k of a[r, k] * b[k, s]) for each image: pixels by channels where a
    pixel's channels lie together, channels by pixels in NCHW, so that both operands and the output
    are read and written along rows

Strategy
    1. A thread block owns `threads_p * tile_p` fragments of pixels by `threads_oc * tile_oc` of
       channels, a warp `tile_p` by `tile_oc` of them. What is past the end is computed, not stored.
    2. Walk the reduction `step_k` fragments at a time: all threads copy that part of both operands
       into shared memory, whose rows are padded to different banks.
    3. Each warp loads fragments, and multiplies them into float32 accumulators (`wmma.py`).
    4. Accumulators go to shared memory, since which thread holds what is the hardware's secret;
       from there each thread takes vectors, runs the epilogue in float32 and stores them.

The knobs are the product's, in fragments and warps: `cores` says which. NVIDIA, CUDA C++
Programming Guide, "Warp Matrix Functions".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Gpu, Space, Target, Workload
from tvmsep.schedules.cuda.common import SPARE_REGISTERS, gpu_of, resident_blocks
from tvmsep.schedules.cuda.epilogue import finish
from tvmsep.schedules.cuda.product import Read, lanes, unroll, within
from tvmsep.schedules.cuda.wmma import DEPTH, SHAPES, intrinsics

if TYPE_CHECKING:
    from tvm import s_tir, te

CORES = ("fp32", *SHAPES)
"""Values of the knob: which units multiply, by which fragments."""
WARPS = (1, 2, 4)
"""Along pixels and along channels."""
_SINCE = 75
"""Compute capability; 7.0 and 7.2 have tensor cores too, and no target."""
_PAD = 8
"""Elements that an operand's row is longer in shared memory."""
_WASTE = 1.5
_LEAST = 8
"""Pixels, channels and depth below which fragments would be mostly empty."""
_MAX_WARPS = 8


def has_cores(w: Workload, gpu: Gpu) -> bool:
    """Whether a workload is one for tensor cores and the device has them."""
    large = min(w.oh * w.ow, w.oc, w.ic) >= _LEAST
    return w.dtype == "float16" and gpu.compute_capability >= _SINCE and large


def by_fragments(c: Mapping[str, Any]) -> bool:
    """Whether a config is for tensor cores."""
    return bool(c.get("cores", "fp32") != "fp32")


@dataclass(frozen=True)
class Tile:
    """A config's numbers and the workload's, in elements."""

    by_channels: bool
    """Whether channels are the rows: NCHW."""
    rows: int
    columns: int
    depth: int
    vector: int
    """Outputs that a thread stores at once, along columns."""
    shape: str
    m: int
    n: int
    warps_r: int
    warps_s: int
    each_r: int
    """Fragments of a warp, along rows."""
    each_s: int
    steps: int

    @classmethod
    def of(cls, w: Workload, c: Mapping[str, Any]) -> Tile:
        """The tile of a config with tensor cores."""
        pixels, channels = w.oh * w.ow, w.out_blocks * w.out_block
        flip = w.out_block == 1
        m, n = SHAPES[c["cores"]]
        along_p, along_c = (c["threads_p"], c["tile_p"]), (c["threads_oc"], c["tile_oc"])
        (wr, er), (ws, es) = (along_c, along_p) if flip else (along_p, along_c)
        return cls(
            flip, *((channels, pixels) if flip else (pixels, channels)), w.in_blocks * w.in_block,
            lanes(pixels if flip else w.out_block, w.dtype), c["cores"], m, n, wr, ws, er, es,
            c["step_k"],
        )  # fmt: skip

    @property
    def block_r(self) -> int:
        """Rows of a thread block."""
        return self.m * self.warps_r * self.each_r

    @property
    def block_s(self) -> int:
        """Columns of a thread block."""
        return self.n * self.warps_s * self.each_s

    @property
    def block_k(self) -> int:
        """Depth of one step."""
        return DEPTH * self.steps

    @property
    def warps(self) -> int:
        """Of a thread block."""
        return self.warps_r * self.warps_s

    @property
    def parts(self) -> tuple[int, int, int]:
        """Bytes of shared memory of the operands and of the accumulators."""
        first = self.block_r * (self.block_k + _PAD)
        second = self.block_k * (self.block_s + _PAD)
        return 2 * first, 2 * second, 4 * self.block_r * self.block_s

    @property
    def registers(self) -> int:
        """Of one thread, estimated: a fragment's elements lie twice in a warp's operands."""
        accumulators = self.each_r * self.each_s * self.m * self.n // 32
        return accumulators + 8 * (self.each_r + self.each_s) + SPARE_REGISTERS


def valid(w: Workload, gpu: Gpu, c: Mapping[str, Any]) -> bool:
    """Whether a tile of fragments fits the device and is not clearly a waste of it."""
    if c["split_k"] != 1 or c["pipeline"] != "none":
        return False
    if c["threads_p"] not in WARPS or c["threads_oc"] not in WARPS:
        return False
    t = Tile.of(w, c)
    if not 2 <= t.warps <= _MAX_WARPS or t.each_r * t.each_s > 8:
        return False
    *operands, sums = t.parts
    if sums <= max(operands):
        # TVM would put the sums where an operand was, and then refuse the place for its type.
        return False
    if t.block_k > 64 or t.block_k >= t.depth + DEPTH:
        return False
    computed = ceil(t.rows / t.block_r) * t.block_r * ceil(t.columns / t.block_s) * t.block_s
    if computed > _WASTE * t.rows * t.columns and t.warps * t.each_r * t.each_s > 2:
        return False
    return resident_blocks(gpu, 32 * t.warps, t.registers, sum(t.parts)) >= 1


def with_cores(space: Space, w: Workload, t: Target) -> Space:
    """A product's space, and where there are tensor cores the tiles of fragments beside it."""
    gpu = gpu_of(t)
    if not has_cores(w, gpu):
        return space
    plain = {knob: space.knobs[knob] for knob in ("threads_p", "threads_oc")}
    both = {knob: tuple(sorted({*some, *WARPS})) for knob, some in plain.items()}

    def either(c: Mapping[str, Any]) -> bool:
        if by_fragments(c):
            return valid(w, gpu, c)
        known = all(c[knob] in some for knob, some in plain.items())
        return known and space.valid(c)

    return Space({**space.knobs, **both, "cores": CORES}, either)


def stages(w: Workload, c: Config, read: Read, weight: Read, bias: Any, res: Any) -> te.Tensor:
    """The stages `a`, `b`, `acc`, `part`, (`rest`,) `fin`, `tile` and `out`.

    Args:
        w: the workload.
        c: a config with tensor cores.
        read: the input at (image, channel, pixel).
        weight: of (output channel, input channel).
        bias: `[ob, o]` or None.
        res: the residual at (image, channel block, pixel, lane), or None.
    """
    from tvm import te, tirx

    t = Tile.of(w, c)
    rows = ceil(t.rows / t.block_r) * t.block_r
    columns = ceil(t.columns / t.block_s) * t.block_s
    depth = ceil(t.depth / t.block_k) * t.block_k
    along_s, along_k = _widths(w, t)
    zero = tirx.const(0, w.dtype)

    def inside(k: Any, value: Callable[[Any], Any]) -> Any:
        if depth == t.depth:
            return value(k)
        return te.if_then_else(k < t.depth, value(_held(k, t.depth, along_k)), zero)

    def first(n: Any, r: Any, k: Any) -> Any:
        r = _held(r, t.rows, 1, rows)
        return inside(k, lambda k: weight(r, k) if t.by_channels else read(n, k, r))

    def second(n: Any, k: Any, s: Any) -> Any:
        s = _held(s, t.columns, along_s, columns)
        return inside(k, lambda k: read(n, k, s) if t.by_channels else weight(s, k))

    images = (1, w.n) if t.by_channels else (w.n, 1)
    a = te.compute((images[0], rows, depth), first, name="a")
    b = te.compute((images[1], depth, columns), second, name="b")
    k = te.reduce_axis((0, depth), name="k")

    def product(n: Any, r: Any, s: Any) -> Any:
        left = a[0 if t.by_channels else n, r, k].astype("float32")
        return te.sum(left * b[n if t.by_channels else 0, k, s].astype("float32"), axis=[k])

    acc = te.compute((w.n, rows, columns), product, name="acc")
    part = te.compute((w.n, rows, columns), lambda *i: acc(*i), name="part")
    split = (w.n, rows, columns // t.vector, t.vector)

    def spot(n: Any, r: Any, s: Any, v: Any) -> tuple[Any, ...]:
        row = within(r, t.rows, t.block_r)
        column = within(s, t.columns // t.vector, t.block_s // t.vector) * t.vector + v
        return _place(w, t, n, row, column)

    rest = te.compute(split, lambda *i: res(*spot(*i)), name="rest") if res is not None else None

    def value(n: Any, r: Any, s: Any, v: Any) -> Any:
        _, block, _, lane = spot(n, r, s, v)
        add = rest(n, r, s, v).astype("float32") if rest is not None else None
        total = part[n, r, s * t.vector + v]
        start = bias(block, lane) if bias is not None else None
        return finish(w.epilogue, total, start, add).astype(w.dtype)

    fin = te.compute(split, value, name="fin")
    tile = te.compute(split, lambda *i: fin(*i), name="tile")
    return te.compute(
        (w.n, t.rows, t.columns // t.vector, t.vector), lambda *i: tile(*i), name="out"
    )


def _held(index: Any, extent: int, vector: int, whole: int = -1) -> Any:
    """`index`, held below `extent` by whole vectors."""
    from tvm import te

    if extent == whole:
        return index
    if vector == 1:
        return te.min(index, extent - 1)
    return te.min(index // vector, extent // vector - 1) * vector + index % vector


def _place(w: Workload, t: Tile, n: Any, r: Any, s: Any) -> tuple[Any, ...]:
    """Where a row and a column lie in the blocked output."""
    if t.by_channels:
        return n, r, s, r % 1
    return n, s // w.out_block, r, s % w.out_block


def _widths(w: Workload, t: Tile) -> tuple[int, int]:
    """Elements that lie together along columns and along depth, as far as copies use it."""
    if not t.by_channels:
        return lanes(w.out_block, w.dtype), lanes(w.in_block, w.dtype)
    plain = w.in_block == 1 and (w.sh, w.sw) == (1, 1)
    return lanes(t.columns, w.dtype) if plain else 1, lanes(t.depth, w.dtype)


def schedule(sch: s_tir.Schedule, w: Workload, c: Config) -> None:
    """The docstring's steps, in s_tir primitives."""
    t = Tile.of(w, c)
    names = intrinsics(t.shape)
    out, tile, fin, part, acc = (sch.get_sblock(s) for s in ("out", "tile", "fin", "part", "acc"))
    n, r, s, v = sch.get_loops(tile)  # 1.
    rb, ri = sch.split(r, [None, t.block_r])
    sb, si = sch.split(s, [None, t.block_s // t.vector])
    sch.reorder(n, rb, sb, ri, si, v)
    for loop, axis in ((n, "z"), (sb, "y"), (rb, "x")):
        sch.bind(loop, f"blockIdx.{axis}")
    sch.annotate(n, "pragma_unroll_explicit", 0)
    order = [ri, si]
    if w.out_block == t.vector and not t.by_channels:  # its neighbour in memory is the next pixel
        sch.reorder(si, ri)
        order = [si, ri]
    turn = _deal(sch, order, t)
    sch.vectorize(v)
    sch.set_scope(fin, 0, "local")
    sch.compute_at(fin, turn, preserve_unit_loops=True)
    unroll(sch, sch.get_loops(fin)[-4:])
    if "add" in w.epilogue:
        rest = sch.get_sblock("rest")
        sch.set_scope(rest, 0, "local")
        sch.compute_at(rest, turn, preserve_unit_loops=True)
        sch.vectorize(sch.get_loops(rest)[-1])
    sch.set_scope(part, 0, "shared")  # 4.
    sch.compute_at(part, sb, preserve_unit_loops=True)
    warp, inner = _by_warps(sch, sch.get_loops(part)[-2:], t)
    sch.set_scope(acc, 0, "wmma.accumulator")
    sch.compute_at(acc, warp, preserve_unit_loops=True)
    r, s, k = sch.get_loops(acc)[-3:]
    fr, fi = sch.split(r, [None, t.m])
    fs, fj = sch.split(s, [None, t.n])
    ko, ks, kk = sch.split(k, [None, t.steps, DEPTH])
    sch.reorder(ko, ks, fr, fs, fi, fj, kk)
    along_s, along_k = _widths(w, t)
    _fetch(sch, t, "a", along_k, ko)  # 2.
    _fetch(sch, t, "b", along_s, ko)
    for index, name in enumerate((names.load_a, names.load_b)):  # 3.
        fragment = sch.cache_read(acc, index, f"wmma.matrix_{'ab'[index]}")
        sch.compute_at(fragment, ks, preserve_unit_loops=True)
        size = ((t.m, DEPTH), (DEPTH, t.n))[index]
        y, x = sch.get_loops(fragment)[-2:]
        yo, yi = sch.split(y, [None, size[0]])
        xo, xi = sch.split(x, [None, size[1]])
        sch.reorder(yo, xo, yi, xi)
        unroll(sch, (yo, xo))
        sch.tensorize(yi, name)
    init = sch.decompose_reduction(acc, ko)
    *_, yo, xo, yi, _ = sch.get_loops(init)
    unroll(sch, (yo, xo))
    sch.tensorize(yi, names.fill)
    sch.tensorize(fi, names.sync)
    unroll(sch, (ks, fr, fs))
    sch.tensorize(inner, names.store)
    sch.transform_layout(out, ("write", 0), lambda n, r, s, v: _place(w, t, n, r, s * t.vector + v))
    sch.reverse_compute_inline(out)  # last: its condition is more than primitives understand


def _deal(sch: s_tir.Schedule, loops: list[Any], t: Tile) -> Any:
    """Share vectors out over the threads of a block; returns the loop over a thread's turns."""
    turn, y, x = sch.split(sch.fuse(*loops), [None, t.warps, 32])
    sch.bind(y, "threadIdx.y")
    sch.bind(x, "threadIdx.x")
    return x


def _by_warps(sch: s_tir.Schedule, loops: list[Any], t: Tile) -> tuple[Any, Any]:
    """Deal a block's rows and columns out; returns the warp's loop, and one fragment's first."""
    wr, fr, fi = sch.split(loops[0], [t.warps_r, t.each_r, t.m])
    ws, fs, fj = sch.split(loops[1], [t.warps_s, t.each_s, t.n])
    sch.reorder(wr, ws, fr, fs, fi, fj)
    warp = sch.fuse(wr, ws)
    sch.bind(warp, "threadIdx.y")
    unroll(sch, (fr, fs))
    return warp, fi


def _fetch(sch: s_tir.Schedule, t: Tile, name: str, vector: int, ko: Any) -> None:
    """Step 2 for one operand, vectors along its rows."""
    operand = sch.get_sblock(name)
    sch.set_scope(operand, 0, "shared")
    sch.compute_at(operand, ko, preserve_unit_loops=True)
    y, x = sch.get_loops(operand)[-2:]
    xo, lane = sch.split(x, [None, vector])
    _deal(sch, [y, xo], t)
    sch.vectorize(lane)
    sch.storage_align(operand, 0, 1, 16, _PAD)
