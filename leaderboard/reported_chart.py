"""The reported systems as charts: gFID against sequence length and parameters, ours among them where it may be."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import pandas as pd

from leaderboard.charts import (
    CONTEXT,
    HEIGHT,
    HIGHLIGHT,
    INK,
    POINT,
    WIDTH,
    Chart,
    Range,
    Values,
    data,
    labels,
    make_chart,
    measured,
    short_name,
    tooltip,
    zoom,
)  # fmt: skip
from leaderboard.record import Record
from leaderboard.reported import FAMILIES, PUBLISHED_N, printed, published_column
from leaderboard.tables import group_rows, group_tables, measured_frame, metric_labels

REPORTED, COUNTERPART, OURS = "reported", "reported, reproduced by a row here", "measured here"
AXES = {
    "tokens": ("sequence length", "positions that the generator predicts per image"),
    "params_m": ("parameters", "parameters of the generator, in millions"),
}
"""Column of the reported numbers -> title of its chart, of its axis"""


def reported_charts(reported: pd.DataFrame, records: list[Record]) -> list[Chart]:
    """gFID against sequence length and against parameters of the reported systems, with their Pareto front.

    Rows of `records` are drawn where their gFID has the published protocol; the systems that rows reproduce are named.

    Args:
        reported: as `reported_frame` makes it; systems of no `FAMILIES` are left out.
    """
    counterparts = {record.reported_system for record in records if record.reported_system}
    systems = [_system(row, counterparts) for row in reported.to_dict("records") if row["family"] in FAMILIES]
    ours = [point for members in group_tables(records).values() for point in _measured(members)]
    return [chart for column in AXES for chart in _charts(column, systems, ours)]


def _charts(column: str, systems: list[Values], ours: list[Values]) -> list[Chart]:
    """A chart if there are two systems with both numbers."""
    values = [
        value for value in systems + ours if value["gfid"] > 0 and value[column] is not None and value[column] > 0
    ]
    context = [value for value in values if value["what"] != OURS]
    if len(context) < 2:
        return []
    what, axis = AXES[column]
    x_range = Range.around((value[column] for value in values), margin=0.06, is_logarithmic=True)
    y_range = Range.around((value["gfid"] for value in values), margin=0.06, is_logarithmic=True)
    x, y = x_range.axis(column, axis), y_range.axis("gfid", "gFID on ImageNet 256×256, ↓ lower is better")
    marked = [value for value in values if value["what"] != REPORTED]
    named = [value | {"label": value["system"]} for value in sorted(marked, key=lambda value: value["what"] != OURS)]
    kinds = [kind for kind in (REPORTED, COUNTERPART, OURS) if any(value["what"] == kind for value in values)]
    colours = {REPORTED: CONTEXT, COUNTERPART: HIGHLIGHT, OURS: POINT}
    shown = {"condition": {"param": "families", "value": 0.85}, "value": 0.06}
    fields = tooltip(
        system="system", family="kind", year="year", tokens="tokens", params_m="parameters (M)", shown="gFID",
        spread="spread", score="IS", guidance="guidance", n="images", seeds="seeds", source="source",
    )  # fmt: skip
    points = {
        "data": data(sorted(values, key=lambda value: kinds.index(value["what"]))),  # ours on top
        "params": [zoom(), {"name": "families", "select": {"type": "point", "fields": ["family"]}, "bind": "legend"}],
        "mark": {"type": "point", "filled": True, "clip": True},
        "encoding": {
            "x": x,
            "y": y,
            "color": {
                "field": "what",
                "type": "nominal",
                "title": None,
                "scale": {"domain": kinds, "range": [colours[kind] for kind in kinds]},
            },
            "shape": {
                "field": "family",
                "type": "nominal",
                "title": None,
                "scale": {"domain": [*FAMILIES, OURS], "range": ["circle", "square", "triangle-up", "diamond"]},
                "legend": {"values": list(FAMILIES), "symbolFillColor": INK, "symbolStrokeColor": INK},
            },
            "size": {"condition": {"test": f"datum.what === '{REPORTED}'", "value": 30}, "value": 110},
            "opacity": shown,
            "tooltip": fields,
        },
    }
    front = {
        "data": data(_front(context, column)),
        "mark": {"type": "line", "interpolate": "step-after", "color": CONTEXT, "strokeDash": [5, 3], "clip": True},
        "encoding": {"x": x, "y": y, "order": {"field": column, "type": "quantitative"}},
    }
    edges = {
        "data": data(value for value in marked),
        "mark": {"type": "rule", "color": INK, "opacity": 0.7, "strokeWidth": 1.5, "clip": True},
        "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
    }
    text = (
        f"gFID of {len(context)} reported systems against {what}: autoregressive, masked and diffusion models. The "
        "dashed line connects those that no other beats in both."
    )
    layers = [front, edges, points, labels(named, x, y, (x_range, y_range), (WIDTH, HEIGHT), among=values, alone=True)]
    return [make_chart(f"Reported systems: gFID against {what}", text, [{"layer": layers}])]


def _system(row: dict, counterparts: set[str]) -> Values:
    names = {row["system"], *row["also"]}
    gfid = row["gfid"]
    return {
        "system": short_name(row["system"]),
        "what": COUNTERPART if names & counterparts else REPORTED,
        "family": row["family"],
        "year": _known(row["year"], "year"),
        "tokens": _count(row["tokens"]),
        "params_m": None if math.isnan(row["params_m"]) else row["params_m"],
        "gfid": 0.0 if math.isnan(gfid) else gfid,
        "low": gfid,
        "high": gfid,
        "shown": _known(gfid, "gfid"),
        "spread": "not reported",
        "score": _known(row["is"], "is"),
        "guidance": short_name(row["cfg"]) or "not known",
        "n": "as reported",
        "seeds": "not reported",
        "source": f"arXiv {short_name(row['arxiv'])}" + ("" if row["verified"] == "yes" else ", unverified"),
    }


def _measured(records: list[Record]) -> Iterable[Values]:
    """The rows of one table whose gFID is measured by the published protocol."""
    metrics = {
        key: label
        for key, label in metric_labels(records).items()
        if published_column(key[0], records[0].dataset) == "gfid"
    }
    frame = measured_frame(records) if metrics else pd.DataFrame()
    for key, label in metrics.items():
        rows = [group[0].label for group in group_rows(records)]
        values = measured(frame, label, rows)
        sizes = zip(frame["positions"], frame["generator_parameters"], strict=True)
        for value, (positions, parameters) in zip(values, sizes, strict=True):
            if value:
                fewer = f" of {PUBLISHED_N:,} published" if key[2] < PUBLISHED_N else ""
                yield {
                    "system": value["row"] + (f" (n {key[2]:,})" if fewer else ""),
                    "what": OURS,
                    "family": OURS,
                    "year": "",
                    "tokens": None if math.isnan(positions) else int(positions),
                    "params_m": None if math.isnan(parameters) else round(parameters / 1e6, 3),
                    "gfid": value["value"],
                    "low": value["low"],
                    "high": value["high"],
                    "shown": value["shown"],
                    "spread": value["spread"],
                    "score": "",
                    "guidance": "",
                    "n": value["n"] + fewer,
                    "seeds": value["seeds"],
                    "source": "measured here",
                }


def _front(values: list[Values], column: str) -> list[Values]:
    """The systems that none with a smaller or equal `column` beats in gFID, in its order."""
    best, found = math.inf, []
    for value in sorted(values, key=lambda value: (value[column], value["gfid"])):
        if value["gfid"] < best:
            best = value["gfid"]
            found.append({column: value[column], "gfid": best})
    return found


def _count(text: str) -> float | None:
    """A number of tokens, if the text is one."""
    return float(text) if re.fullmatch(r"\d{1,9}", text) else None


def _known(value: float, column: str) -> str:
    return "not known" if math.isnan(value) else printed(value, column)
