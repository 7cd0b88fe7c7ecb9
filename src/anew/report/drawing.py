"""What all charts of a report share: sizes, colours, axes, and the form that the page takes a chart in.

Colours of text and axes are the page's (``currentColor``), so that light and dark need no second drawing. Data come
from two data sets of the page, ``steps`` and ``validations`` (:mod:`anew.report.points`), or stand in the chart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from anew.report.run import Run

HEIGHT = 240
#: Engine and host: told apart by lightness too, and white text is readable on both.
SIDES = {"engine": "#2563a8", "host": "#a8480f"}
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        **dict.fromkeys(("labelColor", "titleColor", "domainColor", "tickColor", "gridColor"), "currentColor"),
        "gridOpacity": 0.15,
        "labelFontSize": 13,
        "titleFontSize": 13,
        "titleFontWeight": "normal",
        "labelFlush": False,
    },
    "legend": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "labelFontSize": 13,
        "orient": "top",
        "layout": {"top": {"direction": "vertical", "anchor": "start"}},
        "title": None,
        "columns": 2,
        "labelLimit": 260,
    },
    "line": {"strokeWidth": 1.8},
}
#: Quantities whose axis begins at 0.
FROM_ZERO = ("memory", "speed")
STEPS, VALIDATIONS = alt.NamedData("steps"), alt.NamedData("validations")


@dataclass(frozen=True)
class Chart:
    """A chart: its place on the page, heading, what it shows in a sentence, and the Vega-Lite specification."""

    id: str
    title: str
    about: str
    spec: dict[str, Any]


def draw(key: str, title: str, about: str, drawn: Any, height: int = HEIGHT) -> Chart:
    """Return a drawing as a chart with an accessible name: as wide as the page lets it be, `height` pixels high."""
    drawn = drawn.properties(width="container", height=height, description=f"{title}. {about}")
    spec = drawn.to_dict()
    spec.pop("config", None)  # altair's own; the page has one for all
    return Chart(f"chart-{key}", title, about, spec)


def step_axis() -> alt.X:
    """The steps, as whole numbers."""
    return alt.X("step:Q").title("step").axis(tickMinStep=1, tickCount=6)


def value(field: str, unit: str, form: str = "") -> alt.Y:
    """The axis of a quantity with its unit."""
    axis = alt.Axis(format=form, tickCount=6) if form else alt.Axis(tickCount=6)
    return alt.Y(f"{field}:Q").title(unit or None).axis(axis).scale(zero=field in FROM_ZERO)


def color_by_run(runs: Sequence[Run]) -> alt.Color:
    """A colour for each run; one run needs no legend."""
    color = alt.Color("run:N").sort(None)
    return color if len(runs) > 1 else color.legend(None)  # the page's heading names it
