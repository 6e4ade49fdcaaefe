"""Which columns of a measured table are seen at first: a few, with measured and reported values side by side."""

from __future__ import annotations

import re
from dataclasses import replace

from leaderboard.cells import Column

METRICS = ("rFID", "gFID", "gFID (unguided)", "IS")
SIZES = ("positions", "generator parameters")
"""Published metrics and sizes whose columns come first, in this order."""


def arranged(columns: list[Column]) -> list[Column]:
    """The columns with those of `METRICS` and `SIZES` first, each followed by its reported numbers, with unique keys.

    If a table lacks some of them, the columns that come next take their places.
    """
    metrics, sizes = _first(columns, METRICS), _first(columns, SIZES)
    taken = [*metrics, *sizes]
    rest = [column for column in columns if not any(column is other for other in taken)]
    missing = len(METRICS) + len(SIZES) - sum(not column.reported for column in taken)
    shown = [*metrics, *rest[:missing], *sizes]
    return _with_keys([replace(c, shown=i < len(shown)) for i, c in enumerate([*shown, *rest[missing:]])])


def _first(columns: list[Column], names: tuple[str, ...]) -> list[Column]:
    """The first measured column of every name, followed by its reported ones."""
    found: list[Column] = []
    for name in names:
        measured = next((column for column in columns if column.metric == name and not column.reported), None)
        if measured:
            found += [measured, *(column for column in columns if column.metric == name and column.reported)]
    return found


def _with_keys(columns: list[Column]) -> list[Column]:
    """Keys for the page's address, e.g. "proxy-gFID"; equal ones get a number."""
    keys: dict[str, int] = {}
    found = []
    for column in columns:
        key = re.sub(r"[^A-Za-z0-9]+", "-", re.sub(r" \(n.*\)$|\u00a0.*$", "", column.label)).strip("-") or "column"
        keys[key] = keys.get(key, 0) + 1
        found.append(replace(column, key=f"{key}-{keys[key]}" if keys[key] > 1 else key))
    return found
