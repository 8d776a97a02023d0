"""The schedules: one file a template, one line here. Tests run over this dictionary."""

from __future__ import annotations

from tvmsep.contracts import Target, Template, Workload
from tvmsep.schedules import (
    boundary,
    channels,
    conv,
    dense,
    depthwise,
    eltwise,
    fused,
    pointwise,
    pool,
    resample,
)

TEMPLATES: dict[str, Template] = {
    t.name: t
    for t in (
        pointwise.TEMPLATE,
        depthwise.TEMPLATE,
        fused.TEMPLATE,
        conv.TEMPLATE,
        dense.TEMPLATE,
        pool.TEMPLATE,
        eltwise.TEMPLATE,
        resample.TEMPLATE,
        channels.TEMPLATE,
        boundary.PACK,
        boundary.UNPACK,
    )
}


def template_for(w: Workload, t: Target) -> Template | None:
    """The first template that accepts the workload, or None."""
    return next((tpl for tpl in TEMPLATES.values() if tpl.accepts(w, t)), None)
