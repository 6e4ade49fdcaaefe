"""The content of the report's measured tables: numbers formatted as text, best values marked."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from leaderboard.cells import Cell, Column, arrow, count, has_value, mark_best, number
from leaderboard.charts import Chart
from leaderboard.claims import PROBES
from leaderboard.columns import arranged
from leaderboard.costs import cost_columns
from leaderboard.curves_view import training_charts
from leaderboard.links import protocol_anchor, row_anchor, table_anchor
from leaderboard.measured_charts import ablation_charts, codebook_charts, length_charts
from leaderboard.noise import sampling_remarks, training_remarks
from leaderboard.origin import Origin, origin_of
from leaderboard.pictures import Picture, read_picture
from leaderboard.record import Dataset, Record
from leaderboard.references import RULE as REFERENCE_RULE
from leaderboard.references import RowBeside, table_beside
from leaderboard.reported import (
    AFTER_THE_PAPER,
    COUNTERPARTS,
    PUBLISHED_N,
    REPORTED_LABELS,
    published_column,
    reported_length,
    reported_text,
)  # fmt: skip
from leaderboard.sampling_view import SWEEP, sweep_charts, sweep_remarks
from leaderboard.tables import (
    UNRANKED,
    MetricKey,
    added_by,
    codebook_frame,
    group_rows,
    group_tables,
    link_of,
    may_be_best,
    measured_frame,
    metric_key,
    metric_labels,
    table_key,
)

SIZES = {
    "positions": "positions",
    "tokens": "tokens",
    "steps": "steps",
    "generator_parameters": "generator parameters",
    "tokenizer_parameters": "tokenizer parameters",
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
OVER = "over images"
LISTED = 20  # classes of a row, the worst ones


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
    status: str
    """of the record that stands for the row: a finished one if there is any"""
    cells: list[Cell]
    origin: Origin
    """where its numbers come from"""


@dataclass
class MeasuredTable:
    """One measured table with its pictures and charts."""

    title: str
    anchor: str
    columns: list[Column]
    rows: list[MeasuredRow]
    remarks: list[str]
    pixelated: bool
    pictures: list[Picture] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    """its values: against length, step by step, along settings"""
    trainings: list[Chart] = field(default_factory=list)
    codebook_charts: list[Chart] = field(default_factory=list)
    codebooks: list[dict[str, Any]] = field(default_factory=list)
    classes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def at_first(self) -> list[int]:
        """Indices of the columns that are shown before any are chosen."""
        return [i for i, column in enumerate(self.columns) if column.shown]

    @property
    def on_demand(self) -> list[int]:
        """Indices of the others."""
        return [i for i, column in enumerate(self.columns) if not column.shown]


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
    besides, remark = table_beside(groups)
    metrics, compared = _metric_columns(frame, labels, records, reported, besides)
    probed = any(protocol.metric in PROBES for protocol, _, _ in labels)
    beside = _reported_columns([group[0].reported_system for group in groups], reported, compared, probed)
    costs, remarks = cost_columns(frame, groups)
    columns = arranged([*metrics, *_codebook_column(frame), *beside, *_size_columns(frame), *costs])
    rows = [
        MeasuredRow(
            label=row_labels[i],
            note=_note(values["note"], groups[i][0].reported_system, reported, besides[i]),
            added=added_by(groups[i][0]),
            link=link_of(groups[i][0]),
            seeds=str(values["n_seeds"]),
            problem="; ".join(f"{name}: {text}" for name, text in _problems(values)),
            status="finished" if values["n_seeds"] else groups[i][0].status,
            cells=[column.cells[i] for column in columns] if values["n_seeds"] else [],
            origin=origin_of(row_labels[i], groups[i], labels),
        )
        for i, values in enumerate(frame.to_dict("records"))
    ]
    usages = [codebook_frame(group) for group in groups]
    trainings, curve_remarks = training_charts(title, row_labels, groups, output)
    return MeasuredTable(
        title=title,
        anchor=table_anchor(table_key(records[0])),
        columns=columns,
        rows=rows,
        remarks=[
            *([DIFFERENCE] if compared else []),
            *([BESIDE] if beside else []),
            *([PROBE] if beside and probed else []),
            *([ADDED] if any(record.added for record in records) else []),
            *([REFERENCE_RULE] if any(row and row.values for row in besides) else []),
            *([remark] if remark else []),
            *sampling_remarks(records, labels),
            # The sweep has very many rows
            *([] if records[0].table == SWEEP else training_remarks(groups, row_labels, labels)),
            *sweep_remarks(frame, labels, groups),
            *remarks,
            *curve_remarks,
        ],
        pixelated=records[0].scale == "mini",
        pictures=[p for label, group in zip(row_labels, groups, strict=True) for p in _pictures(label, group, output)],
        charts=[
            *ablation_charts(title, frame, labels, row_labels, groups, reported),
            *length_charts(title, frame, labels, row_labels),
            *sweep_charts(title, frame, labels, groups),
        ],
        trainings=trainings,
        codebook_charts=codebook_charts(title, row_labels, usages),
        codebooks=[_codebook(label, u) for label, u in zip(row_labels, usages, strict=True) if len(u)],
        classes=class_rows(row_labels, groups),
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
    frame: pd.DataFrame,
    labels: dict[MetricKey, str],
    records: list[Record],
    reported: pd.DataFrame,
    besides: list[RowBeside | None],
) -> tuple[list[Column], set[str]]:
    """A column per kind of value, followed by the reported number and the difference if the protocol is the published
    one. Also returns the columns of `reported` shown this way."""
    systems = [group[0].reported_system for group in group_rows(records)]
    columns, compared = [], set()
    for key, label in labels.items():
        protocol, _, n_generated = key
        column = _metric_column(frame, label, key)
        column.floor = _floor(records, key)
        for cell, beside, value in zip(column.cells, besides, frame[label], strict=True):
            if beside and (found := beside.values.get(key)):
                cell.beside = found.text(partial(number, like=value))
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
        for head, cells in (
            (f"reported {label}", [Cell(text or "-") for text in texts]),
            ("difference", [Cell("-" if math.isnan(gap) else f"{gap:+.2f}") for gap in gaps]),
        ):
            columns.append(Column(head, cells, metric=protocol.metric, reported=True))
    return columns, compared


def _metric_column(frame: pd.DataFrame, label: str, key: MetricKey) -> Column:
    """The values of the rows, the best one marked if there can be one."""
    (protocol, _, n_generated), cells = key, list[Cell]()
    parts = [frame[f"{label} {part}"] for part in ("sd", "seeds", "low", "high")]
    for mean, spread, seeds, low, high, total in zip(frame[label], *parts, frame["n_seeds"], strict=True):
        fewer = f" (n={seeds})" if 0 < seeds < total else ""
        text = f"± {number(spread, mean)}" if math.isnan(low) else f"[{number(low, mean)}, {number(high, mean)}] {OVER}"
        cells.append(Cell(number(mean), f"{text}{fewer}" if seeds else ""))
    if may_be_best(key):
        mark_best(cells, frame[label], protocol.higher_is_better)
    head = label if protocol.metric in UNRANKED else arrow(label, protocol.higher_is_better)
    return Column(
        f"{head} (n\u00a0{n_generated})",
        cells,
        tip=f"{protocol.description}; {protocol.key}",
        anchor=protocol_anchor(key),
        metric=protocol.metric,
    )


def _floor(records: list[Record], key: MetricKey) -> str:
    """The metric between real images; a range if the seeds drew different images."""
    found = [m.floor for r in records for m in r.metrics if metric_key(m) == key]
    floors = sorted(f for f in found if f is not None)
    return "–".join(dict.fromkeys(number(f) for f in (floors[0], floors[-1]))) if floors else ""


def _codebook_column(frame: pd.DataFrame) -> list[Column]:
    usage = frame["codebook_usage"].tolist()
    if all(map(math.isnan, usage)):
        return []
    cells = [Cell("-" if math.isnan(v) else f"{100 * v:.1f}%") for v in usage]
    return [Column(arrow("codebook usage", True), mark_best(cells, usage, True))]


def _reported_columns(
    systems: list[str | None], reported: pd.DataFrame, compared: set[str], probed: bool
) -> list[Column]:
    """The reported numbers of the rows' systems, except for those shown next to a measured value."""
    headers = {name: (metric, REPORTED_LABELS[name]) for metric, name in COUNTERPARTS.items() if name not in compared}
    if probed:
        headers["linear_probe_acc"] = "linear probe accuracy", "linear probe accuracy %\u00a0↑"
    texts = {
        (metric, header): [reported_text(reported, system, name) for system in systems]
        for name, (metric, header) in headers.items()
    }
    texts["positions", "length"] = [reported_length(reported, system) for system in systems]
    return [
        Column(f"reported ImageNet {header}", [Cell(text or "-") for text in found], metric=metric, reported=True)
        for (metric, header), found in texts.items()
        if any(found)
    ]


def _note(text: str, system: str | None, reported: pd.DataFrame, beside: RowBeside | None) -> str:
    notes = [text.rstrip(".")]
    if system is not None:
        later = reported_text(reported, system, "status") == AFTER_THE_PAPER
        notes.append(f"Reported: {system}" + (f", {AFTER_THE_PAPER}" if later else ""))
    if beside is not None and beside.problem:
        notes.append(beside.problem[0].upper() + beside.problem[1:])
    return ". ".join(notes)


def _size_columns(frame: pd.DataFrame) -> list[Column]:
    known = {name: label for name, label in SIZES.items() if has_value(frame[name], frame["n_seeds"])}
    return [Column(label, [Cell(count(v)) for v in frame[name]], metric=label) for name, label in known.items()]


def _pictures(label: str, group: list[Record], output: Path) -> list[Picture]:
    """The pictures of the first seed that has any."""
    record = next((r for r in group if r.pictures), None)
    if record is None:
        return []
    return [
        Picture(
            row=label,
            anchor=row_anchor(record),
            caption=caption,
            seed=record.seed,
            path=path,
            data=read_picture(output, path, record.picture_sha256.get(path)) or b"",
        )
        for caption, path in record.pictures.items()
    ]


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


def class_rows(labels: list[str], groups: list[list[Record]]) -> list[dict[str, Any]]:
    """The classes of every row that has samples by class, worst first: name and mean accuracy over the seeds as text.

    Args:
        labels: of the rows.
        groups: their records, one per seed.
    """
    rows = []
    for label, group in zip(labels, groups, strict=True):
        values: dict[str, list[float]] = {}
        for name, value in (item for record in group for item in record.class_accuracies.items()):
            values.setdefault(name, []).append(value)
        means = sorted((statistics.fmean(found), name) for name, found in values.items())
        if means:
            classes = [(name, f"{100 * mean:.1f}%") for mean, name in means[:LISTED]]
            rows.append({"row": label, "classes": classes, "more": max(0, len(means) - LISTED)})
    return rows
