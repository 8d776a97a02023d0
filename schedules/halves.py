"""A register tile for in-order cores with 64-bit vector loads: its loads are placed by hand.

Pattern
    acc[ob, p, o] += sum over io, ii of x[io, p, ii] * w[ob, 4 * io + ii, o]

Strategy
    1. The whole reduction of a tile is one piece of inline assembly. Each step takes a block of
       four channels: one vector a pixel, four an output block, all in registers.
    2. A Cortex-A53 loads 128 bits in two cycles and cannot multiply meanwhile. It loads 64 bits in
       one, beside which it inserts 64 bits of an integer register into another vector; and an
       integer register is loaded beside a multiply-add. So a vector is `ldr d`, `ldr x` and `mov
       v.d[1], x`, at one cycle where the third stands beside the first of a later vector.
    3. The next step's vectors are loaded in place of this one's, between the last multiply-adds:
       a load after each. The halves join two loads later, when they have arrived.

Tried and lost
    LLVM schedules such loads well ahead of use, but puts no insertion beside a load, since its
    model of the core has them beside multiply-adds: as many cycles as with 128-bit loads. Pieces of
    assembly of a load and an insertion that LLVM places: it does not know their latencies, and they
    wait for each other.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from tvmsep.contracts import Target, Workload

if TYPE_CHECKING:
    from tvm import s_tir

_LANES = 4
_SPARE = 5
"""Integer registers for upper halves; the last one's is for a step's last load."""
_LAG = 2
"""Loads between one of a lower half and the insertion of the upper one."""
_MEANS = """
@T.prim_func(s_tir=True)
def means(a: T.handle, b: T.handle, c: T.handle, blocks: T.int32) -> None:
{strides}
    A = T.match_buffer(a, (blocks, {pixels}, 4), "float32", align=4, offset_factor=1{a})
    B = T.match_buffer(b, ({ob}blocks * 4, 4), "float32", align=4, offset_factor=1{b})
    C = T.match_buffer(c, ({ob}{pixels}, 4), "float32", align=4, offset_factor=1{c})
    with T.sblock("root"):
        T.reads(C[{all}0:{pixels}, 0:4], A[0:blocks, 0:{pixels}, 0:4], B[{all}0:blocks * 4, 0:4])
        T.writes(C[{all}0:{pixels}, 0:4])
        {body}
"""
_SUM = """for {k}p, o, io, ii in T.grid({ob}{pixels}, 4, blocks, 4):
            with T.sblock("each"):
                {vk}vp, vo, vi, vj = T.axis.remap("{kinds}", [{k}p, o, io, ii])
                C[{vk}vp, vo] = C[{vk}vp, vo] + A[vi, vp, vj] * B[{vk}vi * 4 + vj, vo]"""


def fits_by_halves(w: Workload, t: Target, tile_p: int, tile_oc: int) -> bool:
    """Whether such a tile's accumulators, pixels and weights have a register each.

    And whether it has several pixels, which lie one after the other, and two blocks of channels.
    """
    if w.in_run > 1 or w.out_run > 1 or w.dtype != "float32":
        return False
    used = tile_p * tile_oc + tile_p + _LANES * tile_oc
    fit = used <= t.vector_registers and tile_p > 1 and w.in_blocks > 1
    return fit and w.in_block == w.out_block == _LANES and (w.sh, w.sw) == (1, 1)


def tile_by_halves(sch: s_tir.Schedule, acc: Any, tile_p: int, tile_oc: int) -> None:
    """Compute block `acc` of a pointwise convolution as such a tile.

    Args:
        sch: the schedule.
        acc: the reduction over `io` and `ii`, four channels each, in the consumer's loop of one
            tile.
        tile_p: pixels, one after the other in memory.
        tile_oc: output blocks; a tile that fits (`fits_by_halves`).
    """
    count = len(sch.get_loops(acc)) - (5 if tile_oc > 1 else 4)
    tile = sch.get_loops(acc)[count:]
    blocks = int(sch.get(tile[-2]).extent)
    name, code = _intrinsic(tile_p, tile_oc, blocks)
    init = sch.decompose_reduction(acc, tile[0])
    *unrolled, vector = sch.get_loops(init)[count:]
    for loop in unrolled:
        sch.unroll(loop)
    sch.vectorize(vector)
    outer = sch.get_loops(acc)
    sch.tensorize(outer[count], name)
    sch.annotate(outer[0], "pragma_import_llvm", code)


def _intrinsic(tile_p: int, tile_oc: int, blocks: int) -> tuple[str, str]:
    """Register the tile with TVM: its name there, and the function that it calls."""
    from tvm.s_tir import TensorIntrin

    function = f"tvmsep_halves_{tile_p}x{tile_oc}"
    name = f"{function}_{blocks}"
    both = (f.specialize({f.params[3]: blocks}) for f in _described(function, tile_p, tile_oc))
    TensorIntrin.register(name, *both, override=True)
    return name, _function(function, tile_p, tile_oc)


@cache
def _described(function: str, tile_p: int, tile_oc: int) -> tuple[Any, Any]:
    """What the tile means, and the call that does it with buffers of any strides."""
    from tvm.script import from_source

    many = tile_oc > 1
    words = {
        "pixels": tile_p, "ob": f"{tile_oc}, " if many else "",
        "all": f"0:{tile_oc}, " if many else "", "k": "k, " if many else "",
        "vk": "vk, " if many else "", "kinds": "SSSRR"[1 - many :],
    }  # fmt: skip
    plain = _MEANS.format(strides="", a="", b="", c="", body=_SUM.format(**words), **words)
    sizes = {"a": ("a0", "a1"), "b": ("b0", "b1")[1 - many :], "c": ("c0", "c1")[1 - many :]}
    strides = "\n".join(f"    {s} = T.int32()" for group in sizes.values() for s in group)
    shown = {x: f", strides=[{', '.join(group)}, 1]" for x, group in sizes.items()}
    call = (
        f'T.evaluate(T.call_extern("{function}", C.access_ptr("rw"), A.access_ptr("r"), '
        f'B.access_ptr("r"), T.Cast("int64", a0), T.Cast("int64", {sizes["b"][0]}), '
        f'T.Cast("int64", {sizes["c"][0]}), T.Cast("int64", blocks), dtype="void"))'
    )
    strided = _MEANS.format(strides=strides, body=call, **shown, **words)
    return from_source(plain), from_source(strided)


def _function(name: str, tile_p: int, tile_oc: int) -> str:
    """LLVM's text of the function. Strides are in floats, of channel blocks and output blocks."""
    count = tile_p * tile_oc
    accs = [f"%c{k}" for k in range(count)]
    weights = [f"%w{b}" for b in range(tile_oc)]
    lines = [
        f"define linkonce_odr void @{name}(ptr %to, ptr %x, ptr %w, i64 %dx, i64 %dw, i64 %dc, "
        "i64 %blocks) alwaysinline nounwind {"
    ]
    for b in range(tile_oc):
        lines.append(f"  %ow{b} = mul i64 %dw, {b}")
        lines.append(f"  %w{b} = getelementptr float, ptr %w, i64 %ow{b}")
        lines.append(f"  %oc{b} = mul i64 %dc, {b}")
        for p in range(tile_p):
            k = b * tile_p + p
            lines.append(f"  %oc{b}.{p} = add i64 %oc{b}, {_LANES * p}")
            lines.append(f"  %p{k} = getelementptr float, ptr %to, i64 %oc{b}.{p}")
            lines.append(f"  %c{k} = load <4 x float>, ptr %p{k}, align 16")
    pointers = ["%x", *weights]
    kinds = ["<4 x float>"] * count + ["ptr"] * len(pointers) + ["i64"] * (1 + _SPARE)
    outs = ["=&w"] * count + ["=&r"] * (len(pointers) + 1 + _SPARE)
    tied = [str(k) for k in range(count + len(pointers) + 1)]
    clobbered = [f"~{{v{k}}}" for k in range(tile_p + _LANES * tile_oc)]
    constraints = ",".join([*outs, *tied, "r", *clobbered, "~{cc}"])
    given = [
        *(f"<4 x float> {c}" for c in accs), *(f"ptr {p}" for p in pointers),
        "i64 %times", "i64 %step",
    ]  # fmt: skip
    text = "\\0A\\09".join(_assembly(tile_p, tile_oc))
    lines += [
        "  %times = sub i64 %blocks, 1",
        "  %step = mul i64 %dx, 4",
        f'  %r = call {{{", ".join(kinds)}}} asm "{text}", "{constraints}"({", ".join(given)}) #0',
    ]
    for k in range(count):
        lines.append(f"  %s{k} = extractvalue {{{', '.join(kinds)}}} %r, {k}")
        lines.append(f"  store <4 x float> %s{k}, ptr %p{k}, align 16")
    return "\n".join([*lines, "  ret void", "}", "attributes #0 = { nounwind memory(read) }", ""])


def _assembly(tile_p: int, tile_oc: int) -> list[str]:
    """The loop over channel blocks; the last one is done after it, without loads."""
    count = tile_p * tile_oc
    at_x, at_times = count, count + 1 + tile_oc
    spare = [f"${at_times + 1 + k}" for k in range(_SPARE)]
    step = f"${at_times + 1 + _SPARE + at_times + 1}"
    weights = [
        (tile_p + i * tile_oc + b, f"${count + 1 + b}", 16 * i)
        for i in range(_LANES)
        for b in range(tile_oc)
    ]
    # The last weight's register is free at the end only; its upper half can wait until the next
    # loads begin. The last pixel's is joined early in the next step.
    order = [*weights[:-1], *((p, f"${at_x}", 16 * p) for p in range(tile_p)), weights[-1]]
    final = len(order) - 1
    total = _LANES * count
    first = total - final

    def upper(n: int) -> str:
        return spare[-1] if n == final else spare[n % (_SPARE - 1)]

    def load(n: int) -> tuple[str, str]:
        v, pointer, offset = order[n]
        return f"ldr d{v}, [{pointer}, #{offset}]", f"ldr {upper(n)}, [{pointer}, #{offset + 8}]"

    def join(n: int) -> str:
        return f"mov v{order[n][0]}.d[1], {upper(n)}"

    pointers = [at_x, *range(count + 1, at_times)]
    count_down = [f"add ${k}, ${k}, {step if k == at_x else '#64'}" for k in pointers]
    count_down.append(f"subs ${at_times}, ${at_times}, #1")
    steps: dict[bool, list[str]] = {True: [], False: []}
    for loads, code in steps.items():
        for k in range(total):
            w, p = divmod(k, tile_p)
            i, b = divmod(w, tile_oc)
            n = k - first
            if loads and n >= -1:
                code.append(load(n + 1)[1])
            code.append(f"fmla ${b * tile_p + p}.4s, v{tile_p + w}.4s, v{p}.s[{i}]")
            if loads and k < len(count_down):
                code.append(count_down[k])
            if loads and n >= 0:
                code.append(load(n)[0])
            if n == 0:
                code.append(join(final))
            if loads and n >= _LAG:
                code.append(join(n - _LAG))
            if k == min(tile_p - 2, 1):
                code.append(join(final - 1))
    label = ".Ltvmsep_halves${:uid}"
    return [
        *(f"ldr q{v}, [{pointer}, #{offset}]" for v, pointer, offset in order),
        load(final - 1)[1], load(final)[1],
        f"{label}:", *steps[True], load(final)[0], join(final - _LAG), f"b.ne {label}",
        *steps[False],
    ]  # fmt: skip
