"""The schedules for CUDA devices: one file a template, one line here; the maths are the CPU's."""

from __future__ import annotations

from tvmsep.contracts import Template
from tvmsep.schedules.cuda import (
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
        depthwise.TEMPLATE,
        pointwise.TEMPLATE,
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
