"""The schedules for CUDA devices: one file a template, one line here; the maths are the CPU's."""

from __future__ import annotations

from tvmsep.contracts import Template
from tvmsep.schedules.cuda import depthwise

TEMPLATES: dict[str, Template] = {
    t.name: t
    for t in (
        depthwise.TEMPLATE,
    )
}
