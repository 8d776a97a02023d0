"""General convolution, and the first layer: plain or blocked input, blocked output, any groups.

Pattern
    out[n, ob, h * OW + w, o] = epilogue(sum over ic, kh, kw of
        pad(x)[n, ic, h * sh + kh * dh, w * sw + kw * dw] * w[ob, ic, kh, kw, o])

Strategy
    1. Tile `tile_w` pixels of a row by `tile_oc` output blocks, as in `pointwise`.
    2. Each thread takes a chunk of rows (`rows` of them in all) and first copies its part of the
       input into a padded scratch buffer: one pass over a small tensor, reused by all taps and
       output blocks, and the inner loop reads without conditions. Without padding, no copy.
    3. Reduce over input blocks and kernel rows in loops, over kernel columns unrolled (and over
       everything when the whole reduction is short, as with three input channels).
    4. Grouped convolution: `groups` here counts groups whose channels fill whole blocks; the
       graph merges smaller ones, with zeros in the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules.common import (
    accumulator_limit,
    divisors,
    epilogue_inputs,
    finish_tile,
    prim_func,
    register_tile,
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
    version = 1

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
        x = te.placeholder(w.in_shape, name="x")
        wt = te.placeholder((w.out_blocks, blocks, w.kh, w.kw, lanes, w.out_block), name="w")
        bias, res = epilogue_inputs(w)
        io = te.reduce_axis((0, blocks), name="io")
        kh = te.reduce_axis((0, w.kh), name="kh")
        kw = te.reduce_axis((0, w.kw), name="kw")
        ii = te.reduce_axis((0, lanes), name="ii")
        top, left, bottom, right = w.pads
        height, width = w.ih + top + bottom, w.iw + left + right
        lead, rest = w.in_shape[1], w.in_shape[3:]
        pad = te.compute(
            (w.n, lead, height, width, *rest),
            lambda n, cb, h, col, *r: padded_read(x, w, n, cb, h - top, col - left, *r),
            name="pad",
        )

        def tap(n: Any, ob: Any, h: Any, col: Any) -> Any:
            group = te.div(ob, w.out_blocks // w.groups) if w.groups > 1 else 0
            row, column = h * w.sh + kh * w.dh, col * w.sw + kw * w.dw
            if w.in_block:
                return pad[n, group * blocks + io, row, column, ii]
            return pad[n, group * lanes + ii, row, column]

        acc = te.compute(
            (w.n, w.out_blocks, w.oh, w.ow, w.out_block),
            lambda n, ob, h, col, o: te.sum(
                tap(n, ob, h, col) * wt[ob, io, kh, kw, ii, o], axis=[io, kh, kw, ii]
            ),
            name="acc",
        )
        out = te.compute(
            w.out_shape,
            lambda n, ob, p, o: finish(
                w.epilogue,
                acc[n, ob, te.div(p, w.ow), te.indexmod(p, w.ow), o],
                bias[ob, o] if bias is not None else None,
                res[n, ob, p, o] if res is not None else None,
            ),
            name="out",
        )
        return prim_func([x, wt, bias, res, out])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """Register tiles that fit, row chunks that divide."""
        per_group = w.out_blocks // w.groups
        tile_w, tile_oc = divisors(w.ow, t.vector_registers), divisors(per_group, 4)

        def fits(c: Mapping[str, Any]) -> bool:
            return bool(c["tile_w"] * c["tile_oc"] <= accumulator_limit(t, c["tile_oc"]))

        default = self.default(w, t, threads)
        floor = min(default.int("tile_w") * default.int("tile_oc"), t.vector_registers // 4)
        return Space(
            {
                "tile_w": tile_w,
                "tile_oc": tile_oc,
                "rows": tuple(r for r in divisors(w.oh) if r <= 32 or r == w.oh),
                "order": ("oc", "px"),
                "unroll": ("all", "kw") if _reduction(w) <= _SHORT else ("kw",),
            },
            lambda c: fits(c) and c["tile_w"] * c["tile_oc"] >= floor,
        )

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """The largest tile that fits; enough row chunks that a chunk's input stays in L2."""
        per_group = w.out_blocks // w.groups
        pairs = [
            (a, b)
            for a in divisors(w.ow, t.vector_registers)
            for b in divisors(per_group, 4)
            if a * b <= accumulator_limit(t, b)
        ]
        tile_w, tile_oc = min(pairs, key=lambda p: (tile_cost(t, w.out_block, *p), p[0]))
        rows = [r for r in divisors(w.oh) if r <= 32 or r == w.oh]
        chunk_bytes = 4 * w.ic * w.iw * w.ih

        def cost(r: int) -> tuple[float, bool, int]:
            waste = -(-w.n * r // threads) * threads / (w.n * r)
            return (waste, chunk_bytes // r > t.l2_bytes // 4, r)

        return Config(
            tile_w=tile_w,
            tile_oc=tile_oc,
            rows=min(rows, key=cost),
            order="oc",
            unroll="all" if _reduction(w) <= _SHORT else "kw",
        )

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The docstring's steps, in s_tir primitives."""
        pad, acc, out = (sch.get_sblock(s) for s in ("pad", "acc", "out"))
        n, ob, p, o = sch.get_loops(out)
        h, col = sch.split(p, [None, w.ow])
        wo, wi = sch.split(col, [None, c.int("tile_w")])
        oo, oi = sch.split(ob, [None, c.int("tile_oc")])
        chunk, h = sch.split(h, [c.int("rows"), None])
        if c["order"] == "oc":
            sch.reorder(n, chunk, h, wo, oo, oi, wi, o)
            at = oo
        else:
            sch.reorder(n, chunk, oo, h, wo, oi, wi, o)
            at = wo
        parallel = sch.fuse(n, chunk)
        sch.parallel(parallel)
        unroll = {"io": 0, "kh": 0, "kw": 0, "ii": 0} if c["unroll"] == "all" else {"kw": 0}
        register_tile(sch, acc, at, ("io", "kh", "ii", "kw"), unroll, vector_axis=4)
        finish_tile(sch, (oi, wi), o)
        if any(w.pads):  # 2.
            sch.compute_at(pad, parallel)
            if w.in_block:
                sch.vectorize(sch.get_loops(pad)[-1])
        else:
            sch.compute_inline(pad)


def _reduction(w: Workload) -> int:
    blocks, lanes = conv_channels(w)
    return blocks * lanes * w.kh * w.kw


TEMPLATE = Conv()
