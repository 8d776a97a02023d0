"""The schedules for CUDA devices: one file a template, one line here; the maths are the CPU's."""

from __future__ import annotations

from tvmsep.contracts import Template

TEMPLATES: dict[str, Template] = {}
