"""Charts of a measured table: distances against sequence length, the steps of the ablation, the use of codebooks."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from leaderboard.cells import number
from leaderboard.charts import (
    COLOURS,
    HEIGHT,
    HIGHLIGHT,
    INK,
    MEASURED_TOOLTIP,
    PANEL_HEIGHT,
    PANEL_WIDTH,
    POINT,
    WIDTH,
    Chart,
    Range,
    Values,
    data,
    direction,
    distinct,
    error_bars,
    labels,
    make_chart,
    measured,
    short_name,
    tooltip,
    zoom,
)  # fmt: skip
from leaderboard.record import Record
from leaderboard.reported import COUNTERPARTS, published_column, reported_text
from leaderboard.sampling_view import SWEEP
from leaderboard.tables import MetricKey

PLOTTED = ("gFID",)  # against sequence length
# The rows of token_length differ only in length; those of the sweep have curves of their own
PLOTTED_BY_TABLE = {"token_length": ("rFID", "gFID", "clean-rFID"), SWEEP: ()}
ABLATION = "ablation"
STEPPED = ("rFID", "gFID")  # along the steps of the ablation
POSITIONS = "positions that the generator predicts per image"
LARGEST_CELL = 44  # width of a scale in a heat map, in pixels
BRANCH = 26  # height of a branch


def length_charts(title: str, frame: pd.DataFrame, metrics: dict[MetricKey, str], rows: list[str]) -> list[Chart]:
    """Fréchet distances against sequence length, a panel for each; none if all rows are of the same length.

    Args:
        title: of the table.
        frame, metrics: its content and the labels of its metrics.
        rows: labels of the rows.
    """
    wanted = PLOTTED_BY_TABLE.get(frame["table"].iloc[0], PLOTTED)
    shown = {key: label for key, label in metrics.items() if key[0].metric in wanted}
    found = {}
    for key, label in shown.items():
        values = zip(measured(frame, label, rows), frame["positions"], strict=True)
        points = [value | {"positions": at} for value, at in values if value and not math.isnan(at)]
        if len({point["positions"] for point in points}) > 1:
            found[key] = points
    size = (WIDTH, HEIGHT) if len(found) == 1 else (PANEL_WIDTH, PANEL_HEIGHT)
    views = []
    for number_, (key, points) in enumerate(found.items()):
        x_range = Range.around((point["positions"] for point in points), margin=0.12, is_logarithmic=False)
        y_range = Range.around((end for point in points for end in (point["low"], point["high"])), margin=0.12)
        x = x_range.axis("positions", POSITIONS, tickMinStep=1)
        y = y_range.axis("value", f"{short_name(metrics[key])}, {direction(key[0].higher_is_better)}")
        named = [point | {"label": point["row"]} for point in points]
        views.append(
            {
                "layer": [
                    error_bars(points, x, y),
                    {
                        "data": data(points),
                        "params": [zoom(f"zoom{number_}")],
                        "mark": {"type": "circle", "size": 70, "color": POINT, "opacity": 1, "clip": True},
                        "encoding": {
                            "x": x,
                            "y": y,
                            "tooltip": [*MEASURED_TOOLTIP, *tooltip(positions="positions")],
                        },
                    },
                    labels(named, x, y, (x_range, y_range), size, among=points, alone=len(found) == 1),
                ]
            }
        )
    if not views:
        return []
    names = ", ".join(metrics[key] for key in found)
    text = f"{names} of every row against the number of positions: the mean, with the standard deviation over seeds."
    return [make_chart(f"{title}: {names} against sequence length", text, views)]


def ablation_charts(
    title: str,
    frame: pd.DataFrame,
    metrics: dict[MetricKey, str],
    rows: list[str],
    groups: list[list[Record]],
    reported: pd.DataFrame,
) -> list[Chart]:
    """The ablation step by step, rFID and gFID, measured beside reported; none for other tables.

    The two share a panel if the protocol is the published one, and no axis otherwise.
    """
    if groups[0][0].table != ABLATION:
        return []
    steps, views, all_measured = distinct(rows), [], []
    systems = [group[0].reported_system for group in groups]
    for metric in STEPPED:
        texts = [reported_text(reported, system, COUNTERPARTS[metric]) for system in systems]
        paper = [
            _of_paper(step, system, text) for step, system, text in zip(steps, systems, texts, strict=True) if text
        ]
        key = _first(metrics, metric, groups[0][0])
        ours = []
        if key is not None:
            values = zip(steps, measured(frame, metrics[key], rows), strict=True)
            ours = [value | {"step": step, "of": "measured here"} for step, value in values if value]
        if len(ours) < 2:
            continue
        all_measured.append(metric)
        assert key is not None
        if published_column(key[0], groups[0][0].dataset):
            views.append(
                _steps(ours + paper, steps, f"{short_name(metrics[key])}, ↓ lower is better", "measured and reported")
            )
            continue
        views.append(_steps(ours, steps, f"{short_name(metrics[key])}, ↓ lower is better", "measured here"))
        if len(paper) > 1:
            views.append(
                _steps(paper, steps, f"{metric}, ↓ lower is better", "reported by the paper: ImageNet 256×256")
            )
    if not views:
        return []
    names = " and ".join(all_measured)
    text = (
        f"{names} after every step of the ablation: measured here, and as the paper reports them, on axes of their own."
    )
    return [make_chart(f"{title}: the steps, measured and reported", text, views)]


def _of_paper(step: str, system: str | None, text: str) -> Values:
    value = float(text)
    ends = {"value": value, "low": value, "high": value, "shown": text}
    words = {
        "row": short_name(system or ""),
        "spread": "not reported",
        "n": "ImageNet 256×256",
        "seeds": "not reported",
    }
    return {"step": step, "of": "paper", **ends, **words}


def _first(metrics: dict[MetricKey, str], metric: str, record: Record) -> MetricKey | None:
    """The kind of value that stands for a metric: with the published protocol if there is one, else the first."""
    found = [key for key in metrics if key[0].metric == metric]
    published = [key for key in found if published_column(key[0], record.dataset)]
    return next(iter(published + found), None)


def _steps(values: list[Values], steps: list[str], title: str, heading: str) -> Values:
    y_range = Range.around((end for value in values for end in (value["low"], value["high"])), margin=0.15)
    x: Values = {
        "field": "step",
        "type": "ordinal",
        "sort": steps,
        "scale": {"domain": steps},
        "axis": {"title": None, "labelAngle": -35, "labelLimit": 190, "grid": False},
    }
    y = y_range.axis("value", title)
    colour = {"field": "of", "type": "nominal", "title": None,
              "scale": {"domain": ["measured here", "paper"], "range": [POINT, HIGHLIGHT]}}  # fmt: skip
    line = {"type": "line", "interpolate": "step", "strokeWidth": 2, "point": {"size": 45, "filled": True}}
    return {
        "title": heading,
        "width": PANEL_WIDTH + 40,
        "layer": [
            error_bars(values, x, y),
            {
                "data": data(values),
                "mark": line,
                "encoding": {"x": x, "y": y, "color": colour, "tooltip": MEASURED_TOOLTIP},
            },
            {
                "data": data(values),
                "mark": {"type": "text", "dy": -11, "fontSize": 10},
                "encoding": {"x": x, "y": {**y, "field": "high"}, "text": {"field": "shown", "type": "nominal"}},
            },
        ],
    }


def codebook_charts(title: str, rows: list[str], usages: list[pd.DataFrame]) -> list[Chart]:
    """The share of used codes per branch and scale, a heat map per row; rows with equal values (of the same tokenizer)
    share one.

    Args:
        title: of the table.
        rows: labels of the rows.
        usages: of every row, as `codebook_frame` makes them.
    """
    found: dict[str, tuple[list[str], pd.DataFrame]] = {}
    for row, usage in zip(rows, usages, strict=True):
        if len(usage):
            found.setdefault(usage.to_csv(), ([], usage))[0].append(row)
    if not found:
        return []
    views = []
    for names, usage in found.values():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        views.append(_heat(f"{short_name(names[0], 40 - len(more))}{more}", usage, names))
    text = "Share of the codes of every branch and scale that the test images hit at least once; means over seeds."
    return [make_chart(f"{title}: use of the codebooks", text, views, columns=3)]


def _heat(heading: str, usage: pd.DataFrame, names: list[str]) -> Values:
    places: list[dict[str, Any]] = [
        {str(column): value for column, value in row.items()} for row in usage.to_dict("records")
    ]
    columns = sorted({(row["position"], row["scale"]) for row in places})
    scales = distinct(f"{scale}×{scale}" for _, scale in columns)
    values = [
        {
            "scale": scales[columns.index((row["position"], row["scale"]))],
            "branch": f"{row['branch']:.0f}",
            "used": row["used"],
            "percent": f"{100 * row['used']:.0f}%",
            "perplexity": number(row["perplexity"]),
            "rows": ", ".join(map(short_name, names[:6])) + (", ..." if len(names) > 6 else ""),
        }
        for row in places
    ]
    branches = sorted({value["branch"] for value in values}, key=int)
    x = {"field": "scale", "type": "ordinal", "sort": scales,
         "axis": {"title": "scale (tokens)", "labelAngle": 0, "grid": False}}  # fmt: skip
    y = {"field": "branch", "type": "ordinal", "sort": branches, "axis": {"title": "branch", "grid": False}}
    strength = {"field": "used", "type": "quantitative", "legend": None,
                "scale": {"domain": [0, 1], "range": [0.06, 0.6], "clamp": True}}  # fmt: skip
    fields = tooltip(rows="row", scale="scale", branch="branch", percent="codes used", perplexity="perplexity")
    return {
        "title": {"text": heading, "limit": 260},
        "width": max(120, LARGEST_CELL * len(scales)),
        "height": BRANCH * len(branches),
        "data": data(values),
        "layer": [
            {
                "mark": {"type": "rect", "color": COLOURS[0], "stroke": INK, "strokeOpacity": 0.12},
                "encoding": {"x": x, "y": y, "fillOpacity": strength, "tooltip": fields},
            },
            {
                "mark": {"type": "text", "fontSize": 10},
                "encoding": {"x": x, "y": y, "text": {"field": "percent", "type": "nominal"}},
            },
        ],
    }
