"""A workload and a config become one scheduled PrimFunc."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvmsep.codegen.limits import check_limits
from tvmsep.codegen.reference import input_shapes
from tvmsep.contracts import Config, Target, Workload
from tvmsep.schedules import TEMPLATES

if TYPE_CHECKING:
    from tvm import s_tir, tirx


def unscheduled(w: Workload, t: Target, template: str, c: Config) -> tirx.PrimFunc:
    """The maths alone, with the parameters that `kernel` has: for another's scheduler."""
    from tvm import s_tir

    if t.gpu is None:  # whole tiles may hold more pixels than there are
        c = Config({knob: value for knob, value in c.items() if knob not in ("tile_p", "tile_w")})
    sch = s_tir.Schedule(TEMPLATES[template].compute(w, t, c), error_render_level="none")
    if len(sch.mod["main"].params[-1].ty.shape) > len(
        w.out_shape
    ):  # rows and columns, which `apply` makes one
        sch.transform_layout(
            sch.get_sblock("out"), ("write", 0),
            lambda n, c, h, x, *i: (n, c, h * w.ow + x, *i),
        )  # fmt: skip
    _lay_out(sch, w)
    func: tirx.PrimFunc = sch.mod["main"]
    return func.with_attr("global_symbol", "main").with_attr("tirx.noalias", True)


def kernel(w: Workload, t: Target, template: str, c: Config, name: str = "main") -> tirx.PrimFunc:
    """The scheduled kernel, its global symbol `name`.

    Parameters are the activation, weights, bias and residual (those that the workload has), then
    the output, all in the packed layouts that the template's `compute` documents.

    Raises:
        DeviceCodeRefused: it is for a GPU, and needs more than that has. TVM's errors pass through.
    """
    from tvm import s_tir

    tpl = TEMPLATES[template]
    sch = s_tir.Schedule(tpl.compute(w, t, c), error_render_level="none")
    tpl.apply(sch, w, t, c)
    _lay_out(sch, w)
    if t.gpu is not None:
        check_limits(sch.mod, t.gpu)
    func: tirx.PrimFunc = sch.mod["main"].with_attr("global_symbol", name)
    return func.with_attr("tirx.noalias", True)


def _lay_out(sch: s_tir.Schedule, w: Workload) -> None:
    """Move activations from vectors, on which templates compute, to blocks that hold several."""
    runs = {"x": w.in_run, "y": w.in_run, "scale": w.in_run}
    runs |= {"residual": w.out_run, "out": w.out_run}
    names = [*(name for name, _ in input_shapes(w)), "out"]
    for position, name in enumerate(names):
        if (run := runs.get(name, 1)) > 1:
            buffer = sch.mod["main"].params[position]
            sch.transform_layout(*_user(sch, buffer), _together(run, int(buffer.ty.shape[-1])))


def _together(run: int, lanes: int) -> Callable[..., tuple[Any, ...]]:
    return lambda n, c, p, i: (n, c // run, p, c % run * lanes + i)


def _user(sch: s_tir.Schedule, buffer: Any) -> tuple[Any, tuple[str, int]]:
    """A block that accesses a buffer, and which of its reads or writes does."""
    return next(
        (block, (kind, k))
        for block in sch.get_child_blocks(sch.get_sblock("root"))
        for kind in ("read", "write")
        for k, region in enumerate(getattr(sch.get(block), f"{kind}s"))
        if region.source.same_as(buffer)
    )
