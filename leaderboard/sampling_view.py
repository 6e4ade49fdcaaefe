"""The sweep over sampling settings: FID against IS as curves, and the settings with the lowest FID in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from leaderboard.cells import number
from leaderboard.plots import Curve, CurvePoint, curve_plot
from leaderboard.record import Record
from leaderboard.tables import MetricKey

SWEEP = "guidance"
"""The table of the sweep: rows GENERATOR-SETTING with labels "Generator · setting"."""
DEFAULT, GIVEN = "default", "-given"


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


def sweep_plots(
    title: str, frame: pd.DataFrame, labels: dict[MetricKey, str], groups: list[list[Record]]
) -> list[dict[str, str]]:
    """FID against IS of a sweep's settings, one plot per feature space; none for other tables."""
    plots = []
    for gfid, score, settings in _sweeps(frame, labels, groups):
        curves = []
        for generator in dict.fromkeys(setting.generator for setting in settings):
            members = sorted((s for s in settings if s.generator == generator), key=lambda s: s.guidance)
            best = chosen(members)
            points = [
                CurvePoint(s.score, s.gfid, f"{s.guidance:g}", s.on_curve, s.is_default, s == best) for s in members
            ]
            curves.append(Curve(generator, tuple(points)))
        svg = curve_plot(curves, score, gfid, page_key=title)
        plots.append({"title": f"{title}: {gfid} against {score}, by guidance", "svg": svg})
    return plots


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
            settings = [
                _setting(group[0], float(x), float(y))
                for group, x, y in zip(groups, frame[gfid], frame[scores[0]], strict=True)
                if not math.isnan(x + y) and group[0].added is None
            ]
            if settings:
                yield gfid, scores[0], settings


def _setting(record: Record, gfid: float, score: float) -> Setting:
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
        gfid,
        score,
        setting == DEFAULT,
        setting == DEFAULT or re.fullmatch(r"g[0-9.]+", setting) is not None,
    )
