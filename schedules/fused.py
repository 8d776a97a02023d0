"""Depthwise and pointwise convolution in one kernel, a few output rows at a time.

Pattern
    mid[n, c, h, w, i] = mid_epilogue(depthwise convolution of x, as in `depthwise`)
    out[n, ob, h * OW + w, o] = epilogue(sum over c, i of mid[n, c, h, w, i] * w[ob, c * bi + i, o])

Strategy
    1. Threads take chunks of whole output rows; a chunk is walked in tiles of `rows` rows. No row
       of `mid` is needed by two tiles, so nothing is computed twice.
    2. For each tile compute `mid`, all channels of it, into a scratch of the thread's own, with
       the depthwise template's register tile (`strip` pixels of a row).
    3. Multiply it with the pointwise template's register tile: `tile_h` rows by `tile_w` columns
       by `tile_oc` blocks, the epilogue while it is in registers.
    4. Walk these register tiles with channels outermost (`oc`: a weight panel stays in L1, the
       scratch is read once a panel) or pixels outermost (`px`: the other way round).
    5. With a panel in L1, its tiles may ask for the next one (`prefetch`).

Why it is fast
    `mid` is read where it was just written, in L2 at most, instead of being written to and read
    from wherever a whole image of it fits; and there is one fork of the threads less. The weights
    are read once a tile, so that few rows need many reads of them: `rows` weighs one against the
    other, up to half of L2.
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
    register_tile,
    summed,
    tile_cost,
    unrolled_channels,
)
from tvmsep.schedules.depthwise import padded_read
from tvmsep.schedules.epilogue import finish
from tvmsep.schedules.pixel_tiles import UNEVEN, places_in, tiles_in
from tvmsep.schedules.prefetch import may_prefetch, prefetch_next, prefetches

if TYPE_CHECKING:
    from tvm import s_tir, tirx

_SLACK = 1.1
"""Register tiles that are predicted to be slower than the best by more are left out."""


def scratch_bytes(w: Workload, rows: int) -> int:
    """Size of a thread's part of `mid`."""
    return item_bytes(w) * rows * w.ow * w.in_blocks * w.in_block


class Fused:
    """See the module's docstring."""

    name = "dwpw"
    version = 1

    def accepts(self, w: Workload, t: Target) -> bool:
        """One output a channel in the depthwise part, rows over threads, a row within L2."""
        fits = w.op == "dwpw" and w.groups == w.ic and w.in_block > 0 and w.out_block > 0
        return fits and w.out_split == "rows" and scratch_bytes(w, 1) <= t.l2_bytes // 2

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x, w and bias as `depthwise` has them, w, bias, residual, out as `pointwise`.

        `apply` flattens the output's rows and columns.
        """
        from tvm import te

        first, last = w.parts
        bi = w.in_block
        x = te.placeholder(w.in_shape, name="x", dtype=w.dtype)
        wd = te.placeholder((w.in_blocks, w.kh, w.kw, bi), name="w_dw", dtype=w.dtype)
        bias_dw, _ = epilogue_inputs(first)
        panels = (w.out_blocks, w.in_blocks * bi, w.out_block)
        wt = te.placeholder(panels, name="w", dtype=w.dtype)
        bias, res = epilogue_inputs(last)
        kh = te.reduce_axis((0, w.kh), name="kh")
        kw = te.reduce_axis((0, w.kw), name="kw")
        ii = te.reduce_axis((0, bi), name="ii")

        def tap(n: Any, cb: Any, h: Any, col: Any, i: Any) -> Any:
            row = h * w.sh + kh * w.dh - w.pads[0]
            column = col * w.sw + kw * w.dw - w.pads[1]
            return padded_read(x, w, n, cb, row, column, i) * wd[cb, kh, kw, i]

        mid_shape = (w.n, w.in_blocks, w.oh, w.ow, bi)
        mid_acc = te.compute(
            mid_shape, lambda *at: te.sum(tap(*at), axis=[kh, kw]), name="mid_acc"
        )  # fmt: skip
        mid = te.compute(
            mid_shape,
            lambda n, cb, h, col, i: finish(
                w.mid_epilogue,
                mid_acc[n, cb, h, col, i],
                bias_dw[cb, i] if bias_dw is not None else None,
                None,
            ).astype(w.dtype),
            name="mid",
        )
        place = places_in(w.ow, _columns(c))
        shape = (w.n, w.out_blocks, w.oh, _across(w, c) * _columns(c), w.out_block)
        acc = summed(
            w, shape, w.in_blocks, [ii],
            lambda n, ob, h, col, o, io: mid[n, io, h, place(col), ii] * wt[ob, io * bi + ii, o],
        )  # fmt: skip
        out = te.compute(
            shape,
            lambda n, ob, h, col, o: finish(
                w.epilogue,
                acc[n, ob, h, col, o],
                bias[ob, o] if bias is not None else None,
                res[n, ob, h * w.ow + place(col), o] if res is not None else None,
            ).astype(w.dtype),
            name="out",
        )
        return prim_func([x, wd, bias_dw, wt, bias, res, out])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """Tiles of rows that leave half of L2 free, and the register tiles that promise most."""
        rows = _row_tiles(w, t)
        good = _register_tiles(w, t)

        def valid(c: Mapping[str, Any]) -> bool:
            if (c["tile_h"], c["tile_w"], c["tile_oc"]) not in good or c["rows"] % c["tile_h"]:
                return False
            if c.get("prefetch") and not _has_next(w, c):
                return False
            return c["chunks"] in _chunks(w, c["rows"], threads)

        return Space(
            {
                "rows": rows,
                "chunks": tuple(sorted({c for r in rows for c in _chunks(w, r, threads)})),
                "strip": tuple(sorted(_strips(w))),
                "tile_h": tuple(sorted({h for h, _, _ in good})),
                "tile_w": tuple(sorted({x for _, x, _ in good})),
                "tile_oc": tuple(sorted({o for _, _, o in good})),
                "loop": ("oc", "px"),
                "unroll": tuple(u for u in (1, 4, 8) if w.in_block % u == 0),
                **({"prefetch": (0, 2)} if may_prefetch(w) else {}),
            },
            valid,
        )

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """The best register tile, even shares, then as many rows as half of the room allows."""
        tiles = _register_tiles(w, t)

        def cost(rows: int, chunks: int) -> tuple[float, int]:
            shares = w.n * chunks
            size = scratch_bytes(w, rows)
            return -(-shares // threads) * threads / shares, abs(size - t.l2_bytes // 4)

        choices = [(r, c) for r in _row_tiles(w, t) for c in _chunks(w, r, threads)]
        rows, chunks = min(choices, key=lambda rc: cost(*rc))
        tile_h, tile_w, tile_oc = min(
            (tile for tile in tiles if rows % tile[0] == 0), key=lambda tile: (tiles[tile], tile)
        )
        found = Config(
            rows=rows,
            chunks=chunks,
            strip=_strips(w)[0],
            tile_h=tile_h,
            tile_w=tile_w,
            tile_oc=tile_oc,
            loop="oc",
            unroll=unrolled_channels(w, t),
        )
        return Config(found, prefetch=2 if prefetches(w, t) and _has_next(w, found) else 0)

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The docstring's steps, in s_tir primitives."""
        mid_acc, mid = sch.get_sblock("mid_acc"), sch.get_sblock("mid")
        out = sch.get_sblock("out")
        tile_h, tile_w, tile_oc = c.int("tile_h"), c.int("tile_w"), c.int("tile_oc")
        n, ob, h, col, o = sch.get_loops(out)
        chunk, tile, ho, hi = sch.split(
            h, [c.int("chunks"), None, c.int("rows") // tile_h, tile_h]
        )  # fmt: skip
        wo, wi = sch.split(col, [None, tile_w])
        oo, oi = sch.split(ob, [None, tile_oc])
        order = (oo, ho, wo) if c["loop"] == "oc" else (ho, wo, oo)  # 4.
        sch.reorder(n, chunk, tile, *order, oi, hi, wi, o)
        sch.parallel(sch.fuse(n, chunk))  # 1.
        product_tile(  # 3.
            sch, order[-1], ("io", "ii"), {"ii": c.int("unroll")}, vector_axis=4,
            pixels_first=pixels_first(t, tile_h * tile_w, tile_oc),
            by_lane=t.lane_operand and c.int("unroll") == w.in_block,
        )  # fmt: skip
        finish_tile(sch, (oi, hi, wi), o)
        sch.compute_at(mid, tile, preserve_unit_loops=True)  # 2.
        *_, column, lane = sch.get_loops(mid)
        strips, pixel = sch.split(column, [None, c.int("strip")])
        register_tile(sch, mid_acc, strips, ("kh", "kw"), {"kh": 0, "kw": 0}, vector_axis=4)
        finish_tile(sch, (pixel,), lane)
        if "prefetch" in c:  # 5.
            row, column = (sch.get(loop).loop_var for loop in (ho, wo))
            across = _across(w, c)
            prefetch_next(
                sch, w, wo, sch.get(oo).loop_var, c.int("rows") // tile_h * across,
                row * across + column, tile_oc, c.int("prefetch"),
            )  # fmt: skip
        place = places_in(w.ow, tile_w)
        sch.transform_layout(
            out, ("write", 0), lambda n, c, h, x, i: (n, c, h * w.ow + place(x), i),
            assume_injective_transform=w.ow % tile_w > 0,
        )  # fmt: skip


def _columns(c: Mapping[str, Any]) -> int:
    """Columns of a register tile; one where a config has no tiles, for the maths alone."""
    return int(c["tile_w"]) if "tile_w" in c else 1


def _across(w: Workload, c: Mapping[str, Any]) -> int:
    """Register tiles of a row, the last of which may begin before the one before it ends."""
    return -(-w.ow // _columns(c))


def _has_next(w: Workload, c: Mapping[str, Any]) -> bool:
    """Whether several register tiles read one panel of weights, and another panel follows."""
    tiles = c["rows"] // c["tile_h"] * _across(w, c)
    return bool(c["loop"] == "oc" and tiles > 1 and w.out_blocks > c["tile_oc"])


def _row_tiles(w: Workload, t: Target) -> tuple[int, ...]:
    return tuple(r for r in divisors(w.oh) if scratch_bytes(w, r) <= t.l2_bytes // 2)


def _strips(w: Workload) -> list[int]:
    """The widths nearest to seven pixels, nearest first, as a ratio."""
    return sorted(divisors(w.ow, 16), key=lambda d: max(d / 7, 7 / d))[:3]


def _chunks(w: Workload, rows: int, threads: int) -> tuple[int, ...]:
    """Into how many shares the tiles of `rows` rows may go: even ones, or one each."""
    tiles = w.oh // rows
    some = {1} if threads == 1 else {threads, 2 * threads, tiles}
    return tuple(d for d in divisors(tiles) if d in some)


def _register_tiles(w: Workload, t: Target) -> dict[tuple[int, int, int], float]:
    """Rows, columns and output blocks of the promising tiles, with their predicted cost.

    One of a single row is among them, since the rows at hand may be an odd number, and those of 12
    to 24 accumulators (where registers are few, of 8 and more), whatever is predicted: 7 by 3 wins
    where there are three output blocks.
    """

    def cost(h: int, x: int, o: int) -> float:
        twice = UNEVEN * -(-w.ow // x) * x / w.ow if w.ow % x else 1.0
        return tile_cost(t, w.out_block, h * x, o) * twice

    costs = {
        (h, x, o): cost(h, x, o)
        for h in divisors(w.oh, 2)
        for x in tiles_in(w.ow, t)
        for o in divisors(w.out_blocks, 6)
        if h * x * o <= accumulator_limit(t, h * x, o)
    }
    single = min((tile for tile in costs if tile[0] == 1), key=lambda tile: costs[tile])
    limit, least = _SLACK * min(costs.values()), 8 if few_registers(t) else 12
    return {
        (h, x, o): cost
        for (h, x, o), cost in costs.items()
        if cost <= limit or (h, x, o) == single or least <= h * x * o <= 24
    }


TEMPLATE = Fused()
