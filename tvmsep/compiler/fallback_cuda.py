"""A decent schedule for whatever no template takes, on CUDA: every loop nest is shared by threads.

Pattern
    Any PrimFunc made of blocks whose spatial loops are independent, as in `fallback.py`. Each of
    its blocks becomes a kernel.

Strategy
    1. Inline elementwise producers into their readers, where no call is then made twice.
    2. Spatial block: one point a thread, or a vector of four where all buffers are walked in order;
       threads are numbered along the output.
    3. Reduction with many results, or a short one: one result a thread, which loops.
    4. Long reduction with few results (a softmax's sum, an argmax): a block of threads a result,
       or 32 neighbouring results; each thread takes its share, the shares are added across the
       block. Threads that follow each other read what lies together.
    5. Calls of mathematics become those of CUDA's exact library: TVM writes the approximate ones.
    6. A block that TVM refuses to share this way is shared in the simplest one that it accepts, in
       the last resort a single thread: it must run on the device, where its tensors are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvmsep.compiler.emit import SCHEDULED
from tvmsep.compiler.fallback import calls_of, in_order, inline_cheap, reduces_last_axis
from tvmsep.contracts import ModelError, Target
from tvmsep.schedules.cuda.common import bind_flat, gpu_of
from tvmsep.schedules.cuda.epilogue import device_call, sigmoid

if TYPE_CHECKING:
    from tvm import IRModule, tirx

_SPATIAL = 0
_THREADS = 128
_REFUSED = (
    "operator {} cannot run on a CUDA device: TVM writes it for a CPU only; "
    "export the model without it, or build for a CPU target"
)
_MANY = 2048
"""Results that are enough for one thread each."""
_LONG = 64
"""Steps of a reduction that are too many for one thread, where results are few."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "tirx.sigmoid": sigmoid,
    **{
        f"tirx.{name}": (lambda *args, _name=f"{name}f": device_call(_name, *args))
        for name in (
            "exp",
            "exp2",
            "exp10",
            "log",
            "log2",
            "log10",
            "log1p",
            "sin",
            "cos",
            "tan",
            "tanh",
            "erf",
            "pow",
        )  # fmt: skip
    },
}


def schedule_rest_cuda(mod: IRModule, target: Target) -> IRModule:
    """Bind every PrimFunc that did not come from a template to blocks and threads.

    Raises:
        ModelError: an operator that TVM only writes for a CPU; names the kernel.
    """
    from tvm import tirx

    for var, func in list(mod.functions_items()):
        if isinstance(func, tirx.PrimFunc) and SCHEDULED not in (func.attrs or {}):
            scheduled = exact_calls(_schedule(func, target, var.name_hint))
            mod[var] = scheduled.with_attr(SCHEDULED, "fallback")
    return mod


def legalise_scans(mod: IRModule) -> IRModule:
    """Cumulative sums and products become reductions, each element's over all before it.

    TVM's own kernel of them reads shared memory that another thread writes, with no barrier
    between. This one does half the square of the axis' length in additions, on all threads.
    """
    from tvm import te, tirx
    from tvm.relax import transform as rt

    def scan(builder: Any, call: Any) -> Any:
        product, attrs = call.op.name == "relax.cumprod", call.attrs
        reducer = te.comm_reducer(
            (lambda a, b: a * b) if product else (lambda a, b: a + b),
            lambda dtype: tirx.const(int(product), dtype),
        )

        def total(x: Any) -> Any:
            shape, axis = list(x.shape), attrs.axis
            flat = axis is None
            at = 0 if flat else int(axis) % len(shape)
            length = math.prod(map(int, shape)) if flat else shape[at]
            step = te.reduce_axis((0, length), name="step")
            dtype = str(attrs.dtype) if attrs.dtype else x.dtype

            def element(*index: Any) -> Any:
                place = [*index[:at], step, *index[at + 1 :]]
                if flat:
                    place = [*_unravel(step, [int(d) for d in shape])]
                before = step < index[at] if attrs.exclusive else step <= index[at]
                value = tirx.Select(
                    before, x(*place).astype(dtype), tirx.const(int(product), dtype)
                )
                return reducer(value, axis=[step])

            out = [length] if flat else shape
            return te.compute(out, element, name="scan")

        return builder.call_te(total, call.args[0])

    rest = ["relax.sort", "relax.argsort", "relax.topk"]  # DispatchSortScan wants to see these
    return rt.LegalizeOps({"relax.cumsum": scan, "relax.cumprod": scan}, rest)(mod)


def _unravel(flat: Any, shape: list[int]) -> list[Any]:
    """The index of a point in `shape` of its number."""
    index = []
    for size in reversed(shape):
        index.append(flat % size)
        flat = flat // size
    return index[::-1]


def exact_calls(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with its calls of mathematics made ones of CUDA's library, in float32."""
    import tvm_ffi
    from tvm import ir

    def exact(call: Any) -> Any:
        function = FUNCTIONS.get(getattr(call.op, "name", ""))
        dtype = str(call.ty.dtype)
        if function is None or dtype not in ("float32", "float16"):
            return call
        return function(*(a.astype("float32") for a in call.args)).astype(dtype)

    body = tvm_ffi.structural_map(func.body, (ir.Call, exact))
    return func if body.same_as(func.body) else func.with_body(body)


def _schedule(func: tirx.PrimFunc, target: Target, kernel: str) -> tirx.PrimFunc:
    from tvm import s_tir

    if _has_threads(func.body):
        return func  # TVM's own kernels: sorting, scanning
    sch = s_tir.Schedule(func, error_render_level="none")
    try:
        sch.get_sblock("root")
    except s_tir.ScheduleError as error:  # loops written by hand
        raise ModelError(_REFUSED.format(kernel)) from error
    inline_cheap(sch)
    best: tirx.PrimFunc = sch.mod["main"]
    names = [sch.get(b).name_hint for b in sch.get_child_blocks(sch.get_sblock("root"))]
    for name in names:
        for attempt in (_share, _share_plainly, _one_thread):
            # From a copy of what is known to be right, so that a refusal leaves nothing half done.
            sch = s_tir.Schedule(best, error_render_level="none")
            try:
                attempt(sch, sch.get_sblock(name), target)
            except s_tir.ScheduleError:
                continue
            best = sch.mod["main"]
            break
        else:
            raise ModelError(_REFUSED.format(kernel))
    return best


def _has_threads(stmt: Any) -> bool:
    """Whether a statement launches threads by itself."""
    import tvm_ffi
    from tvm import tirx

    found = []

    def launches(attr: Any) -> None:
        found.append(attr.attr_key == "thread_extent")

    def bound(loop: Any) -> None:
        found.append(loop.kind == tirx.ForKind.THREAD_BINDING)

    tvm_ffi.structural_walk(stmt, [(tirx.AttrStmt, launches), (tirx.For, bound)])
    return any(found)


def _loops(sch: Any, block: Any) -> tuple[list[Any], list[Any], int]:
    """A block's spatial loops, its other loops, and the steps of the latter.

    Raises:
        ScheduleError: loops and axes do not correspond.
    """
    from tvm import s_tir

    loops = sch.get_loops(block)
    kinds = [iv.iter_type for iv in sch.get(block).iter_vars]
    if len(loops) != len(kinds):
        raise s_tir.ScheduleError("a block whose loops are not its axes")
    spatial = [lp for lp, k in zip(loops, kinds, strict=True) if k == _SPATIAL]
    reduce = [lp for lp, k in zip(loops, kinds, strict=True) if k != _SPATIAL]
    return spatial, reduce, _extent(sch, reduce)


def _extent(sch: Any, loops: list[Any]) -> int:
    return math.prod(int(sch.get(lp).extent) for lp in loops)


def _share(sch: Any, block: Any, target: Target) -> None:
    spatial, reduce, steps = _loops(sch, block)
    if not reduce and spatial:
        _points(sch, block, spatial)
    elif steps >= _LONG and _extent(sch, spatial) < _MANY:
        _across(sch, block, spatial, reduce, target)
    else:
        _share_plainly(sch, block, target)


def _points(sch: Any, block: Any, spatial: list[Any]) -> None:
    """2."""
    body = sch.get(block)
    trailing = in_order(body)
    buffers = [r.source for r in (*body.reads, *body.writes)]
    inner = spatial[-trailing:]
    vectors = not calls_of(body.body) and all(str(b.dtype) == "float32" for b in buffers)
    if not vectors or _extent(sch, inner) % 4:
        bind_flat(sch, spatial, _THREADS)
        return
    rest, vector = sch.split(sch.fuse(*inner), [None, 4])
    bind_flat(sch, [*spatial[:-trailing], rest], _THREADS)
    sch.vectorize(vector)


def _across(sch: Any, block: Any, spatial: list[Any], reduce: list[Any], target: Target) -> None:
    """4."""
    warp = gpu_of(target).warp
    alone = reduces_last_axis(sch.get(block)) or not spatial
    if not spatial:
        spatial = [sch.add_unit_loop(reduce[0])]
    sch.reorder(*spatial, *reduce)
    result, steps = sch.fuse(*spatial), sch.fuse(*reduce)
    length = int(sch.get(steps).extent)
    if alone:
        _, share = sch.split(steps, [None, min(2 * _THREADS, -(-length // warp) * warp)])
        sch.bind(result, "blockIdx.x")
        sch.bind(share, "threadIdx.x")
        return
    outer, near = sch.split(result, [None, warp])
    _, share = sch.split(steps, [None, min(8, length)])
    sch.bind(outer, "blockIdx.x")
    sch.bind(near, "threadIdx.x")
    sch.bind(share, "threadIdx.y")


def _share_plainly(sch: Any, block: Any, target: Target) -> None:
    """3.: one result a thread."""
    spatial, reduce, _ = _loops(sch, block)
    if not spatial:
        spatial = [sch.add_unit_loop(reduce[0] if reduce else block)]
    sch.reorder(*spatial, *reduce)
    if not reduce or len(sch.get(block).writes) > 1:  # an argmax has no one result to keep
        bind_flat(sch, spatial, _THREADS)
        return
    store = sch.cache_write(block, 0, "local")  # the sum stays in a register
    _, thread = bind_flat(sch, sch.get_loops(store), _THREADS)
    sch.compute_at(block, thread, preserve_unit_loops=True)


def _one_thread(sch: Any, block: Any, target: Target) -> None:
    """6.: what is done in an order of its own."""
    loops = sch.get_loops(block)
    at = loops[0] if loops else block
    thread = sch.add_unit_loop(at)
    sch.bind(sch.add_unit_loop(thread), "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
