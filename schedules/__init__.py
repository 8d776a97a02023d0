"""The schedules: one file a template, one line here. Tests run over this dictionary."""

from __future__ import annotations

from tvmsep.contracts import Target, Template, Workload
from tvmsep.schedules import (
    boundary,
    channels,
    conv,
    cuda,
    dense,
    depthwise,
    eltwise,
    fused,
    pointwise,
    pool,
    resample,
)
from tvmsep.schedules.vectors import InVectors

_TEMPLATES: tuple[Template, ...] = (
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
CPU: dict[str, Template] = {t.name: InVectors(t) for t in _TEMPLATES}

CUDA: dict[str, Template] = cuda.TEMPLATES

TEMPLATES: dict[str, Template] = {**CPU, **CUDA}


def template_for(w: Workload, t: Target) -> Template | None:
    """The first template that accepts the workload, or None."""
    group = CUDA if t.gpu is not None else CPU
    return next((tpl for tpl in group.values() if tpl.accepts(w, t)), None)
