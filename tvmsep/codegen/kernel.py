"""A workload and a config become one scheduled PrimFunc."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmsep.codegen.limits import check_limits
from tvmsep.contracts import Config, Target, Workload
from tvmsep.schedules import TEMPLATES

if TYPE_CHECKING:
    from tvm import tirx


def unscheduled(w: Workload, t: Target, template: str, c: Config) -> tirx.PrimFunc:
    """The maths alone, with the parameters that `kernel` has: for another's scheduler."""
    from tvm import s_tir

    sch = s_tir.Schedule(TEMPLATES[template].compute(w, t, c), error_render_level="none")
    if len(sch.mod["main"].params[-1].ty.shape) > len(
        w.out_shape
    ):  # rows and columns, which `apply` makes one
        sch.transform_layout(
            sch.get_sblock("out"), ("write", 0),
            lambda n, c, h, x, *i: (n, c, h * w.ow + x, *i),
        )  # fmt: skip
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
    if t.gpu is not None:
        check_limits(sch.mod, t.gpu)
    func: tirx.PrimFunc = sch.mod["main"].with_attr("global_symbol", name)
    return func.with_attr("tirx.noalias", True)
