"""General convolution, and the first layer: plain or blocked input, blocked output, any groups.

Pattern
    out[n, ob, h * OW + w, o] = epilogue(sum over ic, kh, kw of
        pad(x)[n, ic, h * sh + kh * dh, w * sw + kw * dw] * w[ob, ic, kh, kw, o])

Strategy
    1. Tile `tile_w` pixels of a row by `tile_oc` output blocks, as in `pointwise`.
    2. Each thread takes chunks of rows, or of output blocks, as the layout says, and first copies
       its part of the input into a padded scratch buffer: one pass over a small tensor, reused
       by all taps and output blocks, and the inner loop reads without conditions. Without
       padding, no copy. Where the input is plain, `direct` does without it too: taps are tested as
       in `depthwise`. Inside a chunk the larger of weights and pixels is walked once (`order`).
    3. Reduce over input blocks and kernel rows in loops, over kernel columns unrolled (and over
       everything when the whole reduction is short, as with three input channels; by default only
       without padding, with 32 registers). On NEON over the channels of a block too, as lanes of
       whole vectors.
    4. Grouped convolution: `groups` here counts groups whose channels fill whole blocks; the
       graph merges smaller ones, with zeros in the weights.

Why it is fast
    The image was read long ago, or never: a copy waits for memory, 15 % of a first layer's time,
    and what reads it directly multiplies meanwhile. Inside MobileNetV2 and V3-Large `direct` took
    0.87 and 0.81 of the time with a copy on Zen 4, 0.89 and 0.83 with AVX2 code. Each test is of a
    row or of a tile's first or last column, and one that holds is a jump that is foreseen.
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
    prim_func,
    product_tile,
    summed,
    tile_cost,
)
from tvmsep.schedules.depthwise import padded_read
from tvmsep.schedules.epilogue import finish

if TYPE_CHECKING:
    from tvm import s_tir, tirx

_SHORT = 64


def conv_channels(w: Workload) -> tuple[int, int]:
    """Blocks and lanes that one output reduces over: (blocks of a group, lanes of a block)."""
    if not w.in_block:
        return 1, w.ic // w.groups
    return -(-(w.ic // w.groups) // w.in_block), w.in_block


class Conv:
    """See the module's docstring."""

    name = "conv"
    version = 2

    def accepts(self, w: Workload, t: Target) -> bool:
        """Groups, if any, fill whole blocks on both sides."""
        if w.op != "conv" or not w.out_block:
            return False
        if w.groups == 1:
            return True
        in_ok = not w.in_block or (w.ic // w.groups) % w.in_block == 0
        return in_ok and (w.oc // w.groups) % w.out_block == 0

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x, w `[ob, ic block, kh, kw, ic lane, o]`, bias, residual, out."""
        from tvm import te

        blocks, lanes = conv_channels(w)
        x = te.placeholder(w.in_shape, name="x", dtype=w.in_dtype)
        panels = (w.out_blocks, blocks, w.kh, w.kw, lanes, w.out_block)
        wt = te.placeholder(panels, name="w", dtype=w.dtype)
        bias, res = epilogue_inputs(w)
        kh = te.reduce_axis((0, w.kh), name="kh")
        kw = te.reduce_axis((0, w.kw), name="kw")
        ii = te.reduce_axis((0, lanes), name="ii")
        top, left, bottom, right = w.pads
        height, width = w.ih + top + bottom, w.iw + left + right
        lead, rest = w.in_shape[1], w.in_shape[3:]
        pad = te.compute(
            (w.n, lead, height, width, *rest),
            lambda n, cb, h, col, *r: padded_read(x, w, n, cb, h - top, col - left, *r).astype(
                w.dtype
            ),
            name="pad",
        )

        def tap(n: Any, ob: Any, h: Any, col: Any, io: Any) -> Any:
            group = te.div(ob, w.out_blocks // w.groups) if w.groups > 1 else 0
            row, column = h * w.sh + kh * w.dh, col * w.sw + kw * w.dw
            if w.in_block:
                return pad[n, group * blocks + io, row, column, ii]
            return pad[n, group * lanes + ii, row, column]

        acc = summed(
            w, (w.n, w.out_blocks, w.oh, w.ow, w.out_block), blocks, [kh, kw, ii],
            lambda n, ob, h, col, o, io: tap(n, ob, h, col, io) * wt[ob, io, kh, kw, ii, o],
        )  # fmt: skip
        out = te.compute(
            w.out_shape,
            lambda n, ob, p, o: finish(
                w.epilogue,
                acc[n, ob, te.div(p, w.ow), te.indexmod(p, w.ow), o],
                bias[ob, o] if bias is not None else None,
                res[n, ob, p, o] if res is not None else None,
            ).astype(w.dtype),
            name="out",
        )
        return prim_func([x, wt, bias, res, out])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """Register tiles that fit; chunks that divide what is split."""
        per_group = w.out_blocks // w.groups
        tile_w, tile_oc = divisors(w.ow, t.vector_registers), divisors(per_group, 4)
        default = self.default(w, t, threads)
        floor = min(default.int("tile_w") * default.int("tile_oc"), t.vector_registers // 4)

        def valid(c: Mapping[str, Any]) -> bool:
            tile = c["tile_w"] * c["tile_oc"]
            if not floor <= tile <= accumulator_limit(t, c["tile_w"], c["tile_oc"]):
                return False
            return int(c["chunks"]) in _chunks(w, c["loop"], c["tile_oc"])

        loops = (w.out_split,) if threads > 1 else ("rows", "channels")
        domain = {c for o in tile_oc for loop in loops for c in _chunks(w, loop, o)}
        return Space(
            {
                "tile_w": tile_w,
                "tile_oc": tile_oc,
                "loop": loops,
                "chunks": tuple(sorted(domain)),
                "order": ("oc", "px"),
                "unroll": ("all", "kw") if _reduction(w) <= _SHORT else ("kw",),
                **({"direct": (0, 1)} if _may_be_direct(w) else {}),
            },
            valid,
        )

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """The tile nearest the peak, even shares, and the larger operand read once."""
        per_group, few = w.out_blocks // w.groups, few_registers(t)
        pairs = [  # LLVM holds the scalars of a tile's pixels, which taps share
            (a, b)
            for a in divisors(w.ow, t.vector_registers)
            for b in divisors(per_group, 4)
            if a * b <= (accumulator_limit(t, a, b) if not few else t.vector_registers - a - 1)
        ]
        costs = {p: tile_cost(t, w.out_block, *p, folds=False) for p in pairs}
        tile_w, tile_oc = min(pairs, key=lambda p: (costs[p], p[0]))
        weights = item_bytes(w) * _reduction(w) * w.out_blocks * w.out_block
        heavy = weights > t.l2_bytes // 2
        loop = w.out_split if threads > 1 else "rows"
        image = 4 * w.ic * w.iw * w.ih

        def cost(c: int) -> tuple[float, bool, int]:
            waste = -(-w.n * c // threads) * threads / (w.n * c)
            far = loop == "rows" and not heavy and image // c > t.l2_bytes // 4
            return (waste, far, c)

        direct = (few or t.broadcast_operand) and _may_be_direct(w)
        # The scalars of all taps do not fit: four by two, rows outermost, took 1.5 times on AVX2;
        # on AVX-512 `direct` took 1.1 times.
        by_columns = _reduction(w) > _SHORT or t.lane_operand or few or direct
        return Config(
            tile_w=tile_w,
            tile_oc=tile_oc,
            loop=loop,
            chunks=min(_chunks(w, loop, tile_oc), key=cost),
            order="px" if heavy else "oc",
            unroll="kw" if by_columns else "all",
            direct=int(direct),
        )

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The docstring's steps, in s_tir primitives."""
        pad, out = sch.get_sblock("pad"), sch.get_sblock("out")
        n, ob, p, o = sch.get_loops(out)
        h, col = sch.split(p, [None, w.ow])
        wo, wi = sch.split(col, [None, c.int("tile_w")])
        oo, oi = sch.split(ob, [None, c.int("tile_oc")])
        if c["loop"] == "rows":
            chunk, h = sch.split(h, [c.int("chunks"), None])
        else:
            chunk, oo = sch.split(oo, [c.int("chunks"), None])
        walk = (h, wo, oo) if c["order"] == "oc" else (oo, h, wo)
        sch.reorder(n, chunk, *walk, oi, wi, o)
        parallel = sch.fuse(n, chunk)
        sch.parallel(parallel)
        unroll = {"io": 0, "kh": 0, "kw": 0, "ii": 0} if c["unroll"] == "all" else {"kw": 0}
        copied = (any(w.pads) or w.in_dtype != w.dtype) and "direct" not in c
        if not copied:
            sch.compute_inline(pad)
        by_lane = t.lane_operand and w.in_block > 0 and c["unroll"] == "kw"
        if by_lane:
            unroll["ii"] = 0
        product_tile(
            sch, walk[-1], ("io", "kh", "ii", "kw"), unroll, vector_axis=4, by_lane=by_lane
        )
        finish_tile(sch, (oi, wi), o)
        if copied:  # 2.
            sch.compute_at(pad, parallel)
            if w.in_block:
                sch.vectorize(sch.get_loops(pad)[-1])


def _chunks(w: Workload, loop: str, tile_oc: int) -> tuple[int, ...]:
    """Into how many parallel chunks rows, or tiles of output blocks, may be cut."""
    whole = w.oh if loop == "rows" else w.out_blocks // tile_oc
    return tuple(d for d in divisors(whole) if d <= 32 or d == whole)


def _may_be_direct(w: Workload) -> bool:
    """Whether `direct` is a knob: a plain padded input, which a tile reads few pixels of."""
    return any(w.pads) and not w.in_block and w.in_dtype == w.dtype


def _reduction(w: Workload) -> int:
    blocks, lanes = conv_channels(w)
    return blocks * lanes * w.kh * w.kw


TEMPLATE = Conv()
