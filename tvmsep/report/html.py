"""The page as one HTML file: templates, style, script and plotly.js, with nothing left to load."""

from __future__ import annotations

import base64
import gzip
import math
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tvmsep import __version__
from tvmsep.contracts import InputError
from tvmsep.report.page import Page

if TYPE_CHECKING:
    from jinja2 import Environment

    from tvmsep.report.story import TaskStory

TEMPLATES = Path(__file__).parent / "templates"
SECTIONS = (
    ("summary", "Summary"),
    ("network", "The network"),
    ("layers", "Layers"),
    ("roofline", "Roofline"),
    ("progress", "How tuning went"),
    ("failures", "Failures"),
    ("knobs", "Knobs"),
    ("machine", "Machine and commands"),
)


def check_extra() -> None:
    """See that what the page is made with is installed.

    Raises:
        InputError: it is not; says which extra brings it.
    """
    if find_spec("jinja2") is None:
        raise InputError("pages need the package jinja2: pip install 'tvmsep[report]'")


def render(page: Page, *, poll_s: int = 0) -> str:
    """The whole page.

    Args:
        page: what stands on it.
        poll_s: above 0, the page asks its server for news so often, in seconds.
    """
    library, version = plotly()
    code = base64.b64encode(gzip.compress(library.encode(), compresslevel=9, mtime=0)).decode()
    return _environment().get_template("report.html.j2").render(
        page=page, data=_data(page), live=poll_s, version=__version__, sections=SECTIONS,
        css=_text("report.css"), script=_text("report.js"), plotly=code, plotly_version=version,
    )  # fmt: skip


def render_main(page: Page) -> str:
    """The contents of the page's `main`, for a page that is there already."""
    return _environment().get_template("main.html.j2").render(page=page, data=_data(page))


@cache
def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


@cache
def plotly() -> tuple[str, str]:
    """plotly.js's cartesian bundle, and its version."""
    code = (TEMPLATES.parent / "plotly" / "plotly-cartesian.min.js").read_text(encoding="utf-8")
    version = re.search(r" v([\d.]+)\n", code[:400])
    assert version is not None
    return code, version.group(1)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(
        us=lambda v: _number(v, 1e6, 1), ms=lambda v: _number(v, 1e3, 3),
        giga=lambda v: _number(v, 1e-9, 1), times=lambda v: _number(v, 1, 2, "×"),
        percent=lambda v: _number(v, 100, 0, " %"), gain=_gain,
        finite=lambda v: v if math.isfinite(v) else None,
    )  # fmt: skip
    return made


def _number(value: float | None, scale: float, digits: int, unit: str = "") -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value * scale:.{digits}f}{unit}"


def _gain(task: TaskStory) -> float | None:
    return None if task.before_s is None else task.before_s / task.best_s


def _data(page: Page) -> str:
    """What the figures are drawn from, as JSON that cannot end its script element."""
    s = page.story
    value: dict[str, Any] = {
        "subtitle": page.subtitle,
        "threads": s.threads,
        "counted": page.counted,
        "networks": page.networks,
        "cut_s": page.cut_s,
        "tasks": {
            str(t.id): {
                "label": t.label, "threads": t.threads, "runs": t.runs, "best_s": t.best_s,
                "before_s": t.before_s, "config": t.config, "curve": t.curve,
            }
            for t in s.tasks
        },
        "order": [str(t.id) for t in s.tasks],
        "progress": [{"threads": n.threads, "curve": n.curve} for n in s.networks],
        "roof_points": page.roof_points,
        "roofs": page.roofs,
        "failures": s.failures,
        "knobs": s.knobs,
    }  # fmt: skip
    return msgspec.json.encode(_short(msgspec.to_builtins(value))).decode().replace("<", "\\u003c")


def _short(value: Any) -> Any:
    """Numbers of six digits: no figure shows more."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_short(v) for v in value]
    return value
