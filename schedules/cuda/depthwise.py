"""Depthwise convolution on CUDA: a thread has a small tile of one vector of channels in registers.

Pattern
    As `schedules/depthwise.py`: out[n, c, h * OW + w, i] from kh * kw taps of the same channel.

Strategy
    1. A thread computes `tile_h` rows by `tile_w` columns of `vec` channels: its accumulators. All
       loops over taps, tile and channels are unrolled, so that they are registers.
    2. `stage=registers`: it reads the inputs of its tile into registers, a vector an instruction;
       what neighbours read too comes from L1. Threads are numbered along memory, over the whole
       output, so a warp's accesses lie together whatever the image's width, and no warp is left
       half empty where `threads` (or a little fewer, `exact_threads`) divide the work.
    3. `stage=shared`: `rows` by `cols` threads, and as many channel vectors as make up `threads`,
       take their inputs with the halo into shared memory together, then each its own from there.
    4. One output row at a time: the inputs of one kernel row are in registers; several: all.
    5. Padding is folded into the reads as a condition: nothing is copied in global memory. A tile
       that overhangs the image computes what nobody stores: only the store asks.
    6. Bias, activations and residual follow in registers; float32 whatever the activations are.

Why it is fast
    The operator moves 8 bytes for each 2 * kh * kw FLOPs: device memory limits it, if every input
    is fetched from there once and enough loads are under way. The tile divides what L1 has to
    deliver: 3x3 taps of a 2x2 tile are 4 vectors an output instead of 9.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Config, Space, Target, Workload
from tvmsep.contracts.workload import ITEM_BYTES
from tvmsep.schedules.common import divisors, prim_func
from tvmsep.schedules.cuda.common import (
    L1_BYTES_PER_CLOCK,
    LATENCY_CLOCKS,
    SPARE_REGISTERS,
    bind_flat,
    copy_vectors,
    exact_threads,
    fp32_lanes,
    gpu_of,
    resident_blocks,
    thread_counts,
    unroll_all,
    vector_lanes,
    widths,
)
from tvmsep.schedules.cuda.epilogue import finish
from tvmsep.schedules.depthwise import Depthwise

if TYPE_CHECKING:
    from tvm import s_tir, tirx

_UNROLLED = 1024
"""Multiply-adds of a thread up to which all of them are written out; past it kernel rows loop."""


def _up(n: int, by: int) -> int:
    return -(-n // by) * by


def _lanes(w: Workload) -> int:
    """A thread's channels at most; four where several outputs share an input, which is a gather.

    Its indices would be vectors of eight integers, which TVM writes as no CUDA C.
    """
    lanes = vector_lanes(w, w.out_block)
    own = w.oc == w.ic and w.in_block == w.out_block
    return lanes if own else math.gcd(lanes, 4)


class _Shape:
    """What a config comes to: threads, tiles, registers and shared memory."""

    def __init__(self, w: Workload, c: Mapping[str, Any]) -> None:
        self.vec, self.tile_h, self.tile_w = c["vec"], c["tile_h"], c["tile_w"]
        self.shared = c["stage"] == "shared"
        lanes = w.out_block // self.vec
        self.rows = self.cols = self.lane_threads = self.block_threads = 1
        if self.shared:
            self.rows, self.cols = c["rows"], c["cols"]
            room = c["threads"] // (self.rows * self.cols)
            if room:
                self.lane_threads = max(divisors(lanes, room))
                self.block_threads = max(divisors(w.out_blocks, room // self.lane_threads))
        self.oh = _up(w.oh, self.tile_h * self.rows)
        self.ow = _up(w.ow, self.tile_w * self.cols)
        tiles = (self.oh // self.tile_h) * (self.ow // self.tile_w)
        self.total = w.n * w.out_blocks * lanes * tiles
        if self.shared:
            self.threads = self.rows * self.cols * self.lane_threads * self.block_threads
        else:
            self.threads = exact_threads(self.total, c["threads"])
        self.blocks = -(-self.total // self.threads)
        taps = w.kh * w.kw
        self.multiply_adds = taps * self.tile_h * self.tile_w * self.vec
        self.by_row = self.tile_h == 1 or self.multiply_adds > _UNROLLED
        span_w = min((self.tile_w - 1) * w.sw + (w.kw - 1) * w.dw + 1, self.tile_w * w.kw)
        span_h = min((self.tile_h - 1) * w.sh + (w.kh - 1) * w.dh + 1, self.tile_h * w.kh)
        self.loads = span_w * (w.kh * self.tile_h if self.by_row else span_h)
        held = span_w * (self.tile_h if self.by_row else span_h) * self.vec
        words = 2 if w.dtype == "float16" else 1
        self.registers = (
            SPARE_REGISTERS + self.vec * (self.tile_h * self.tile_w + 1) + held // words
        )
        halo_h = (self.rows * self.tile_h - 1) * w.sh + (w.kh - 1) * w.dh + 1
        halo_w = (self.cols * self.tile_w - 1) * w.sw + (w.kw - 1) * w.dw + 1
        channels = self.lane_threads * self.block_threads * self.vec
        self.fetched = halo_h * halo_w * channels if self.shared else 0
        self.shared_bytes = self.fetched * ITEM_BYTES[w.dtype]


class CudaDepthwise(Depthwise):
    """See the module's docstring."""

    name = "cuda_depthwise"
    version = 1

    def accepts(self, w: Workload, t: Target) -> bool:
        """What the CPU's accepts, in float32 or float16."""
        return t.gpu is not None and super().accepts(w, t)

    def compute(self, w: Workload, t: Target, c: Config) -> tirx.PrimFunc:
        """Parameters: x `in_shape`, w `[c, kh, kw, i]`, bias, residual, out `[n, c, oh, ow, i]`.

        Stages: `pad` (the reads), `acc`, `rest` (the residual), `done`, `out` (stores); their
        images are rounded up to whole tiles. `apply` flattens the output's rows and columns.
        """
        from tvm import te, tirx

        b, shape = w.out_block, _Shape(w, c)
        x = te.placeholder(w.in_shape, name="x", dtype=w.dtype)
        wt = te.placeholder((w.out_blocks, w.kh, w.kw, b), name="w", dtype=w.dtype)
        bias = res = None
        if "bias" in w.epilogue:
            bias = te.placeholder((w.out_blocks, b), name="bias")
        if "add" in w.epilogue:
            res = te.placeholder(w.out_shape, name="residual", dtype=w.dtype)
        top, left = w.pads[:2]
        multiplier = w.oc // w.ic
        image = (w.n, w.out_blocks, shape.oh, shape.ow, b)
        rows = (shape.oh - 1) * w.sh + (w.kh - 1) * w.dh + 1
        cols = (shape.ow - 1) * w.sw + (w.kw - 1) * w.dw + 1

        def guarded(value: Any, conditions: list[Any]) -> Any:
            if not conditions:
                return value
            return te.if_then_else(tirx.all(*conditions), value, tirx.const(0, w.dtype))

        def padded(n: Any, cb: Any, h: Any, col: Any, i: Any) -> Any:
            row, column, block, lane = h - top, col - left, cb, i
            if multiplier > 1 or w.in_block != b:
                channel = te.min((cb * b + i) // multiplier, w.ic - 1)
                block, lane = channel // w.in_block, channel % w.in_block
            inside = [row >= 0] if top else []
            inside += [row < w.ih] if rows - top > w.ih else []
            inside += [column >= 0] if left else []
            inside += [column < w.iw] if cols - left > w.iw else []
            return guarded(x[n, block, row * w.iw + column, lane], inside)

        pad = te.compute((w.n, w.out_blocks, rows, cols, b), padded, name="pad")
        kh = te.reduce_axis((0, w.kh), name="kh")
        kw = te.reduce_axis((0, w.kw), name="kw")
        acc = te.compute(
            image,
            lambda n, cb, h, col, i: te.sum(
                pad[n, cb, h * w.sh + kh * w.dh, col * w.sw + kw * w.dw, i].astype("float32")
                * wt[cb, kh, kw, i].astype("float32"),
                axis=[kh, kw],
            ),
            name="acc",
        )
        rest = None
        if res is not None:
            rest = te.compute(
                image,
                lambda n, cb, h, col, i: guarded(
                    res[n, cb, h * w.ow + col, i],
                    ([h < w.oh] if shape.oh > w.oh else [])
                    + ([col < w.ow] if shape.ow > w.ow else []),
                ),
                name="rest",
            )
        done = te.compute(
            image,
            lambda n, cb, h, col, i: finish(
                w.epilogue,
                acc[n, cb, h, col, i],
                bias[cb, i] if bias is not None else None,
                rest[n, cb, h, col, i].astype("float32") if rest is not None else None,
            ).astype(w.dtype),
            name="done",
        )
        out = te.compute((w.n, w.out_blocks, w.oh, w.ow, b), lambda *axes: done(*axes), name="out")
        return prim_func([x, wt, bias, res, out])

    def space(self, w: Workload, t: Target, threads: int) -> Space:
        """Tiles that fit a thread's registers, blocks of which two fit a multiprocessor."""
        gpu = gpu_of(t)
        lanes = _lanes(w)

        def valid(c: Mapping[str, Any]) -> bool:
            flat = c["stage"] == "registers"
            if (c["rows"], c["cols"]) != (1, 1) if flat else c["vec"] != lanes:
                return False
            if not flat and c["rows"] * c["cols"] > c["threads"]:
                return False
            s = _Shape(w, c)
            if not flat and not c["threads"] * 5 // 8 <= s.threads <= c["threads"]:
                return False
            if s.oh * s.ow > 1.5 * _up(w.oh, s.tile_h) * _up(w.ow, s.tile_w):
                return False
            if s.multiply_adds > _UNROLLED and (s.tile_h, s.tile_w) != (1, 1):
                return False
            return resident_blocks(gpu, s.threads, s.registers, s.shared_bytes) >= 2

        return Space(
            {
                "stage": ("registers", "shared"),
                "vec": widths(lanes),
                "tile_h": tuple(n for n in (1, 2, 4) if n < 2 * w.oh),
                "tile_w": tuple(n for n in (1, 2, 4, 8) if n < 2 * w.ow),
                "threads": thread_counts(gpu),
                "rows": tuple(n for n in (1, 2, 4, 7, 8, 16) if n < 2 * w.oh),
                "cols": tuple(n for n in (1, 4, 7, 8, 14, 16, 28, 32) if n < 2 * w.ow),
            },
            valid,
        )

    def default(self, w: Workload, t: Target, threads: int) -> Config:
        """The tile without shared memory that a model of a multiprocessor finds quickest.

        What counts is the slowest of multiply-adds, L1, device memory, and waiting for it, on the
        busiest multiprocessor, and a part of the others, which never overlap wholly; and how long
        one thread's instructions take, of which a warp starts one every other clock.
        """
        gpu = gpu_of(t)
        clock = gpu.clock_ghz * 1e9
        size = ITEM_BYTES[w.dtype]
        moved = size * (w.n * w.ic * w.ih * w.iw + w.n * w.oc * w.oh * w.ow) / gpu.bandwidth * clock

        def cost(c: Config) -> float:
            s = _Shape(w, c)
            resident = resident_blocks(gpu, s.threads, s.registers, 0)
            waves = s.blocks / (gpu.sms * resident)
            share = -(-s.blocks // gpu.sms) * s.threads  # threads of the busiest multiprocessor
            length = s.multiply_adds + 4 * s.loads
            arithmetic = share * length / fp32_lanes(gpu)
            delivered = share / gpu.warp * self._l1_clocks(w, s, gpu.warp)
            uneven = share * gpu.sms / s.total
            terms = (waves * LATENCY_CLOCKS, arithmetic, delivered, moved * uneven)
            return float(2 * length + max(terms) + sum(terms) / 4)

        space = self.space(w, t, threads)
        flat = Space({**space.knobs, "stage": ("registers",), "rows": (1,), "cols": (1,)})
        return min((c for c in flat.configs() if c in space), key=cost)

    @staticmethod
    def _l1_clocks(w: Workload, s: _Shape, warp: int) -> float:
        """Clocks in which L1 serves one warp: one for each line of 128 bytes that a load touches.

        Threads of a warp lie `tile_w * sw` pixels apart; so a tall tile is cheaper than a wide one,
        but where the channels of a pixel fill whole lines.
        """
        size = ITEM_BYTES[w.dtype]
        near = min(warp, w.out_block // s.vec)  # threads that share a pixel
        pixels, run = warp // near, near * s.vec * size
        apart = s.tile_w * w.sw * w.out_block * size if s.vec * near == w.out_block else run
        lines = (
            min(pixels * max(apart, run), pixels * _up(run, L1_BYTES_PER_CLOCK))
            / L1_BYTES_PER_CLOCK
        )
        weights = w.kh * w.kw * max(1.0, run / L1_BYTES_PER_CLOCK)
        stores = s.tile_h * s.tile_w * max(lines / w.sw, 1.0)
        return float(s.loads * max(lines, 1.0) + stores + weights)

    def apply(self, sch: s_tir.Schedule, w: Workload, t: Target, c: Config) -> None:
        """The docstring's steps, in s_tir primitives."""
        shape = _Shape(w, c)
        pad, acc, done, out = (sch.get_sblock(name) for name in ("pad", "acc", "done", "out"))
        n, cb, h, col, i = sch.get_loops(out)
        ho, hi = sch.split(h, [None, shape.tile_h])
        wo, wi = sch.split(col, [None, shape.tile_w])
        io, ii = sch.split(i, [None, shape.vec])
        if shape.shared:  # 3.
            ho, ht = sch.split(ho, [None, shape.rows])
            wo, wt = sch.split(wo, [None, shape.cols])
            io, it = sch.split(io, [None, shape.lane_threads])
            co, ct = sch.split(cb, [None, shape.block_threads])
            sch.reorder(n, co, ho, wo, io, ct, ht, wt, it, hi, wi, ii)
            block, thread = sch.fuse(n, co, ho, wo, io), sch.fuse(ct, ht, wt, it)
            sch.bind(block, "blockIdx.x")
            sch.bind(thread, "threadIdx.x")
        else:  # 2.
            sch.reorder(n, cb, ho, wo, io, hi, wi, ii)
            block, thread = bind_flat(sch, [n, cb, ho, wo, io], shape.threads)
        across = shape.vec == w.out_block == 1 and shape.ow == w.ow and shape.tile_w > 1
        if across:  # channels are images: vectors of pixels
            wi, ii = sch.split(wi, [None, min(shape.tile_w, vector_lanes(w, 8))])
        unroll_all(sch, (hi, wi))
        sch.vectorize(ii)
        for name in ("done", "acc", *(["rest"] if "add" in w.epilogue else [])):
            stage = sch.get_sblock(name)
            sch.compute_at(stage, thread, preserve_unit_loops=True)
            sch.set_scope(stage, 0, "local")
        unroll_all(sch, sch.get_loops(done)[2:])
        if "add" in w.epilogue:
            copy_vectors(sch, sch.get_sblock("rest"), 2, shape.vec)
        *tile, kh, kw = sch.get_loops(acc)[2:]
        sch.reorder(kh, kw, *tile)  # 1.
        unroll_all(sch, [kw, *tile])
        if shape.multiply_adds <= _UNROLLED:
            sch.unroll(kh)
        weights = sch.cache_read(acc, 1, "local")
        sch.compute_at(weights, kw, preserve_unit_loops=True)
        copy_vectors(sch, weights, 4, shape.vec)
        own = pad
        if shape.shared:
            sch.set_scope(pad, 0, "shared")
            sch.compute_at(pad, block, preserve_unit_loops=True)
            fetched = sch.fuse(*sch.get_loops(pad)[1:])
            _, by, vector = sch.split(fetched, [None, shape.threads, shape.vec])
            sch.bind(by, "threadIdx.x")
            sch.vectorize(vector)
            own = sch.cache_read(acc, 0, "local")
        else:
            sch.set_scope(pad, 0, "local")
        at, depth = (kh, 3) if shape.by_row else (thread, 2)  # 4.
        sch.compute_at(own, at, preserve_unit_loops=True)
        copy_vectors(sch, own, depth, shape.vec)
        # acc keeps its initialisation: the taps are unrolled, which makes its condition constant.
        sch.transform_layout(out, ("write", 0), lambda n, c, h, x, i: (n, c, h * w.ow + x, i))


TEMPLATE = CudaDepthwise()
