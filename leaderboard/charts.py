"""Charts as Vega-Lite specifications: their common look, axes, labels and tooltips.

The text takes the colour of the page: `INK` stands for it until a chart is shown. Names of fields are fixed; texts of
records are data or titles, never part of an expression.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from imagefolder.errors import shortened
from leaderboard.cells import number

INK = "#010203"
POINT = "#3b82c4"  # like the other colours, legible on white and on black
CONTEXT = "#8b949e"
HIGHLIGHT = "#d97706"
COLOURS = (POINT, HIGHLIGHT, "#2f9e62", "#b4559e", "#8a7a2f", "#c2413b", "#5b8f9c", "#7a6fd0")
WIDTH, HEIGHT = 640, 360
PANEL_WIDTH, PANEL_HEIGHT = 280, 210
LONGEST_LABEL = 40  # characters of a name in a chart
LINE, LETTER, GAP = 14.0, 6.2, 9.0  # height of a label, width of a letter, distance from its point, in pixels
WIDE_RANGE = 20  # a larger factor between values makes an axis logarithmic
PLAIN = "format(datum.value, '~g')"  # the text of a number at an axis
LEAST_WIDTH = 480  # in a narrower page, labels of points would cover each other

STEPS = (0.0, -1.0, 1.0, -2.0, 2.0)  # lines that a label may stand above or below its point

Values = dict[str, Any]
"""A part of a specification, or one row of its data"""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels"""

CONFIG: Values = {
    "aria": False,  # the picture and its description stand for the chart
    "background": "transparent",
    "font": "Liberation Sans, Arial, Helvetica, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "labelOpacity": 0.8,
        "labelFontSize": 11,
        "labelLimit": 360,
        "titleColor": INK,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "gridColor": INK,
        "gridOpacity": 0.1,
        "domainColor": INK,
        "domainOpacity": 0.4,
        "tickColor": INK,
        "tickOpacity": 0.4,
    },
    "legend": {
        "orient": "bottom",
        "labelColor": INK,
        "labelFontSize": 12,
        "labelLimit": 300,
        "titleColor": INK,
        "titleFontWeight": "normal",
        "symbolOpacity": 1,
        "columns": 3,
    },
    "title": {"color": INK, "fontSize": 13, "fontWeight": "normal", "anchor": "start", "offset": 10, "limit": 420},
    "text": {"color": INK, "fontSize": 11},
    "range": {"category": list(COLOURS)},
}


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification with its title and what it shows, in one sentence for those who do not see it."""

    title: str
    description: str
    spec: Values


@dataclass(frozen=True)
class Range:
    """What an axis spans."""

    low: float
    high: float
    is_logarithmic: bool = False

    @classmethod
    def around(cls, values: Iterable[float], *, margin: float = 0.08, is_logarithmic: bool | None = None) -> Range:
        """The range of the values with a margin; logarithmic if they span more than a factor of `WIDE_RANGE`."""
        known = list(values)
        low, high = min(known), max(known)
        if is_logarithmic is None:
            is_logarithmic = high > WIDE_RANGE * low
        if is_logarithmic and low > 0:
            factor = max(high / low, 1.5) ** margin
            return cls(low / factor, high * factor, True)
        pad = margin * (high - low) or abs(low) / 10 or 1.0
        return cls(low - pad, high + pad)

    def share(self, value: float) -> float:
        """Where a value lies between the ends, from 0 to 1."""
        low, high, at = map(math.log, (self.low, self.high, value)) if self.is_logarithmic else (*self.ends, value)
        return (at - low) / (high - low)

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high

    def axis(self, field: str, title: str, **axis: Any) -> Values:
        """The encoding of a position along this range."""
        scale = {"type": "log"} if self.is_logarithmic else {"type": "linear", "zero": False}
        # Of a logarithmic axis, the default leaves out labels that would be too close; of others it has too many digits
        texts: Values = {"format": "~g"} if self.is_logarithmic else {"labelExpr": PLAIN}
        ticks = {"labelExpr": PLAIN, "labelOverlap": False} if "values" in axis else {**texts, "tickCount": 7}
        return {
            "field": field,
            "type": "quantitative",
            "scale": {**scale, "domain": list(self.ends), "nice": False},
            "axis": {"title": title, **ticks, **axis},
        }


def make_chart(title: str, description: str, views: Sequence[Values], *, columns: int = 2) -> Chart:
    """A chart of one view, or of several beside and below each other."""
    if len(views) == 1:
        return Chart(title, description, {"width": WIDTH, "height": HEIGHT, **views[0], "config": CONFIG})
    panels = [{"width": PANEL_WIDTH, "height": PANEL_HEIGHT, **view} for view in views]
    return Chart(title, description, {"concat": panels, "columns": columns, "spacing": 30, "config": CONFIG})


def data(values: Iterable[Values]) -> Values:
    return {"values": list(values)}


def direction(higher_is_better: bool) -> str:
    return "↑ higher is better" if higher_is_better else "↓ lower is better"


def tooltip(**titles: str) -> list[Values]:
    """The fields that are shown beside the pointer, with what they are called."""
    return [{"field": field, "type": "nominal", "title": title} for field, title in titles.items()]


MEASURED_TOOLTIP = tooltip(row="row", shown="value", spread="spread", n="images", seeds="seeds")


def zoom(name: str = "zoom") -> Values:
    """Dragging moves the axes, the wheel zooms while Ctrl is held (alone, it scrolls the page)."""
    select = {"type": "interval", "zoom": "wheel![event.ctrlKey]"}
    return {"name": name, "select": select, "bind": "scales"}


def short_name(text: str, longest: int = LONGEST_LABEL) -> str:
    """A name as a chart shows it."""
    return shortened(text, longest)


def distinct(names: Iterable[str], longest: int = LONGEST_LABEL) -> list[str]:
    """Names as charts show them, those that read the same with numbers: equal ones would share a place."""
    found: dict[str, None] = {}
    for text in (short_name(full, longest) for full in names):
        count, unused = 1, text
        while unused in found:
            count, unused = count + 1, f"{text} ({count + 1})"
        found[unused] = None
    return list(found)


def measured(frame: pd.DataFrame, label: str, rows: list[str]) -> list[Values | None]:
    """A metric of every row as chart data: mean, ends of the error bar (over seeds), and texts; None without it.

    Args:
        frame: as `measured_frame` makes it.
        label: of the metric.
        rows: labels of the rows.
    """
    found = []
    parts = [frame[f"{label} {part}"] for part in ("sd", "seeds", "low", "high", "n_real", "n_generated")]
    for row, seeds, mean, sd, count, low, high, real, made in zip(
        rows, frame["seeds"], frame[label], *parts, strict=True
    ):
        if math.isnan(mean):
            found.append(None)
            continue
        spread = "one seed"
        if count > 1:
            spread = f"± {number(sd, mean)} (standard deviation over {count} seeds)"
        elif not math.isnan(low):
            spread = f"{number(low, mean)} to {number(high, mean)} over images, one seed"
        error = 0.0 if math.isnan(sd) else sd
        found.append(
            {
                "row": short_name(row),
                "value": mean,
                "low": mean - error,
                "high": mean + error,
                "shown": number(mean),
                "spread": spread,
                "n": f"{made:,.0f}" + (f" against {real:,.0f}" if real else ""),
                "seeds": seeds,
            }
        )
    return found


def error_bars(values: list[Values], x: Values, y: Values, colour: str = INK) -> Values:
    """Whiskers from `low` to `high`, along the vertical axis."""
    return {
        "data": data(value for value in values if value["low"] < value["high"]),
        "mark": {"type": "rule", "color": colour, "opacity": 0.6, "strokeWidth": 1.5, "clip": True},
        "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
    }


def labels(
    values: list[Values],
    x: Values,
    y: Values,
    ranges: tuple[Range, Range],
    size: tuple[float, float],
    *,
    among: Sequence[Values] = (),
    alone: bool,
) -> Values:
    """Names beside points, as a layer: each where it covers neither another name nor a named point, and no other mark
    if that is possible; left out where there is no room.

    Args:
        values: with `label`, and the fields of `x` and `y`.
        x, y: encodings of the axes.
        ranges: of both axes.
        size: of the view in pixels.
        among: the other points and, if they have `low` and `high`, error bars.
        alone: it is the only view of its chart, which shrinks with the page.
    """

    def box(value: Values, low: float, high: float) -> Box:
        left = ranges[0].share(value[x["field"]]) * size[0]
        return left - 5, (1 - ranges[1].share(high)) * size[1] - 5, left + 5, (1 - ranges[1].share(low)) * size[1] + 5

    own = [box(value, value[y["field"]], value[y["field"]]) for value in values]
    others = [box(value, *(value.get(end, value[y["field"]]) for end in ("low", "high"))) for value in among]
    places = _places(own, [value["label"] for value in values], others, size)
    placed = [
        value | {"dx": place[0], "dy": place[1], "align": place[2]}
        for value, place in zip(values, places, strict=True)
        if place
    ]
    mark: Values = {"type": "text", "baseline": "middle", "clip": True}
    mark |= {field: {"expr": f"datum.{field}"} for field in ("dx", "dy", "align")}
    if alone:
        mark["opacity"] = {"expr": f"width < {LEAST_WIDTH} ? 0 : 1"}
    encoding = {"x": x, "y": y, "text": {"field": "label", "type": "nominal"}}
    return {"data": data(placed), "mark": mark, "encoding": encoding}


def _places(
    points: list[Box], texts: list[str], others: list[Box], size: tuple[float, float]
) -> list[tuple[float, float, str] | None]:
    """Where the names of points stand: offsets and alignment; None if there is no room."""
    taken = list(points)
    found: list[tuple[float, float, str] | None] = []
    for point, text in zip(points, texts, strict=True):
        (left, top, right, bottom), width = point, LETTER * len(text)
        x, y = (left + right) / 2, (top + bottom) / 2
        place = None
        for avoided, step, side in itertools.product((others, []), STEPS, (1, -1)):
            start = x + GAP if side > 0 else x - GAP - width
            box = (start, y + LINE * (step - 0.5), start + width, y + LINE * (step + 0.5))
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= size[0] and box[3] <= size[1]
            if inside and not any(_overlap(box, other) for other in itertools.chain(taken, avoided)):
                place = side * GAP, LINE * step, "left" if side > 0 else "right"
                taken.append(box)
                break
        found.append(place)
    return found


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
