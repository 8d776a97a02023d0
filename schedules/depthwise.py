"""Depthwise convolution: one channel block at a time, kernel taps and a strip of pixels unrolled.

Pattern
    out[n, c, h * OW + w, i] = epilogue(sum over kh, kw of
        x[n, c, (h * sh + kh * dh - top) * W + w * sw + kw * dw - left, i] * w[c, kh, kw, i])

Strategy
    1. A tile is `tile_h` rows by `tile_w` pixels of one channel block: that many accumulators.
    2. Unroll both kernel loops and the tile: every tap is one load and one FMA, and LLVM shares
       the loads that neighbouring outputs have in common.
    3. Padding is folded into the reads as a condition, so no padded copy is made; after
       unrolling it is constant for all but the tiles at the border.
    4. Split over threads as the layout says: by rows (`rows` chunks of them, all channels each)
       or by channel blocks.
    5. Where several vectors of a pixel lie together (NHWC), `inner` of them are walked for each
       tile, so that a cache line is used up while it is near.

Why it is fast
    The operator moves 4 bytes for each 2 * kh * kw FLOPs: it lives on L1/L2 bandwidth, and its
    input is where the producer left it if both split alike.

Tried and lost
    A materialised pad in a scratch buffer: 1.5 to 2.6 times slower, the copy costs as much as
    the convolution.
    Walking rows or channels backwards, so as to begin with what the producer wrote last and L2
    still holds: backward rows cost 3 to 70 %, backward channels gain up to 13 % on some layers of
    more than 1 MB and lose 9 % on others, 0.5 % of a network where each is taken at its best.
    Prefetching the next one or two rows of input, each tile its part (Zen 3, inside MobileNetV2):
    nothing to 6 % slower, 7 % faster on `s2 56x56` alone. Rows are long: the hardware does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.schedules.common import (
    divisors,
    epilogue_inputs,
    finish_tile,
    item_bytes,
    prim_func,
    register_tile,
)
from tvmsep.schedules.epilogue import finish

if TYPE_CHECKING:
    from tvm import s_tir, tirx


_NEAR = 256
"""Bytes of a pixel that are used up at once, by default, where its channels lie together."""


def padded_read(x: Any, w: Workload, n: Any, c: Any, h: Any, col: Any, *rest: Any) -> Any:
    """`x` at row `h`, column `col` of the unpadded image, zero outside it."""
    from tvm import te, tirx

    top, left, bottom, right = w.pads
    conditions = []
    if top:
        conditions.append(h >= 0)
    if bottom:
        conditions.append(h < w.ih)
    if left:
        conditions.append(col >= 0)
    if right:
        conditions.append(col < w.iw)
    value = x[(n, c, h * w.iw + col, *rest)]
    if not conditions:
        return value
    return te.if_then_else(tirx.all(*conditions), value, tirx.const(0, x.dtype))


class Depthwise:
    """See the module's docstring."""

    name = "depthwise"
    version = 2

    def accepts(self, w: Workload, t: Target) -> bool:
        """Any kernel, stride, dilation, pad; `oc` a multiple of `ic` (channel multiplier)."""
        if w.op != "depthwise" or w.groups != w.ic or not w.out_block:
            return False
        return w.oc == w.ic and w.in_block == w.out_block or (w.oc % w.ic == 0 and w.in_block > 0)

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x `in_shape`, w `[c, kh, kw, i]`, bias, residual, out `[n, c, oh, ow, i]`.

        `apply` flattens the output's rows and columns.
        """
        from tvm import te

        b = w.out_block
        x = te.placeholder(w.in_shape, name="x", dtype=w.dtype)
        wt = te.placeholder((w.out_blocks, w.kh, w.kw, b), name="w", dtype=w.dtype)
        bias, res = epilogue_inputs(w)
        kh = te.reduce_axis((0, w.kh), name="kh")
        kw = te.reduce_axis((0, w.kw), name="kw")
        multiplier = w.oc // w.ic

        def tap(n: Any, cb: Any, h: Any, col: Any, i: Any) -> Any:
            row = h * w.sh + kh * w.dh - w.pads[0]
            column = col * w.sw + kw * w.dw - w.pads[1]
            if multiplier == 1 and w.in_block == b:
                return padded_read(x, w, n, cb, row, column, i)
            channel = te.min(te.div(cb * b + i, multiplier), w.ic - 1)
            block, lane = te.div(channel, w.in_block), te.indexmod(channel, w.in_block)
            return padded_read(x, w, n, block, row, column, lane)

        acc = te.compute(
            (w.n, w.out_blocks, w.oh, w.ow, b),
            lambda n, cb, h, col, i: te.sum(
                tap(n, cb, h, col, i) * wt[cb, kh, kw, i], axis=[kh, kw]
            ),
            name="acc",
        )
        out = te.compute(
            (w.n, w.out_blocks, w.oh, w.ow, b),
            lambda n, cb, h, col, i: finish(
                w.epilogue,
                acc[n, cb, h, col, i],
                bias[cb, i] if bias is not None else None,
                res[n, cb, h * w.ow + col, i] if res is not None else None,
            ).astype(w.dtype),
            name="out",
        )
        return prim_func([x, wt, bias, res, out])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """Strips and row pairs that fit the registers, for the layout's split."""
        limit = t.vector_registers - 2
        tile_w, tile_h = divisors(w.ow, limit), tuple(d for d in (1, 2, 3, 4) if w.oh % d == 0)
        loops = (w.out_split,) if threads > 1 else ("rows", "channels")
        default = self.default(w, t, threads)
        floor = min(default.int("tile_w") * default.int("tile_h"), 4)

        def valid(c: Mapping[str, Any]) -> bool:
            tile = c["tile_w"] * c["tile_h"]
            if not floor <= tile <= limit or (w.oh // c["tile_h"]) % c["rows"]:
                return False
            if c["loop"] == "channels":
                return bool(c["rows"] == 1)
            return True

        knobs: dict[str, tuple[int | str, ...]] = {
            "tile_w": tile_w,
            "tile_h": tile_h,
            "loop": loops,
            "rows": tuple(r for r in divisors(w.oh) if r <= 8 or r == w.oh),
        }
        if w.out_run > 1:
            knobs["inner"] = _inner(w)
        return Space(knobs, valid)

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """Accumulators that hide the FMA's latency, and chunks that stay in the cache.

        Mostly six to eight pixels of a row, twice as many where vectors are half as wide as the
        core's. Where one channel block alone overflows half of L2 each input row should come from
        beyond it once: four rows of one or two pixels.
        """
        limit = t.vector_registers - 2
        image = item_bytes(w) * w.ih * w.iw * w.in_block
        tall = image > t.l2_bytes // 2 and (w.kh, w.kw) == (3, 3) and w.oh % 4 == 0
        loop = w.out_split if threads > 1 else "rows"

        def shares(tile_h: int) -> tuple[float, int]:
            """Chunks of rows, and how much longer the busiest thread works than the average."""
            near = t.l2_bytes // 4 if tall else t.l2_bytes // 16
            rest = w.oh // tile_h
            rows = [r for r in divisors(rest) if r <= 8 or r == w.oh]

            def cost(r: int) -> tuple[float, bool, int]:
                waste = -(-w.n * r // threads) * threads / (w.n * r)
                far = (threads > 1 or tall) and image // r > near
                return (waste, far, -r if far and r <= 8 else r)

            return cost(best := min(rows, key=cost))[0], best

        if tall and loop == "rows" and shares(4)[0] > shares(1)[0]:
            tall = False
        narrow = w.out_block < t.lanes and t.half_width_is_free and w.sw == 1
        if tall:
            tile_w, tile_h = (2 if w.sw == 1 and w.ow % 2 == 0 else 1), 4
        else:
            wanted = 14 if narrow else 7
            widths = divisors(w.ow, min(limit, 14))
            tile_w, tile_h = min(widths, key=lambda d: (abs(d - wanted), -d)), 1
        rows = 1 if loop == "channels" else shares(tile_h)[1]
        config = Config(tile_w=tile_w, tile_h=tile_h, loop=loop, rows=rows)
        return config if w.out_run == 1 else Config(config, inner=_default_inner(w, loop, threads))

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The docstring's steps, in s_tir primitives."""
        acc, out = sch.get_sblock("acc"), sch.get_sblock("out")
        n, cb, h, col, i = sch.get_loops(out)
        ho, hi = sch.split(h, [None, c.int("tile_h")])
        at, wi = sch.split(col, [None, c.int("tile_w")])
        walk = [at]
        if "inner" in c:  # 5.
            cb, at = sch.split(cb, [None, c.int("inner")])
            walk.append(at)
        if c["loop"] == "rows":  # 4.
            chunk, ho = sch.split(ho, [c.int("rows"), None])
            sch.reorder(n, chunk, cb, ho, *walk, hi, wi, i)
            sch.parallel(sch.fuse(n, chunk))
        else:
            sch.reorder(n, cb, ho, *walk, hi, wi, i)
            sch.parallel(sch.fuse(n, cb))
        register_tile(sch, acc, at, ("kh", "kw"), {"kh": 0, "kw": 0}, vector_axis=4)  # 1. to 3.
        finish_tile(sch, (hi, wi), i)
        # Rows and columns stay apart until here: over a flat index TVM would take a tile of
        # several rows for all that lies between them.
        sch.transform_layout(out, ("write", 0), lambda n, c, h, x, i: (n, c, h * w.ow + x, i))


def _inner(w: Workload) -> tuple[int, ...]:
    """Vectors that may be walked for each tile: of those that lie together."""
    return tuple(d for d in divisors(w.out_run) if d in (1, 2, 4, 8, 16) or d == w.out_run)


def _default_inner(w: Workload, loop: str, threads: int) -> int:
    """As many vectors as lie within four cache lines, if that leaves each thread its share."""

    def cost(inner: int) -> tuple[float, int]:
        shares = w.n * w.out_blocks // inner
        waste = -(-shares // threads) * threads / shares if loop == "channels" else 1.0
        near = inner * w.out_block * item_bytes(w) <= _NEAR
        return (waste, -inner if near else inner)

    return min(_inner(w), key=cost)


TEMPLATE = Depthwise()
