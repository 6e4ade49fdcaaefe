"""What the report's two templates show: numbers as text, best values marked, nothing left to compute."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from leaderboard.plots import Point, length_plot
from leaderboard.record import Record
from leaderboard.tables import MetricKey, codebook_frame, group_rows, group_tables, measured_frame, metric_labels

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
REPORTED = {
    "system": "system",
    "kind": "kind",
    "year": "year",
    "arxiv": "arXiv",
    "tokenizer_rfid": "tokenizer rFID\u00a0↓",
    "tokens": "tokens",
    "codebook": "codebook",
    "params_m": "parameters (M)",
    "steps": "steps",
    "gfid": "gFID\u00a0↓",
    "is": "IS\u00a0↑",
    "precision": "precision\u00a0↑",
    "recall": "recall\u00a0↑",
    "cfg": "guidance",
    "verified": "verified",
    "source": "source",
}
BESIDE = (
    "Reported ImageNet columns: Inception metrics on ImageNet 256×256 that the papers report for the system named in "
    "the row. They have other units than the proxy columns; only the order of the rows can be compared."
)
DECIMALS = {"tokenizer_rfid": 2, "gfid": 2, "is": 1, "precision": 2, "recall": 2}


@dataclass
class Cell:
    """One number of a table."""

    text: str
    spread: str = ""
    best: bool = False


@dataclass
class Row:
    """One row of a measured table; `cells` is empty for a row of which no seed finished."""

    label: str
    note: str
    seeds: str
    failed: str
    cells: list[Cell]


@dataclass
class Table:
    """One measured table with the pictures and plots that belong to it."""

    title: str
    columns: list[str]
    rows: list[Row]
    floors: list[str]
    remarks: list[str]
    pixelated: bool
    pictures: list[dict[str, str]] = field(default_factory=list)
    plots: list[dict[str, str]] = field(default_factory=list)
    codebooks: list[dict] = field(default_factory=list)


def number(value: float, like: float | None = None) -> str:
    """A measured value with the digits worth reading, or with as many as `like` has; "-" where there is none."""
    if math.isnan(value):
        return "-"
    size = abs(value if like is None else like)
    return f"{value:.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3}f}"


def count(value: float) -> str:
    """A whole number with its thousands apart; "-" where there is none."""
    return "-" if math.isnan(value) else f"{value:,.0f}"


def measured_tables(records: list[Record], output: Path, reported: pd.DataFrame) -> list[Table]:
    """One table per table, scale and data set; picture paths are relative to `output`.

    Rows with a counterpart among the `reported` systems show its numbers too, in columns of their own.
    """
    groups = group_tables(records)
    names = [key[:3] for key in groups]
    tables = []
    for key, members in groups.items():
        name, scale, dataset, content = key
        # Equal names with other images inside are other data sets.
        suffix = f" (images {content[:8]})" if names.count(key[:3]) > 1 else ""
        tables.append(_table(f"{name} · {scale} · {dataset}{suffix}", members, output, reported))
    return tables


def _table(title: str, records: list[Record], output: Path, reported: pd.DataFrame) -> Table:
    frame, labels, groups = measured_frame(records), metric_labels(records), group_rows(records)
    row_labels = _row_labels(frame)
    runs = {(r.run.cpu, r.run.gpu, r.run.threads, r.cost.sample_batch) for r in records if r.cost}
    columns: list[tuple[str, list[Cell]]] = []
    for (protocol, _, n_generated), label in labels.items():
        header, cells = _metric_column(frame, label, protocol.higher_is_better)
        columns.append((f"{header} (n\u00a0{n_generated})", cells))
    if frame["codebook_usage"].notna().any():
        cells = [Cell("-" if math.isnan(v) else f"{100 * v:.1f} %") for v in frame["codebook_usage"]]
        columns.append((_arrow("codebook usage", True), _mark_best(cells, frame["codebook_usage"], True)))
    beside = _reported_columns([group[0].reported_system for group in groups], reported)
    columns += beside
    columns += [(label, [Cell(count(v)) for v in frame[name]]) for name, label in SIZES.items()]
    shared = [any(r.cost and r.cost.tokenizer_shared for r in group) for group in groups]
    for name, (label, higher) in COSTS.items():
        cells = [Cell(number(v)) for v in frame[name]]
        if name == "tokenizer_train_seconds":
            for cell, is_shared in zip(cells, shared, strict=True):
                cell.text += "*" if is_shared else ""
        elif len(runs) == 1:  # times and memory of different machines are no contest
            label, cells = _arrow(label, higher), _mark_best(cells, frame[name], higher)
        columns.append((label, cells))
    rows = [
        Row(
            label=row_labels[i],
            note=values["note"] + (f". Reported: {system}" if (system := groups[i][0].reported_system) else ""),
            seeds=str(values["n_seeds"]),
            failed=values["failed"],
            cells=[cells[i] for _, cells in columns] if values["n_seeds"] else [],
        )
        for i, values in enumerate(frame.to_dict("records"))
    ]
    remarks = ["* the tokenizer was trained once for several rows"] if any(shared) else []
    if beside:
        remarks.append(BESIDE)
    if len(runs) > 1:
        remarks.append("no best value is marked for time and memory: the rows ran on different machines or batch sizes")
    usages = [codebook_frame(group) for group in groups]
    return Table(
        title=title,
        columns=[label for label, _ in columns],
        rows=rows,
        floors=_floors(records, labels, len(columns)),
        remarks=remarks,
        pixelated=records[0].scale == "mini",
        pictures=[p for label, group in zip(row_labels, groups, strict=True) for p in _pictures(label, group, output)],
        plots=_plots(title, frame, labels, row_labels),
        codebooks=[_codebook(label, u) for label, u in zip(row_labels, usages, strict=True) if len(u)],
    )


def _row_labels(frame: pd.DataFrame) -> list[str]:
    """Labels of the rows; where two rows share one, their configurations tell them apart."""
    twice = frame["label"].duplicated(keep=False)
    return [
        f"{label} (config {config})" if again else label
        for label, config, again in zip(frame["label"], frame["config"], twice, strict=True)
    ]


def _reported_columns(systems: list[str | None], reported: pd.DataFrame) -> list[tuple[str, list[Cell]]]:
    """What the papers report for the rows' counterparts; none if no row has one among the reported systems."""
    known = reported.drop_duplicates("system").set_index("system")
    if not set(systems) & set(known.index):
        return []
    columns = []
    for name in ("tokenizer_rfid", "gfid", "is"):
        values = [known.at[system, name] if system in known.index else math.nan for system in systems]
        cells = [Cell("-" if math.isnan(value) else _printed(value, DECIMALS[name])) for value in values]
        columns.append((f"reported ImageNet {REPORTED[name]}", cells))
    return columns


def _arrow(label: str, higher_is_better: bool) -> str:
    return f"{label}\u00a0{'↑' if higher_is_better else '↓'}"  # no line break before the arrow


def _metric_column(frame: pd.DataFrame, label: str, higher_is_better: bool) -> tuple[str, list[Cell]]:
    cells = []
    for mean, spread, seeds, total in zip(
        frame[label], frame[f"{label} sd"], frame[f"{label} seeds"], frame["n_seeds"], strict=True
    ):
        fewer = f" (n={seeds})" if 0 < seeds < total else ""
        cells.append(Cell(number(mean), f"± {number(spread, mean)}{fewer}" if seeds else ""))
    return _arrow(label, higher_is_better), _mark_best(cells, frame[label], higher_is_better)


def _mark_best(cells: list[Cell], values: pd.Series, higher_is_better: bool) -> list[Cell]:
    """Mark the best value and what reads the same, unless all values do."""
    if len({cell.text for cell, value in zip(cells, values, strict=True) if not math.isnan(value)}) > 1:
        best = cells[values.idxmax() if higher_is_better else values.idxmin()].text
        for cell in cells:
            cell.best = cell.text == best
    return cells


def _floors(records: list[Record], labels: dict[MetricKey, str], n_columns: int) -> list[str]:
    """Text of the row of real images, one per column; [] where no metric has a floor."""
    texts = []
    for key in labels:
        found = [m.floor for r in records for m in r.metrics if (m.protocol, m.n_real, m.n_generated) == key]
        floors = sorted(f for f in found if f is not None)
        # More than one where the seeds drew different images.
        texts.append("–".join(dict.fromkeys(number(f) for f in (floors[0], floors[-1]))) if floors else "")
    return texts + [""] * (n_columns - len(texts)) if any(texts) else []


def _pictures(label: str, group: list[Record], output: Path) -> list[dict[str, str]]:
    """The pictures of the first seed that has any."""
    record = next((r for r in group if r.pictures), None)
    if record is None:
        return []
    return [
        {"row": label, "caption": caption, "seed": str(record.seed), "path": path, "data": _embedded(output, path)}
        for caption, path in record.pictures.items()
    ]


def _embedded(output: Path, path: str) -> str:
    """The PNG as base64; "" where the file is missing, no PNG or outside the output folder."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        return ""
    try:
        content = (output / path).read_bytes()
    except OSError:
        return ""
    return base64.b64encode(content).decode() if content.startswith(b"\x89PNG\r\n") else ""


def _plots(title: str, frame: pd.DataFrame, labels: dict[MetricKey, str], rows: list[str]) -> list[dict[str, str]]:
    plots = []
    for (protocol, _, _), label in labels.items():
        if "gfid" not in protocol.name.lower():
            continue
        values = zip(rows, frame["positions"], frame[label], frame[f"{label} sd"], strict=True)
        points = [Point(r, x, y, None if math.isnan(s) else s) for r, x, y, s in values if not math.isnan(x + y)]
        if len(points) > 1:
            svg = length_plot(
                points, "sequence length of the generator (positions)", protocol.key.replace("/", "\n", 1)
            )
            plots.append({"title": f"{title}: {label} against sequence length", "svg": svg})
    return plots


def _codebook(label: str, usage: pd.DataFrame) -> dict:
    """Branches x scales of one row: share used in per cent and perplexity, as text."""
    places = usage[["position", "scale"]].drop_duplicates().sort_values(["position", "scale"])
    columns = list(places.itertuples(index=False, name=None))
    cells = {
        (u.branch, u.position, u.scale): (f"{100 * u.used:.0f}", f"{u.perplexity:.1f}") for u in usage.itertuples()
    }
    branches = sorted(usage["branch"].unique())
    return {
        "row": label,
        "scales": [f"{scale}×{scale}" for _, scale in columns],
        "branches": [(int(b), [cells.get((b, *column), ("", "")) for column in columns]) for b in branches],
    }


def reported_rows(reported: pd.DataFrame) -> list[dict[str, str]]:
    """The reported rows as text, with the digits they were printed with; "" where nothing was found."""
    rows = reported.astype(object).to_dict("records")
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float):
                row[name] = "" if math.isnan(value) else _printed(value, DECIMALS.get(name, 0))
    return rows


def _printed(value: float, decimals: int) -> str:
    """All digits of `value` and at least `decimals` of them after the point."""
    fixed = f"{value:.{decimals}f}"
    return fixed if float(fixed) == value else repr(value)
