"""The content of the report's measured tables: numbers formatted as text, best values marked."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from leaderboard.claims import PROBES
from leaderboard.pictures import read_picture
from leaderboard.plots import Point, length_plot
from leaderboard.record import Dataset, Record
from leaderboard.reported import (
    AFTER_THE_PAPER,
    COUNTERPARTS,
    PUBLISHED_N,
    REPORTED_LABELS,
    published_column,
    reported_length,
    reported_text,
)  # fmt: skip
from leaderboard.tables import (
    MetricKey,
    added_by,
    codebook_frame,
    group_rows,
    group_tables,
    link_of,
    measured_frame,
    metric_key,
    metric_labels,
)

SIZES = {
    "positions": "positions",
    "tokens": "tokens",
    "steps": "steps",
    "generator_parameters": "generator parameters",
    "tokenizer_parameters": "tokenizer parameters",
}
# column -> label, higher is better
COSTS = {
    "tokenizer_train_seconds": ("tokenizer training s", False),
    "generator_train_seconds": ("generator training s", False),
    "samples_per_second": ("samples/s", True),
    "peak_memory_mib": ("peak memory MiB", False),
}
BESIDE = (
    "Reported ImageNet columns: published values on ImageNet 256×256 for the system named in the row. They are not on "
    "the scale of the proxy columns; only the order of the rows can be compared."
)
PROBE = "Reported linear probe: per cent; the paper does not state the probed features or how the probe was trained."
ADDED = (
    "Added rows: images of others, read from files and measured here by the protocols of this table. How they were "
    "made is the word of their authors; no claim is decided by them."
)
DIFFERENCE = (
    "Difference: measured minus reported, shown if network, reference and data set are the published ones. Fewer than "
    f"{PUBLISHED_N:,} images give a different FID, even for the same model."
)
PLOTTED = ("gFID",)  # against sequence length
PLOTTED_BY_TABLE = {"token_length": ("gFID", "rFID", "clean-rFID")}  # its rows differ only in length


@dataclass
class Cell:
    """One number of a table."""

    text: str
    spread: str = ""
    best: bool = False


@dataclass
class Column:
    """One column of a measured table."""

    label: str
    cells: list[Cell]
    floor: str = ""
    """the metric between two sets of real images"""


@dataclass
class MeasuredRow:
    """One row of a measured table; `cells` is empty if no seed finished."""

    label: str
    note: str
    added: str
    """whose row it is; "" if it was made here"""
    link: str
    """web address of an added row, if it has one"""
    seeds: str
    problem: str
    """which seeds failed or were not run, and why"""
    cells: list[Cell]


@dataclass
class MeasuredTable:
    """One measured table with its pictures and plots."""

    title: str
    columns: list[str]
    rows: list[MeasuredRow]
    floors: list[str]
    remarks: list[str]
    pixelated: bool
    pictures: list[dict[str, str]] = field(default_factory=list)
    plots: list[dict[str, str]] = field(default_factory=list)
    codebooks: list[dict[str, Any]] = field(default_factory=list)


def number(value: float, like: float | None = None) -> str:
    """A measured value with its significant digits, or as many as `like` has; "-" for NaN."""
    if math.isnan(value):
        return "-"
    size = abs(value if like is None else like)
    return f"{value:.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3}f}"


def count(value: float) -> str:
    """A whole number with thousands separators; "-" for NaN."""
    return "-" if math.isnan(value) else f"{value:,.0f}"


def dataset_text(dataset: Dataset) -> str:
    """A data set in words, without its hash."""
    left_out = "".join(f", {number} left out: {reason}" for reason, number in dataset.left_out.items())
    return (
        f"{dataset.name}, {dataset.n_train} train and {dataset.n_test} test images of "
        f"{dataset.image_size}×{dataset.image_size}, {dataset.classes} classes{left_out}"
    )


def measured_tables(records: list[Record], output: Path, reported: pd.DataFrame) -> list[MeasuredTable]:
    """One table per table, scale, budget and data set; picture paths are relative to `output`.

    The `reported` numbers of the system that a row reproduces are shown in separate columns.
    """
    groups = group_tables(records)
    names = [key[:4] for key in groups]
    tables = []
    for key, members in groups.items():
        name, _, _, dataset, content = key
        # Data sets of the same name may hold different images
        suffix = f" (images {content[:8]})" if names.count(key[:4]) > 1 else ""
        tables.append(_table(f"{name} · {members[0].place} · {dataset}{suffix}", members, output, reported))
    return tables


def _table(title: str, records: list[Record], output: Path, reported: pd.DataFrame) -> MeasuredTable:
    frame, labels, groups = measured_frame(records), metric_labels(records), group_rows(records)
    row_labels = _row_labels(frame)
    metrics, compared = _metric_columns(frame, labels, records, reported)
    probed = any(protocol.metric in PROBES for protocol, _, _ in labels)
    beside = _reported_columns([group[0].reported_system for group in groups], reported, compared, probed)
    costs, remarks = _cost_columns(frame, groups)
    columns = [*metrics, *_codebook_column(frame), *beside, *_size_columns(frame), *costs]
    rows = [
        MeasuredRow(
            label=row_labels[i],
            note=values["note"].rstrip(".") + _reported_note(groups[i][0].reported_system, reported),
            added=added_by(groups[i][0]),
            link=link_of(groups[i][0]),
            seeds=str(values["n_seeds"]),
            problem="; ".join(f"{name}: {text}" for name, text in _problems(values)),
            cells=[column.cells[i] for column in columns] if values["n_seeds"] else [],
        )
        for i, values in enumerate(frame.to_dict("records"))
    ]
    usages = [codebook_frame(group) for group in groups]
    return MeasuredTable(
        title=title,
        columns=[column.label for column in columns],
        rows=rows,
        floors=[column.floor for column in columns] if any(column.floor for column in columns) else [],
        remarks=[
            *([DIFFERENCE] if compared else []),
            *([BESIDE] if beside else []),
            *([PROBE] if beside and probed else []),
            *([ADDED] if any(record.added for record in records) else []),
            *remarks,
        ],
        pixelated=records[0].scale == "mini",
        pictures=[p for label, group in zip(row_labels, groups, strict=True) for p in _pictures(label, group, output)],
        plots=_plots(title, frame, labels, row_labels),
        codebooks=[_codebook(label, u) for label, u in zip(row_labels, usages, strict=True) if len(u)],
    )


def _row_labels(frame: pd.DataFrame) -> list[str]:
    """Labels of the rows; those shared by two rows get their configuration appended."""
    twice = frame["label"].duplicated(keep=False)
    return [
        f"{label} (config {config})" if again else label
        for label, config, again in zip(frame["label"], frame["config"], twice, strict=True)
    ]


def _problems(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, row[column]) for name, column in (("failed", "failed"), ("not run", "not_run")) if row[column]]


def _metric_columns(
    frame: pd.DataFrame, labels: dict[MetricKey, str], records: list[Record], reported: pd.DataFrame
) -> tuple[list[Column], set[str]]:
    """A column per kind of value, followed by the reported number and the difference if the protocol is the published
    one. Also returns the columns of `reported` shown this way."""
    systems = [group[0].reported_system for group in group_rows(records)]
    columns, compared = [], set()
    for (protocol, n_real, n_generated), label in labels.items():
        column = _metric_column(frame, label, protocol.higher_is_better)
        column.label += f" (n\u00a0{n_generated})"
        column.floor = _floor(records, (protocol, n_real, n_generated))
        columns.append(column)
        name = published_column(protocol, records[0].dataset)
        texts = [reported_text(reported, system, name) for system in systems] if name else []
        if name is None or not any(texts):
            continue
        compared.add(name)
        few = f", n {n_generated:,} of {PUBLISHED_N:,}" if n_generated < PUBLISHED_N else ""
        for cell, value in zip(column.cells, frame[label], strict=True):
            cell.spread += few if not math.isnan(value) else ""
        gaps = [value - float(text or "nan") for value, text in zip(frame[label], texts, strict=True)]
        columns.append(Column(f"reported {label}", [Cell(text or "-") for text in texts]))
        columns.append(Column("difference", [Cell("-" if math.isnan(gap) else f"{gap:+.2f}") for gap in gaps]))
    return columns, compared


def _metric_column(frame: pd.DataFrame, label: str, higher_is_better: bool) -> Column:
    cells = []
    for mean, spread, seeds, total in zip(
        frame[label], frame[f"{label} sd"], frame[f"{label} seeds"], frame["n_seeds"], strict=True
    ):
        fewer = f" (n={seeds})" if 0 < seeds < total else ""
        cells.append(Cell(number(mean), f"± {number(spread, mean)}{fewer}" if seeds else ""))
    return Column(_arrow(label, higher_is_better), _mark_best(cells, frame[label], higher_is_better))


def _floor(records: list[Record], key: MetricKey) -> str:
    """The metric between real images; a range if the seeds drew different images."""
    found = [m.floor for r in records for m in r.metrics if metric_key(m) == key]
    floors = sorted(f for f in found if f is not None)
    return "–".join(dict.fromkeys(number(f) for f in (floors[0], floors[-1]))) if floors else ""


def _codebook_column(frame: pd.DataFrame) -> list[Column]:
    usage = frame["codebook_usage"].tolist()
    if all(map(math.isnan, usage)):
        return []
    cells = [Cell("-" if math.isnan(v) else f"{100 * v:.1f} %") for v in usage]
    return [Column(_arrow("codebook usage", True), _mark_best(cells, usage, True))]


def _reported_columns(
    systems: list[str | None], reported: pd.DataFrame, compared: set[str], probed: bool
) -> list[Column]:
    """The reported numbers of the rows' systems, except for those shown next to a measured value."""
    headers = {name: REPORTED_LABELS[name] for name in COUNTERPARTS.values() if name not in compared}
    if probed:
        headers["linear_probe_acc"] = "linear probe accuracy %\u00a0↑"
    columns = [
        Column(f"reported ImageNet {header}", [Cell(reported_text(reported, s, name) or "-") for s in systems])
        for name, header in headers.items()
    ]
    lengths = [Cell(reported_length(reported, system) or "-") for system in systems]
    columns.append(Column("reported ImageNet length", lengths))
    return [column for column in columns if any(cell.text != "-" for cell in column.cells)]


def _reported_note(system: str | None, reported: pd.DataFrame) -> str:
    if system is None:
        return ""
    later = reported_text(reported, system, "status") == AFTER_THE_PAPER
    return f". Reported: {system}" + (f", {AFTER_THE_PAPER}" if later else "")


def _size_columns(frame: pd.DataFrame) -> list[Column]:
    return [Column(label, [Cell(count(v)) for v in frame[name]]) for name, label in SIZES.items() if _any(frame, name)]


def _cost_columns(frame: pd.DataFrame, groups: list[list[Record]]) -> tuple[list[Column], list[str]]:
    """Columns of time and memory, and remarks on them."""
    records = [r for group in groups for r in group if r.cost]
    runs = {(r.machine, str(r.run.execution), r.cost.sample_batch) for r in records if r.cost}
    shared = [any(r.cost and r.cost.tokenizer_shared for r in group) for group in groups]
    columns = []
    for name, (label, higher) in COSTS.items():
        cells = [Cell(number(v)) for v in frame[name]]
        if name == "tokenizer_train_seconds":
            for cell, is_shared in zip(cells, shared, strict=True):
                cell.text += "*" if is_shared else ""
        elif len(runs) == 1:  # times and memory of different machines are not comparable
            label, cells = _arrow(label, higher), _mark_best(cells, frame[name], higher)
        if _any(frame, name):
            columns.append(Column(label, cells))
    remarks = ["* the tokenizer was trained once for several rows"] if any(shared) else []
    if len(runs) > 1:
        remarks.append(
            "no best value is marked for time and memory: the rows ran on different machines, batch sizes or settings"
        )
    return columns, remarks


def _any(frame: pd.DataFrame, name: str) -> bool:
    """Whether a column has a value; all columns are kept if no row has finished."""
    return not all(map(math.isnan, frame[name])) or not any(frame["n_seeds"])


def _arrow(label: str, higher_is_better: bool) -> str:
    return f"{label}\u00a0{'↑' if higher_is_better else '↓'}"  # no line break before the arrow


def _mark_best(cells: list[Cell], values: Iterable[float], higher_is_better: bool) -> list[Cell]:
    """Mark the best value and those that read the same, unless all do."""
    known = [(value, cell.text) for value, cell in zip(values, cells, strict=True) if not math.isnan(value)]
    if len({text for _, text in known}) > 1:
        _, best = (max if higher_is_better else min)(known, key=lambda pair: pair[0])
        for cell in cells:
            cell.best = cell.text == best
    return cells


def _pictures(label: str, group: list[Record], output: Path) -> list[dict[str, str]]:
    """The pictures of the first seed that has any, as base64; "" for missing or damaged ones."""
    record = next((r for r in group if r.pictures), None)
    if record is None:
        return []
    pictures = []
    for caption, path in record.pictures.items():
        data = base64.b64encode(read_picture(output, path, record.picture_sha256.get(path)) or b"").decode()
        pictures.append({"row": label, "caption": caption, "seed": str(record.seed), "path": path, "data": data})
    return pictures


def _plots(title: str, frame: pd.DataFrame, labels: dict[MetricKey, str], rows: list[str]) -> list[dict[str, str]]:
    """Frechet distances against sequence length."""
    plots = []
    metrics = PLOTTED_BY_TABLE.get(frame["table"].iloc[0], PLOTTED)
    for (protocol, _, _), label in labels.items():
        if protocol.metric not in metrics:
            continue
        values = zip(rows, frame["positions"], frame[label], frame[f"{label} sd"], strict=True)
        points = [Point(r, x, y, None if math.isnan(s) else s) for r, x, y, s in values if not math.isnan(x + y)]
        if len({point.length for point in points}) > 1:
            svg = length_plot(
                points, "sequence length of the generator (positions)", protocol.key.replace("/", "\n", 1)
            )
            plots.append({"title": f"{title}: {label} against sequence length", "svg": svg})
    return plots


def _codebook(label: str, usage: pd.DataFrame) -> dict[str, Any]:
    """Branches x scales of one row: used share in per cent and perplexity, as text."""
    rows = usage.to_dict("records")
    columns = sorted({(row["position"], row["scale"]) for row in rows})
    cells = {
        (row["branch"], row["position"], row["scale"]): (f"{100 * row['used']:.0f}", f"{row['perplexity']:.1f}")
        for row in rows
    }
    return {
        "row": label,
        "scales": [f"{scale}×{scale}" for _, scale in columns],
        "branches": [
            (branch, [cells.get((branch, *column), ("", "")) for column in columns])
            for branch in sorted({row["branch"] for row in rows})
        ],
    }
