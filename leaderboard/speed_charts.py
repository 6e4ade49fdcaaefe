"""Charts of speed: bars with quartiles, and lines along what grows."""

from __future__ import annotations

from dataclasses import dataclass

from leaderboard.charts import (
    HEIGHT,
    INK,
    PLAIN,
    POINT,
    Chart,
    Range,
    Values,
    data,
    distinct,
    make_chart,
    short_name,
    tooltip,
    zoom,
)  # fmt: skip

BAR = 24  # height of a bar with its margin, in pixels


@dataclass(frozen=True)
class Bar:
    """One horizontal bar with its quartiles, the text at its end, and how often it was measured."""

    label: str
    value: float
    low: float
    high: float
    text: str
    rounds: int


@dataclass(frozen=True)
class Line:
    """One line through (x, y) points."""

    label: str
    points: tuple[tuple[float, float], ...]


def bar_chart(title: str, description: str, bars: list[Bar], axis: str, unit: str = "") -> Chart:
    """Horizontal bars from zero, the first on top; whiskers are quartiles, the value is written at the end."""
    names = distinct((bar.label for bar in bars), 64)
    values = [
        {
            "label": label,
            "value": bar.value,
            "low": bar.low,
            "high": bar.high,
            "text": bar.text,
            "quartiles": f"{bar.low:.3g} to {bar.high:.3g}{unit}",
            "rounds": bar.rounds,
        }
        for label, bar in zip(names, bars, strict=True)
    ]
    highest = max(max(bar.value, bar.high) for bar in bars) or 1
    x: Values = {
        "field": "value",
        "type": "quantitative",
        "scale": {"domain": [0, highest * 1.02], "nice": False},
        "axis": {"title": axis, "labelExpr": PLAIN, "tickCount": 6},
    }
    y = {
        "field": "label",
        "type": "ordinal",
        "sort": names,
        "axis": {"title": None, "ticks": False, "grid": False},
    }
    fields = tooltip(label="case", text="median", quartiles="quartiles", rounds="rounds")
    ends = {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y}
    view = {
        "height": BAR * len(bars),
        "data": data(values),
        "layer": [
            {
                "mark": {"type": "bar", "color": POINT, "height": {"band": 0.75}},
                "encoding": {"x": x, "y": y, "tooltip": fields},
            },
            {"mark": {"type": "rule", "color": INK, "opacity": 0.8}, "encoding": ends},
            {
                "mark": {"type": "text", "align": "left", "dx": 5},
                "encoding": {"x": {**x, "field": "end"}, "y": y, "text": {"field": "text", "type": "nominal"}},
                "transform": [{"calculate": "max(datum.value, datum.high)", "as": "end"}],
            },
        ],
    }
    return make_chart(title, description, [view])


def growth_chart(title: str, description: str, lines: list[Line], axes: tuple[str, str], *, doubling: bool) -> Chart:
    """Lines with points; `doubling` spaces the powers of two evenly.

    The vertical axis starts at zero, or is logarithmic if the values span a large factor.
    """
    names = distinct(line.label for line in lines)
    values = [
        {"label": label, "x": x, "y": y, "at": f"{x:g}", "shown": f"{y:.3g}"}
        for label, line in zip(names, lines, strict=True)
        for x, y in line.points
    ]
    places = sorted({value["x"] for value in values})
    spaced = Range.around(places, margin=0.02, is_logarithmic=doubling and places[0] > 0)
    x = spaced.axis("x", short_name(axes[0]), values=places, grid=False)
    if spaced.is_logarithmic:
        x["scale"]["base"] = 2
    rising = Range.around(value["y"] for value in values)
    if not rising.is_logarithmic:
        rising = Range(0, 1.08 * max(value["y"] for value in values) or 1)
    y = rising.axis("y", axes[1])
    colour = {"field": "label", "type": "nominal", "title": None, "sort": names, "legend": {"columns": 2}}
    view = {
        "height": HEIGHT - 80,
        "layer": [
            {
                "data": data(values),
                "params": [
                    zoom(),
                    {"name": "lines", "select": {"type": "point", "fields": ["label"]}, "bind": "legend"},
                ],
                "mark": {"type": "line", "strokeWidth": 2, "clip": True, "point": {"size": 45, "filled": True}},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": colour,
                    "opacity": {"condition": {"param": "lines", "value": 1}, "value": 0.12},
                    "tooltip": tooltip(label="line", at=axes[0], shown=axes[1]),
                },
            }
        ],
    }
    return make_chart(title, description, [view])
