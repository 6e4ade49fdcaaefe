"""Cells and columns of the report's measured tables: numbers as text, and which of them is best."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Cell:
    """One number of a table."""

    text: str
    spread: str = ""
    best: bool = False
    beside: str = ""
    """the reference's value, and whether this one lies inside its spread"""


@dataclass
class Column:
    """One column of a measured table."""

    label: str
    cells: list[Cell]
    floor: str = ""
    """the metric between two sets of real images"""
    tip: str = ""
    """how its values were computed"""
    anchor: str = ""
    """of its protocol, if it has one"""
    metric: str = ""
    """published metric, or size, that it holds the values of"""
    reported: bool = False
    """whether its values were published by others, or compare with such"""
    key: str = ""
    """its name in the page's address"""
    shown: bool = True
    """whether it is seen before columns are chosen"""


def number(value: float, like: float | None = None) -> str:
    """A measured value with its significant digits, or as many as `like` has; "-" for NaN."""
    if math.isnan(value):
        return "-"
    size = abs(value if like is None else like)
    return f"{value:.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3}f}"


def signed(value: float, like: float) -> str:
    """A difference with its sign and the digits of `like`."""
    return ("+" if value > 0 else "") + number(value, like)


def count(value: float) -> str:
    """A whole number with thousands separators; "-" for NaN."""
    return "-" if math.isnan(value) else f"{value:,.0f}"


def has_value(values: Iterable[float], seeds: Iterable[int]) -> bool:
    """Whether a column is shown: one of its values is known, or no row has finished (`seeds` of every row)."""
    return not all(map(math.isnan, values)) or not any(seeds)


def arrow(label: str, higher_is_better: bool) -> str:
    """The head of a column, with an arrow in the direction of better values."""
    return f"{label}\u00a0{'↑' if higher_is_better else '↓'}"  # no line break before the arrow


def mark_best(cells: list[Cell], values: Iterable[float], higher_is_better: bool) -> list[Cell]:
    """Mark the best of the known values and those that read the same, unless all do."""
    known = [(value, cell) for value, cell in zip(values, cells, strict=True) if not math.isnan(value)]
    if len({cell.text for _, cell in known}) > 1:
        _, best = (max if higher_is_better else min)(known, key=lambda pair: pair[0])
        for _, cell in known:
            cell.best = cell.text == best.text
    return cells
