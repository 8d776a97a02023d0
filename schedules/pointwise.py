"""Pointwise (1x1) convolution as a register-tiled matrix product over channel blocks.

Pattern
    out[n, ob, p, o] = epilogue(sum over ic of x[n, ic // bi, p, ic % bi] * w[ob, ic, o])
    where a squeeze-and-excite block ends, x[n, ic, p] stands for x[n, ic, p] * scale[n, ic]

Strategy
    1. Tile `tile_p` pixels by `tile_oc` output blocks: that many vector accumulators.
    2. For each input channel load `tile_oc` weight vectors, broadcast one input scalar a pixel,
       multiply-add. On AVX-512 the broadcast is folded into the FMA's memory operand, so with
       `tile_oc == 1` a tile of 14 pixels issues 14 FMAs for one load. Where it is not, and
       accumulators, weights and a scalar a pixel do not all fit, the longer side of the tile runs
       outermost (`pixels_first`): four by three on AVX2 reaches 98 % of the peak so, and spills to
       44 % the other way round.
       On NEON a pixel's four channels are one load, and multiply-adds take its lanes, where
       `unroll` covers the block. On in-order cores `loads` chooses between LLVM's 128-bit loads and
       the 64-bit ones of `halves.py`.
    3. Run the epilogue on the tile while it is still in registers.
    4. Walk the tiles in one of these orders (`loop`):
         px      parallel over (pixel tile, channel tile): the input tile stays in L1
         oc      parallel over (channel tile, pixel tile): a weight panel stays in L1
         px.oc   parallel over chunks of pixels, inside channels outermost: each thread owns rows
                 and streams its weights once a chunk
         oc.px   parallel over chunks of channels, inside pixels outermost
         oc.oc   parallel over chunks of channels, inside channels outermost: as `oc`, but a chunk
                 scales its pixels once, and loops are simpler (up to 4 % faster on Zen 3)
    5. Where registers are few, tiles may not divide the pixels: the last one then begins earlier
       and computes some of its neighbour's pixels again, the same values to the same places.
    6. With a scale, each chunk first writes its scaled pixels into a scratch buffer: one multiply
       for every output block that reads them, and broadcasts still fold into the FMAs.
    7. In `oc`, `px.oc` and `oc.oc` tiles of pixels read one panel of weights, one after the other.
       Those of small images may each ask for their part of the next one: `prefetch` is the level
       of the cache that it shall come to; without the knob there is none.

Why it is fast
    One FMA a cycle needs `fma_latency * fma_per_cycle` independent accumulators and at most one
    load an FMA; 8 to 28 accumulators do both. Rows against channels: a consumer that splits its
    input the same way finds it in its own L2. The pixels of 224x224 networks are powers of two and
    49s: among 16 registers 49 leaves 7 by one, which loads too much; 3 by 4 with a last tile that
    begins earlier computes 4 % twice and takes 0.7 of that on Zen 3.

Tried and lost
    Input channels in blocks of 128, 256 or 512, sums of a block kept in L1 (hand-written loops, six
    layers of MobileNets, panels from L3): within 3 % of whole channels either way. The hardware
    prefetches a panel that is larger than L1 as fast as it is used.
    Prefetching the tile's pixels one, two or four blocks of channels ahead, or those of the next
    tile (Zen 3, MobileNetV1): 1 to 2 % slower, the next tile's 2 to 10 %.
    28 accumulators with two output blocks, 27 with three: LLVM spills, 25 to 60 % slower.
    Prefetching to L1 instead of L2: the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules.common import (
    accumulator_limit,
    divisors,
    epilogue_inputs,
    few_registers,
    finish_tile,
    item_bytes,
    pixels_first,
    prim_func,
    product_tile,
    summed,
    tile_cost,
    unrolled_channels,
)
from tvmsep.schedules.epilogue import finish
from tvmsep.schedules.halves import fits_by_halves, tile_by_halves
from tvmsep.schedules.pixel_tiles import UNEVEN, pixel_run, pixel_tiles, places, tile_of, tiles_of
from tvmsep.schedules.prefetch import may_prefetch, prefetch_next, prefetches

if TYPE_CHECKING:
    from tvm import s_tir, tirx

_SHORT = 200
"""Input channels below which what surrounds a tile shows, where registers are few."""
_LOOPS = {"rows": ("px", "px.oc"), "channels": ("oc", "oc.oc", "oc.px")}
_SCALED_LOOPS = {"rows": ("px.oc",), "channels": ("oc.px", "oc.oc")}


class Pointwise:
    """See the module's docstring."""

    name = "pointwise"
    version = 1

    def accepts(self, w: Workload, t: Target) -> bool:
        """1x1 kernels without padding or groups, blocked on both sides."""
        return w.op == "pointwise" and w.groups == 1 and w.in_block > 0 and w.out_block > 0

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x `in_shape`, w `[ob, ic padded, o]`, bias, residual, scale, `out_shape`.

        The output has whole tiles of pixels, which `apply` puts in their places.
        """
        from tvm import te

        bi = w.in_block
        x = te.placeholder(w.in_shape, name="x", dtype=w.dtype)
        panels = (w.out_blocks, w.in_blocks * bi, w.out_block)
        wt = te.placeholder(panels, name="w", dtype=w.dtype)
        bias, res = epilogue_inputs(w)
        ii = te.reduce_axis((0, bi), name="ii")

        def source(p: Any) -> Any:
            if (w.sh, w.sw) == (1, 1):
                return p
            return te.div(p, w.ow) * (w.sh * w.iw) + te.indexmod(p, w.ow) * w.sw

        place = places(w, c)
        scale, read = None, x
        if w.scaled:
            scale = te.placeholder((w.n, w.in_blocks, 1, bi), name="scale", dtype=w.dtype)
            read = te.compute(
                w.in_shape, lambda n, cb, p, i: x[n, cb, p, i] * scale[n, cb, 0, i], name="scaled"
            )
        shape = (w.n, w.out_blocks, tiles_of(w, tile_of(c)) * tile_of(c), w.out_block)
        acc = summed(
            w, shape, w.in_blocks, [ii],
            lambda n, ob, p, o, io: read[n, io, source(place(p)), ii] * wt[ob, io * bi + ii, o],
        )  # fmt: skip
        out = te.compute(
            shape,
            lambda n, ob, p, o: finish(
                w.epilogue,
                acc[n, ob, p, o],
                bias[ob, o] if bias is not None else None,
                res[n, ob, place(p), o] if res is not None else None,
            ).astype(w.dtype),
            name="out",
        )
        return prim_func([x, wt, bias, res, scale, out])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """Register tiles that fit, walked in every order that keeps the layout's split."""
        loops = _loops(w, threads)
        tile_p, tile_oc = pixel_tiles(w, t), divisors(w.out_blocks, 6)

        def tiles(c: Mapping[str, Any]) -> tuple[int, int]:
            return tiles_of(w, c["tile_p"]), w.out_blocks // c["tile_oc"]

        def valid(c: Mapping[str, Any]) -> bool:
            if not _fits(t, c["tile_p"], c["tile_oc"]):
                return False
            if c.get("loads") == "halves" and not (
                c["unroll"] == w.in_block and fits_by_halves(w, t, c["tile_p"], c["tile_oc"])
            ):
                return False
            px, oc = tiles(c)
            if c["loop"] == "oc.oc" and not w.scaled and threads == 1 and c["chunks"] > 1:
                return False  # the same order as in one
            if c["loop"] == "oc.oc" and c["chunks"] == oc and not c.get("prefetch"):
                return False  # `oc.px`
            if c.get("prefetch") and (c.get("loads") == "halves" or not _has_next(w, c)):
                return False
            if c["loop"] in ("px", "oc"):
                return bool(c["chunks"] == 1)
            if w.scaled:
                return c["chunks"] in _scaled_chunks(
                    w, t, threads, c["loop"], c["tile_p"], c["tile_oc"]
                )
            split, chunks = (px if c["loop"] == "px.oc" else oc), int(c["chunks"])
            return split % chunks == 0 and (chunks >= threads or chunks == split)

        chunk_domain = sorted(
            {
                d
                for n in {tiles_of(w, p) for p in tile_p} | {w.out_blocks // o for o in tile_oc}
                for d in divisors(n)
                if d in (1, *_chunk_counts(threads)) or d == n <= 32
            }
        )
        if w.scaled:
            chunk_domain = sorted(
                {
                    chunks
                    for loop in loops
                    for p in tile_p
                    for o in tile_oc
                    for chunks in _scaled_chunks(w, t, threads, loop, p, o)
                }
            )
        default = self.default(w, t, threads)
        floor = min(default.int("tile_p") * default.int("tile_oc"), t.vector_registers // 4)
        return Space(
            {
                "tile_p": tile_p,
                "tile_oc": tile_oc,
                "loop": loops,
                "chunks": tuple(chunk_domain) or (1,),
                "unroll": tuple(u for u in (1, 2, 4, 8) if w.in_block % u == 0),
                **({"prefetch": (0, 2)} if may_prefetch(w) else {}),
                **({"loads": ("whole", "halves")} if _by_hand(t) else {}),
            },
            lambda c: c["tile_p"] * c["tile_oc"] >= floor and valid(c),
        )

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """Pick the tile that keeps the FMA units fed, then the order that keeps operands near."""
        pixels = w.oh * w.ow

        def cost(p: int, o: int) -> tuple[float, int]:
            tiles = tiles_of(w, p) * (w.out_blocks // o) * w.n
            balance = -(-tiles // threads) * threads / tiles * (tiles_of(w, p) * p / pixels)
            slow = 1.2 if _by_hand(t) and not fits_by_halves(w, t, p, o) else 1.0
            slow *= UNEVEN if pixel_run(w) % p else 1.0
            return (tile_cost(t, w.out_block, p, o) * balance * slow, -p)

        tiles = [
            (p, o) for p in pixel_tiles(w, t) for o in divisors(w.out_blocks, 6) if _fits(t, p, o)
        ]
        if w.scaled:
            return self._scaled_default(w, t, threads, {po: cost(*po)[0] for po in tiles})
        tile_p, tile_oc = min(tiles, key=lambda po: cost(*po))
        weights = item_bytes(w) * w.in_blocks * w.in_block * w.out_blocks * w.out_block
        ahead = prefetches(w, t) and min(tiles_of(w, tile_p), w.out_blocks // tile_oc) > 1
        near = weights <= t.l2_bytes // 2 and not ahead
        rows = w.out_split == "rows" if threads > 1 else near
        loop, chunks, unroll = "px" if rows else "oc", 1, unrolled_channels(w, t)
        if rows and few_registers(t) and w.ic < _SHORT:  # plain loops over short tiles
            least, most = max(2, threads), tiles_of(w, tile_p)
            counts = [c for c in _chunk_counts(threads) if c >= least and most % c == 0]
            loop, chunks = ("px.oc", counts[0]) if counts else (loop, chunks)
        loads = _loads(w, t, tile_p, tile_oc)
        found = Config(
            tile_p=tile_p, tile_oc=tile_oc, loop=loop, chunks=chunks, unroll=unroll, **loads
        )
        return _ahead(w, t, found)

    def _scaled_default(
        self, w: Workload, t: Target, threads: int, costs: Mapping[tuple[int, int], float]
    ) -> Config:
        """The best tile that leaves even chunks, each with its scaled pixels near."""
        loops = _loops(w, threads)
        loop = "oc.oc" if few_registers(t) and "oc.oc" in loops else loops[0]

        def worth(tile: tuple[int, int], chunks: int) -> tuple[float, ...]:
            waste = -(-w.n * chunks // threads) * threads / (w.n * chunks)
            return (costs[tile] * waste, chunks)

        choices = [
            (tile, chunks)
            for tile in costs
            for chunks in _scaled_chunks(w, t, threads, loop, *tile)
        ]
        (tile_p, tile_oc), chunks = min(choices, key=lambda choice: worth(*choice))
        unroll = unrolled_channels(w, t)
        loads = _loads(w, t, tile_p, tile_oc)
        found = Config(
            tile_p=tile_p, tile_oc=tile_oc, loop=loop, chunks=chunks, unroll=unroll, **loads
        )
        found = _ahead(w, t, found)
        same = loop == "oc.oc" and "prefetch" not in found and chunks == w.out_blocks // tile_oc
        return Config(found, loop="oc.px") if same else found

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The docstring's steps, in s_tir primitives."""
        from tvm import te

        out = sch.get_sblock("out")
        n, ob, p, o = sch.get_loops(out)
        po, pi = sch.split(p, [None, c.int("tile_p")])
        oo, oi = sch.split(ob, [None, c.int("tile_oc")])
        match c["loop"]:  # 4. walk the tiles
            case "px":
                sch.reorder(n, po, oo, oi, pi, o)
                chunk = at = sch.fuse(n, po, oo)
                sch.parallel(at)
            case "oc":
                sch.reorder(n, oo, po, oi, pi, o)
                chunk = at = sch.fuse(n, oo, po)
                sch.parallel(at)
            case "px.oc":
                pc, at = sch.split(po, [c.int("chunks"), None])
                sch.reorder(n, pc, oo, at, oi, pi, o)
                chunk = sch.fuse(n, pc)
                sch.parallel(chunk)
            case loop:
                oc, panel = sch.split(oo, [c.int("chunks"), None])
                order = (po, panel) if loop == "oc.px" else (panel, po)
                sch.reorder(n, oc, *order, oi, pi, o)
                at, chunk = order[1], sch.fuse(n, oc)
                sch.parallel(chunk)
        tile_p, tile_oc = c.int("tile_p"), c.int("tile_oc")
        if c.get("loads") == "halves":  # 1. and 2.
            acc = sch.get_sblock("acc")
            sch.compute_at(acc, at)
            self._scale(sch, w, chunk)  # no block moves once the tile is a call
            tile_by_halves(sch, acc, tile_p, tile_oc)
        else:
            product_tile(
                sch, at, ("io", "ii"), {"ii": c.int("unroll")}, vector_axis=3,
                pixels_first=pixels_first(t, tile_p, tile_oc),
                by_lane=t.lane_operand and c.int("unroll") == w.in_block,
            )  # fmt: skip
            self._scale(sch, w, chunk)
            if "prefetch" in c:  # 7.
                var, (tiles, panels) = sch.get(at).loop_var, _panels(w, c)
                match c["loop"]:
                    case "oc":
                        which, number = te.indexmod(te.indexdiv(var, tiles), panels), var % tiles
                    case "px.oc":
                        which, number = sch.get(oo).loop_var, var
                    case _:
                        each = panels // c.int("chunks")
                        first = te.indexmod(sch.get(chunk).loop_var, c.int("chunks")) * each
                        which, number = first + sch.get(panel).loop_var, var
                prefetch_next(sch, w, at, which, tiles, number, tile_oc, c.int("prefetch"))
        finish_tile(sch, (oi, pi), o)  # 3.
        if (w.oh * w.ow) % tile_p:  # 5.
            # Two tiles, of two threads even, may write a pixel: the same sum in the same order,
            # by whole vectors, and never read here. No output may lie in its residual's place.
            place = places(w, c)
            sch.transform_layout(
                out, ("write", 0), lambda n, ob, p, o: (n, ob, place(p), o),
                assume_injective_transform=True,
            )  # fmt: skip

    @staticmethod
    def _scale(sch: s_tir.Schedule, w: Workload, chunk: Any) -> None:
        if w.scaled:  # 6.
            scaled = sch.get_sblock("scaled")
            sch.compute_at(scaled, chunk)
            sch.vectorize(sch.get_loops(scaled)[-1])


def _chunk_counts(threads: int) -> tuple[int, ...]:
    """Chunks for so many threads: one, two, four or eight each."""
    return (threads, 2 * threads, 4 * threads, 8 * threads)


def _loops(w: Workload, threads: int) -> tuple[str, ...]:
    """The orders that keep the layout's split; with a scale those that have chunks."""
    if w.scaled:
        return _SCALED_LOOPS[w.out_split] if threads > 1 else ("px.oc", "oc.px")
    return _LOOPS[w.out_split] if threads > 1 else (*_LOOPS["rows"], *_LOOPS["channels"])


def _scaled_chunks(
    w: Workload, t: Target, threads: int, loop: str, tile_p: int, tile_oc: int
) -> tuple[int, ...]:
    """The fewest chunks that all threads share, of pixels such that half of L2 holds them scaled.

    Tiles that do not divide the pixels leave one chunk of them, which L2 shall hold.
    """
    if loop != "px.oc":
        split = w.out_blocks // tile_oc
        return tuple([c for c in divisors(split) if c >= threads][:4] or [split])
    image = item_bytes(w) * w.ih * w.iw * w.in_blocks * w.in_block
    if pixel_run(w) % tile_p:
        return (1,) if threads == 1 and image <= t.l2_bytes else ()
    split = w.oh * w.ow // tile_p
    counts = [c for c in divisors(split) if c >= threads] or [split]
    counts = [c for c in counts if image // c <= t.l2_bytes // 2] or counts[-1:]
    return tuple(counts[:4])


def _panels(w: Workload, c: Mapping[str, Any]) -> tuple[int, int]:
    """Tiles that read one panel of weights, one after the other, and panels that follow so."""
    tiles, panels = tiles_of(w, c["tile_p"]), w.out_blocks // c["tile_oc"]
    each = {"oc": tiles, "px.oc": tiles // c["chunks"], "oc.oc": tiles}
    return each.get(c["loop"], 1), panels


def _has_next(w: Workload, c: Mapping[str, Any]) -> bool:
    """Whether several tiles read one panel, and another panel follows."""
    return min(_panels(w, c)) > 1


def _ahead(w: Workload, t: Target, c: Config) -> Config:
    """A default, with the knob `prefetch` where that is on by default."""
    return Config(c, prefetch=2 if prefetches(w, t) and _has_next(w, c) else 0)


def _by_hand(t: Target) -> bool:
    """Whether `loads` is a knob: in-order cores gain from loads that are placed by hand."""
    return t.in_order and t.lane_operand


def _loads(w: Workload, t: Target, tile_p: int, tile_oc: int) -> dict[str, str]:
    """The default of the knob `loads`, where there is one."""
    if not _by_hand(t):
        return {}
    return {"loads": "halves" if fits_by_halves(w, t, tile_p, tile_oc) else "whole"}


def _fits(t: Target, tile_p: int, tile_oc: int) -> bool:
    return tile_p * tile_oc <= accumulator_limit(t, tile_p, tile_oc)


TEMPLATE = Pointwise()
