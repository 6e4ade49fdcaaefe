"""Plots as inline SVG. Equal input gives equal bytes, and the text takes the colour of the page around it."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

INK = "#010203"  # replaced by the page's text colour after drawing
POINT = "#3b82c4"  # legible on white and on black
COLOURS = (POINT, "#d97706", "#2f9e62", "#b4559e", "#8a7a2f", "#c2413b")
MARKERS = "os^DvP"
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Point:
    """One row of a table."""

    label: str
    length: float
    value: float
    spread: float | None  # over seeds; None for one seed


@dataclass(frozen=True)
class Bar:
    """One horizontal bar with its quartiles and the text at its end."""

    label: str
    value: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Line:
    """One line through (x, y) points."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class CurvePoint:
    """One setting of a system; the line goes through those `on_line`, in order."""

    x: float
    y: float
    label: str
    on_line: bool
    is_default: bool
    is_chosen: bool


@dataclass(frozen=True)
class Curve:
    """The settings of one system."""

    label: str
    points: tuple[CurvePoint, ...]


def length_plot(points: list[Point], xlabel: str, ylabel: str) -> str:
    """SVG of a metric against sequence length: a labelled point per row, with error bars if it has a spread."""
    with _style(f"{xlabel}{ylabel}{points}"):
        figure, axes = _axes(7.5, 4.2)
        axes.grid(alpha=0.15, color=INK)
        for point in points:
            axes.errorbar(
                point.length, point.value, yerr=point.spread, color=POINT, marker="o", markersize=7, capsize=4
            )
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.margins(x=0.12, y=0.15)
        _label_points(figure, axes, points)
        return _svg(figure)


def bar_plot(bars: list[Bar], xlabel: str, page_key: str = "") -> str:
    """SVG of horizontal bars from zero, the first on top; whiskers are quartiles, the value is written at the end.

    Plots of one page that may be equal need different `page_key`s: their ids must differ.
    """
    with _style(f"{page_key}{xlabel}{bars}"):
        figure, axes = _axes(4.6, 0.7 + 0.27 * len(bars))
        axes.grid(alpha=0.15, color=INK, axis="x")
        places = range(len(bars))
        values = [bar.value for bar in bars]
        errors = [[b.value - b.low for b in bars], [b.high - b.value for b in bars]]
        axes.barh(places, values, height=0.7, color=POINT, xerr=errors, error_kw={"ecolor": INK, "elinewidth": 1})
        for place, bar in zip(places, bars, strict=True):
            axes.annotate(
                bar.text, (max(bar.value, bar.high), place), (5, 0), textcoords="offset points", va="center", fontsize=9
            )
        axes.set_yticks(places, [bar.label for bar in bars], fontsize=9)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlim(0, 1.02 * max(b.high for b in bars) or 1)
        axes.set_xlabel(xlabel)
        return _svg(figure)


def line_plot(lines: list[Line], xlabel: str, ylabel: str, *, doubling: bool = False, page_key: str = "") -> str:
    """SVG of lines with a legend below; `doubling` spaces the powers of two evenly.

    The vertical axis starts at zero, or is logarithmic if the values span more than a factor of 20. `page_key` as for
    `bar_plot`.
    """
    with _style(f"{page_key}{xlabel}{ylabel}{doubling}{lines}"):
        figure, axes = _axes(7.5, 3.8)
        axes.grid(alpha=0.15, color=INK)
        for i, line in enumerate(lines):
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 6}
            axes.plot(*zip(*line.points, strict=True), label=line.label, **style)
        xs = sorted({x for line in lines for x, _ in line.points})
        ys = [y for line in lines for _, y in line.points]
        if doubling and xs[0] > 0:
            axes.set_xscale("log", base=2)
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.minorticks_off()
        if not _logarithmic(axes, ys):
            axes.set_ylim(0, 1.08 * max(ys) or 1)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), frameon=False, fontsize=10)
        return _svg(figure)


def curve_plot(curves: list[Curve], xlabel: str, ylabel: str, *, page_key: str = "") -> str:
    """SVG of one metric against another along the settings of every system, with a legend below.

    Points on the line carry their labels; others are hollow. A ring marks the default, a star the chosen setting. The
    vertical axis is logarithmic if the values span more than a factor of 20. `page_key` as for `bar_plot`.
    """
    with _style(f"{page_key}{xlabel}{ylabel}{curves}"):
        figure, axes = _axes(7.5, 4.6)
        axes.grid(alpha=0.15, color=INK)
        for i, curve in enumerate(curves):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            line = [point for point in curve.points if point.on_line]
            axes.plot([p.x for p in line], [p.y for p in line], color=colour, marker=marker, markersize=4, lw=1.2)
            axes.plot([], [], color=colour, marker=marker, label=curve.label)
            for p in curve.points:
                if not p.on_line:
                    axes.plot(p.x, p.y, color=colour, marker=marker, markersize=4, fillstyle="none", lw=0)
                if p.is_default:
                    axes.plot(p.x, p.y, color=INK, marker="o", markersize=11, fillstyle="none", lw=0)
                if p.is_chosen:
                    axes.plot(p.x, p.y, color=colour, marker="*", markersize=14, markeredgecolor=INK, lw=0)
                if p.on_line:
                    axes.annotate(p.label, (p.x, p.y), (5, 5), textcoords="offset points", fontsize=7, color=colour)
        axes.plot([], [], color=INK, marker="o", markersize=11, fillstyle="none", lw=0, label="default")
        chosen = f"chosen: lowest {ylabel}"
        axes.plot([], [], color="none", marker="*", markersize=14, markeredgecolor=INK, lw=0, label=chosen)
        ys = [point.y for curve in curves for point in curve.points]
        _logarithmic(axes, ys)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14), frameon=False, fontsize=10, ncols=2)
        return _svg(figure)


@contextlib.contextmanager
def _style(content: str) -> Iterator[None]:
    # With the salt, ids differ between the plots of a page and agree between two builds of it
    style: dict[Any, Any] = STYLE | {"svg.hashsalt": content}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser finds a font that has it
        yield


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _logarithmic(axes: Axes, ys: list[float]) -> bool:
    """Make the vertical axis logarithmic if the values span more than a factor of 20; returns whether they do."""
    if min(ys) <= 0 or max(ys) <= 20 * min(ys):
        return False
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    return True


def _svg(figure: Figure) -> str:
    target = io.StringIO()
    figure.savefig(
        target,
        format="svg",
        transparent=True,
        bbox_inches="tight",
        metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
    )
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML and DOCTYPE lines, which are not allowed inside HTML
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to these ids, and the plots would repeat them
    return svg.replace(INK, "currentColor")


def _label_points(figure: Figure, axes: Axes, points: list[Point]) -> None:
    """Write each label to the right of its point, moved up just enough that labels do not overlap."""
    axes.autoscale_view()  # otherwise postponed until drawing, after the positions computed below
    line, letter = 15.0, 6.5  # height of a label and approximate width of a letter, in points
    dots_per_point = figure.dpi / 72
    placed: list[tuple[float, float, float]] = []  # left, right, height
    for point in sorted(points, key=lambda p: (p.value, p.length)):
        x, y = axes.transData.transform((point.length, point.value)) / dots_per_point
        right, place = x + letter * len(point.label), y
        for left_edge, right_edge, height in sorted(placed, key=lambda label: label[2]):
            if left_edge < right and x < right_edge and abs(height - place) < line:
                place = height + line
        placed.append((x, right, place))
        axes.annotate(
            point.label, (point.length, point.value), (10, place - y), textcoords="offset points", va="center"
        )
