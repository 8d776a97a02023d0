"""A comparison as one HTML file that needs nothing else: verdicts, plots, tables behind them."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import msgspec

from tvmsep.compare import Comparison, PairRow
from tvmsep.contracts.words import counted


def comparison_page(found: Comparison, command: str) -> str:
    """The page.

    Args:
        found: what to show.
        command: what made it, printed on it.

    Raises:
        InputError: a package is missing.
    """
    from tvmsep.report.html import check_extra, plotly

    check_extra()
    import jinja2

    home = resources.files("tvmsep.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"ms": lambda s: f"{1e3 * s:#.4g}", "verdict": _words}
    template = environment.from_string((home / "templates" / "comparison.html").read_text("utf-8"))
    first = found.entrants[0].name
    page: str = template.render(
        c=found,
        first=first,
        command=command,
        headlines=[p for p in found.pairs if p.a == first],
        plots=_script({"ratios": _ratios(found.pairs), "rounds": _rounds(found)}),
        json=_script(msgspec.to_builtins(found)),
        plotly=plotly()[0],
    )
    return page


def _script(value: Any) -> str:
    """JSON that can stand in a script element."""
    return json.dumps(value).replace("</", "<\\/").replace("<!--", "<\\!--")


def _words(pair: PairRow) -> str:
    if pair.verdict == "cant_tell":
        rounds = pair.more_rounds
        more = "" if rounds is None else f"; {counted('more round', rounds)} might tell"
        return f"can't tell{more}"
    return f"{pair.a} is {pair.verdict}"


def _ratios(pairs: tuple[PairRow, ...]) -> dict[str, Any]:
    """Each pair's ratio with its interval: left of 1 the first one is faster."""
    shown = [p for p in reversed(pairs) if p.low is not None]
    above = [(p.high or p.ratio) - p.ratio for p in shown]
    below = [p.ratio - (p.low or p.ratio) for p in shown]
    return {
        "data": [
            {
                "type": "scatter", "mode": "markers", "orientation": "h",
                "x": [p.ratio for p in shown],
                "y": [f"{p.a} / {p.b}, {counted('thread', p.threads)}" for p in shown],
                "error_x": {
                    "type": "data", "symmetric": False, "thickness": 2, "width": 5,
                    "color": "#8a8f98",
                    "array": above,
                    "arrayminus": below,
                },
                "marker": {"size": 10, "color": [_COLOUR[p.verdict] for p in shown],
                           "symbol": [_SYMBOL[p.verdict] for p in shown]},
                "hovertemplate": "%{y}: %{x:.4f}<extra></extra>",
            }
        ],
        "layout": {
            "height": 130 + 34 * len(shown),
            "xaxis": {"type": "log", "title": {"text": "ratio of times"},
                      "tickformat": ".3~r", "nticks": 6},
            "yaxis": {"automargin": True},
            "shapes": [{"type": "line", "x0": 1, "x1": 1, "y0": 0, "y1": 1, "yref": "paper",
                        "line": {"dash": "dot", "width": 1.5, "color": "#888"}}],
        },
    }  # fmt: skip


_COLOUR = {"faster": "#2a8f62", "slower": "#c8553d", "cant_tell": "#8a8f98"}
_SYMBOL = {"faster": "triangle-left", "slower": "triangle-right", "cant_tell": "circle"}
_LINES = ("#3b76c4", "#d98324", "#2a8f62", "#c8553d", "#8560b3", "#159aa5", "#a3762c", "#c05a96")
_DASHES = ("solid", "dot", "dash", "longdash")


def _rounds(found: Comparison) -> dict[str, Any]:
    """What each round said: a colour for an entrant, a dash for a thread count."""
    names = list(dict.fromkeys(r.name for r in found.entrants))
    counts = sorted({r.threads for r in found.entrants})
    return {
        "data": [
            {
                "type": "scatter", "mode": "lines+markers",
                "name": f"{r.name}, {counted('thread', r.threads)}",
                "x": list(range(1, len(r.rounds_s) + 1)), "y": [1e3 * s for s in r.rounds_s],
                "line": {"width": 1.5, "color": _LINES[names.index(r.name) % len(_LINES)],
                         "dash": _DASHES[counts.index(r.threads) % len(_DASHES)]},
                "hovertemplate": "round %{x}: %{y:.3f} ms<extra>%{fullData.name}</extra>",
            }
            for r in found.entrants
        ],
        "layout": {
            "height": 340 + 14 * len(found.entrants),
            "xaxis": {"title": {"text": "round"}, "dtick": max(1, found.rounds // 8)},
            "yaxis": {"type": "log", "title": {"text": "ms"}, "tickformat": ".3~r", "nticks": 6,
                      "automargin": True},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        },
    }  # fmt: skip
