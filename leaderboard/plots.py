"""Plots as inline SVG. Equal input gives equal bytes, and the text takes the colour of the page around it."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#010203"  # replaced by the page's text colour after drawing
POINT = "#3b82c4"  # legible on white and on black
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
    """One row of a table in the plot."""

    label: str
    length: float
    value: float
    spread: float | None  # over seeds; None for one seed


def length_plot(points: list[Point], xlabel: str, ylabel: str) -> str:
    """SVG of a metric against the sequence length: a labelled point per row, error bars where there is a spread."""
    # The salt makes the ids differ between plots of one page and agree between two builds of it.
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": f"{xlabel}{ylabel}{points}"}):
        figure = Figure(figsize=(7.5, 4.2))
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.15, color=INK)
        for point in points:
            axes.errorbar(
                point.length, point.value, yerr=point.spread, color=POINT, marker="o", markersize=7, capsize=4
            )
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.margins(x=0.12, y=0.15)
        _label_points(axes, points)
        target = io.StringIO()
        figure.savefig(
            target,
            format="svg",
            transparent=True,
            bbox_inches="tight",
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :]  # the XML and DOCTYPE lines have no place inside HTML
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to them, and several plots would repeat them
    return svg.replace(INK, "currentColor")


def _label_points(axes: matplotlib.axes.Axes, points: list[Point]) -> None:
    """Write each label right of its point, moved up just enough that no two labels overlap."""
    axes.autoscale_view()  # otherwise postponed until drawing, and the pixels below would be wrong
    line, letter = 15.0, 6.5  # height of a label and about the width of a letter, in points
    dots_per_point = axes.figure.dpi / 72
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
