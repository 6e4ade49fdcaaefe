"""The sweep over sampling settings: FID against IS as curves, and the settings with the lowest FID in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pandas as pd

from leaderboard.cells import number
from leaderboard.charts import (
    HEIGHT,
    INK,
    WIDTH,
    Chart,
    Range,
    Values,
    data,
    direction,
    make_chart,
    measured,
    short_name,
    tooltip,
    zoom,
)  # fmt: skip
from leaderboard.charts import labels as placed_labels
from leaderboard.record import Record
from leaderboard.tables import MetricKey

SWEEP = "guidance"
"""The table of the sweep: rows GENERATOR-SETTING with labels "Generator · setting"."""
DEFAULT, CHOSEN, GIVEN = "default", "chosen", "-given"


@dataclass(frozen=True)
class Setting:
    """A row of the sweep: a generator with one choice of sampling settings."""

    generator: str
    words: str
    guidance: float
    gfid: float
    score: float
    """Inception score"""
    is_default: bool
    on_curve: bool
    """differs from the default in its guidance only"""
    texts: Values = field(default_factory=dict, compare=False)
    """the values with spread, images and seeds, for the tooltip"""


def sweep_charts(
    title: str, frame: pd.DataFrame, labels: dict[MetricKey, str], groups: list[list[Record]]
) -> list[Chart]:
    """FID against IS of a sweep's settings, one chart per feature space; none for other tables."""
    return [_chart(title, *sweep) for sweep in _sweeps(frame, labels, groups)]


def _chart(title: str, gfid: str, score: str, settings: list[Setting]) -> Chart:
    x_range = Range.around(setting.score for setting in settings)
    y_range = Range.around(setting.gfid for setting in settings)
    x = x_range.axis("score", f"{short_name(score)}, {direction(True)}")
    y = y_range.axis("gfid", f"{short_name(gfid)}, {direction(False)}")
    values = []
    for generator in dict.fromkeys(setting.generator for setting in settings):
        members = [setting for setting in settings if setting.generator == generator]
        best = chosen(members)
        for setting in sorted(members, key=lambda setting: setting.guidance):
            marks = [text for text, is_so in ((DEFAULT, setting.is_default), (CHOSEN, setting == best)) if is_so]
            values.append(_values(setting) | {"mark": " and ".join(marks)})
    marked = [value | {"mark": mark} for value in values for mark in (DEFAULT, CHOSEN) if mark in value["mark"]]
    named = [value | {"label": f"{value['guidance']:g}"} for value in values if value["on_curve"]]
    colour = {"field": "generator", "type": "nominal", "title": None, "sort": None}
    shown = {"condition": {"param": "generators", "value": 1}, "value": 0.1}
    select = {"type": "point", "fields": ["generator"]}
    line = {
        "data": data(value for value in values if value["on_curve"]),
        "mark": {"type": "line", "strokeWidth": 1.5, "clip": True},
        "encoding": {"x": x, "y": y, "color": colour, "order": {"field": "guidance"}, "opacity": shown},
    }
    points = {
        "data": data(values),
        "params": [zoom(), {"name": "generators", "select": select, "bind": "legend"}],
        "mark": {"type": "point", "size": 40, "clip": True},
        "encoding": {
            "x": x,
            "y": y,
            "color": colour,
            "fill": {"condition": {"test": "datum.on_curve", **colour, "legend": None}, "value": "transparent"},
            "opacity": shown,
            "tooltip": tooltip(
                generator="generator", words="setting", shown_gfid=gfid, spread_gfid="its spread", shown_score=score,
                spread_score="its spread",
                n="images", seeds="seeds", mark="marked as",
            ),
        },
    }  # fmt: skip
    rings = {
        "data": data(marked),
        "mark": {"type": "point", "color": INK, "size": 190, "strokeWidth": 1.5, "clip": True},
        "encoding": {
            "x": x,
            "y": y,
            "shape": {
                "field": "mark",
                "type": "nominal",
                "title": None,
                "scale": {"domain": [DEFAULT, CHOSEN], "range": ["circle", "diamond"]},
                "legend": {
                    "symbolStrokeColor": INK,
                    "labelExpr": f"datum.value === '{DEFAULT}' ? 'default' : 'chosen: lowest gFID'",
                },
            },
        },
    }
    size = (WIDTH, HEIGHT)
    layers = [line, rings, points, placed_labels(named, x, y, (x_range, y_range), size, among=values, alone=True)]
    text = (
        f"{gfid} against {score} of every generator and setting. Lines go through settings that differ in their "
        "guidance, which is written beside them; other settings are hollow."
    )
    return make_chart(f"{title}: {gfid} against {score}, by guidance", text, [{"layer": layers}])


def _values(setting: Setting) -> Values:
    return {
        "generator": short_name(setting.generator),
        "words": short_name(setting.words),
        "guidance": 0.0 if math.isnan(setting.guidance) else setting.guidance,
        "gfid": setting.gfid,
        "score": setting.score,
        "on_curve": setting.on_curve and not math.isnan(setting.guidance),
        **setting.texts,
    }


def sweep_remarks(frame: pd.DataFrame, labels: dict[MetricKey, str], groups: list[list[Record]]) -> list[str]:
    """The chosen setting of every generator of a sweep in words, in the first feature space; none for other tables."""
    for gfid, _, settings in _sweeps(frame, labels, groups):
        texts = []
        for generator in dict.fromkeys(setting.generator for setting in settings):
            members = [setting for setting in settings if setting.generator == generator]
            best = chosen(members)
            default = next((s for s in members if s.is_default), None)
            own = "" if default is None or default == best else f", default {default.words}: {number(default.gfid)}"
            texts.append(f"{generator}: {best.words} ({number(best.gfid)}{own})")
        return [
            f"Chosen, as the lowest {gfid}: {'; '.join(texts)}. A value that was chosen on the samples it is measured "
            "on flatters its setting: compare it with the sampling noise."
        ]
    return []


def chosen(settings: list[Setting]) -> Setting:
    """The setting of a generator with the lowest gFID."""
    return min(settings, key=lambda setting: setting.gfid)


def _sweeps(
    frame: pd.DataFrame, labels: dict[MetricKey, str], groups: list[list[Record]]
) -> Iterator[tuple[str, str, list[Setting]]]:
    """Labels of gFID and IS, and the settings that have both, for every feature space in which one was measured."""
    if groups[0][0].table != SWEEP:
        return
    for (protocol, _, n), gfid in labels.items():
        space = protocol.name.removesuffix("gFID")  # "proxy-", "lite0-" or nothing
        scores = [
            label
            for (other, _, m), label in labels.items()
            if (other.name, other.extractor_sha256, m) == (f"{space}IS", protocol.extractor_sha256, n)
        ]
        if scores and space != protocol.name:
            names = [group[0].label for group in groups]
            values = (measured(frame, label, names) for label in (gfid, scores[0]))
            settings = [
                _setting(group[0], x, y) for group, x, y in zip(groups, *values, strict=True)
                if x and y and group[0].added is None
            ]  # fmt: skip
            if settings:
                yield gfid, scores[0], settings


def _setting(record: Record, gfid: Values, score: Values) -> Setting:
    name, (generator, _, words) = record.row.removesuffix(GIVEN), record.label.partition(" · ")
    setting = name.partition("-")[2]
    if record.row != name:  # weights that were given are another model
        generator, words = f"{generator} (given weights)", words.removesuffix(" (given weights)")
    sampling = record.config.get("sampling")
    guidance = sampling.get("guidance") if isinstance(sampling, dict) else None
    return Setting(
        generator,
        words,
        float(guidance) if isinstance(guidance, int | float) else math.nan,
        gfid["value"],
        score["value"],
        setting == DEFAULT,
        setting == DEFAULT or re.fullmatch(r"g[0-9.]+", setting) is not None,
        {
            "shown_gfid": gfid["shown"], "spread_gfid": gfid["spread"], "shown_score": score["shown"],
            "spread_score": score["spread"], "n": gfid["n"], "seeds": gfid["seeds"],
        },
    )  # fmt: skip
