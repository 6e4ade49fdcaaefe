"""Records and reported numbers as pandas frames. Values that are not comparable share no row, column or table."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pandas as pd

from leaderboard.record import Metric, Protocol, Record
from leaderboard.reported import OPTIONAL_NUMBERS, OPTIONAL_TEXT, REPORTED_NUMBERS
from leaderboard.store import RecordError
from leaderboard.text import without_seed

# Two values share a column only if these are equal: under the same protocol, FID still depends on the number of images.
MetricKey = tuple[Protocol, int, int]
TableKey = tuple[str, str, str, str, str]

SIZE_COLUMNS = ("positions", "tokens", "steps", "bits", "generator_parameters", "tokenizer_parameters")
COST_COLUMNS = (
    "tokenizer_train_seconds",
    "generator_train_seconds",
    "evaluation_seconds",
    "tokenizer_step_seconds",
    "generator_step_seconds",
    "samples_per_second",
    "memory_mib",
    "peak_memory_mib",
)
BUSY = "while other work ran"
NOT_TIMED = "not timed alone"
LITE_PREFIX, LITE_IMAGES = "lite0-", 5_000
UNRANKED = {"training neighbour ratio"}  # neither copies of training images nor images unlike any are best
IDENTITY_COLUMNS = (
    "table", "scale", "budget", "dataset", "dataset_sha256", "row", "label", "note", "config", "seeds", "n_seeds",
    "failed", "not_run",
)  # fmt: skip
METRIC_PARTS = ("sd", "seeds", "low", "high", "n_real", "n_generated", "floor")  # in addition to the mean
PROVENANCE_COLUMNS = ("records", "commit", "config_sha256", "started", "hardware", "protocols", "added")
_NAMES = {
    "gfid": "gFID", "is": "IS", "tokenizer_rfid": "rFID", "tokenizer_pfid": "pFID",
    "linear_probe_acc": "linear probe accuracy",
}  # fmt: skip
REPORTED_COLUMNS = {
    name: f"{_NAMES.get(name, name)} (reported)"
    for name in (*REPORTED_NUMBERS[1:], *OPTIONAL_NUMBERS, "tokens", "codebook", "cfg")
}
OTHER_COLUMNS = (
    "origin", "codebook_usage", "speed", "kind", "year", "arxiv", "source", "verified", *PROVENANCE_COLUMNS,
    *REPORTED_COLUMNS.values(),
)  # fmt: skip


def metric_key(metric: Metric) -> MetricKey:
    """What must be equal for two values to be aggregated or compared."""
    return metric.protocol, metric.n_real, metric.n_generated


def may_be_best(key: MetricKey) -> bool:
    """Whether a best value is marked: not of `UNRANKED` metrics, nor of EfficientNet-Lite0's 1280 features with few
    images on either side."""
    protocol, n_real, n_generated = key
    if protocol.metric in UNRANKED:
        return False
    return not protocol.name.startswith(LITE_PREFIX) or min(n for n in (n_real, n_generated) if n) >= LITE_IMAGES


def metric_labels(records: list[Record]) -> dict[MetricKey, str]:
    """Column label of every kind of value in `records`, in order of first appearance.

    The label is the metric's name; if several protocols share a name, their differences are added in brackets. Labels
    that would collide with another column get a number.
    """
    keys = list(dict.fromkeys(metric_key(m) for r in records if r.status == "finished" for m in r.metrics))
    labels, taken = {}, {*IDENTITY_COLUMNS, *SIZE_COLUMNS, *COST_COLUMNS, *OTHER_COLUMNS}
    for key in keys:
        same_name = [_parts(other) for other in keys if other[0].name == key[0].name]
        differing = [part for i, part in enumerate(_parts(key)) if len({other[i] for other in same_name}) > 1]
        label = name = key[0].name + (f" [{', '.join(differing)}]" if differing else "")
        number = 1
        while taken.intersection(_columns(label)):
            label, number = f"{name} ({number + 1})", number + 1
        labels[key] = label
        taken.update(_columns(label))
    return labels


def _columns(label: str) -> list[str]:
    """The columns that a kind of value fills."""
    return [label, *(f"{label} {part}" for part in METRIC_PARTS)]


def _parts(key: MetricKey) -> tuple[str, ...]:
    protocol, n_real, n_generated = key
    return (
        f"v{protocol.version}",
        protocol.reference,
        f"{protocol.extractor or 'no extractor'}:{(protocol.extractor_sha256 or '')[:8]}",
        protocol.evaluator,
        f"{n_generated} vs {n_real} images",
        protocol.description,
        "higher is better" if protocol.higher_is_better else "lower is better",
    )


def table_key(record: Record) -> TableKey:
    """Records share a table if table, scale, budget and data set (name and content) are equal."""
    return record.table, record.scale, record.budget, record.dataset.name, record.dataset.sha256


def config_key(record: Record) -> str:
    """Short hash of the configuration without its seeds: only runs that differ in nothing else form one row."""
    text = json.dumps(without_seed(record.config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def group_rows(records: list[Record]) -> list[list[Record]]:
    """The records of each row (one per seed), in order of first appearance; added rows never mix with ours."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(
            (*table_key(record), record.row, config_key(record), added_by(record), link_of(record)), []
        ).append(record)
    return list(groups.values())


def added_by(record: Record) -> str:
    """Whose row it is; "" for rows that were made here."""
    return f"added by {record.added.author or 'unknown'}" if record.added else ""


def link_of(record: Record) -> str:
    """Web address of an added row; "" if it has none."""
    return (record.added and record.added.link) or ""


def group_tables(records: list[Record]) -> dict[TableKey, list[Record]]:
    """The records of each table, in order of first appearance."""
    groups: dict[TableKey, list[Record]] = {}
    for record in records:
        groups.setdefault(table_key(record), []).append(record)
    return groups


def codebook_frame(records: list[Record]) -> pd.DataFrame:
    """Codebook usage and perplexity per branch and scale, averaged over the given seeds of one row."""
    rows = [usage.model_dump() for r in records if r.status == "finished" for usage in r.codebook_usage]
    if not rows:
        return pd.DataFrame(columns=["branch", "position", "scale", "used", "perplexity"])
    groups = pd.DataFrame(rows).groupby(["branch", "position", "scale"], as_index=False)
    return pd.DataFrame(groups[["used", "perplexity"]].mean())


def measured_frame(records: list[Record]) -> pd.DataFrame:
    """One row per table, row, scale, budget and data set, aggregated over seeds.

    Each metric has the columns `<label>` (mean), `<label> sd` (ddof=1, NaN for one seed), `<label> seeds`,
    `<label> low` and `<label> high` (interval over images, for one seed only), `<label> n_real`, `<label> n_generated`
    and `<label> floor`. Records that failed or were not run appear only in `failed` and `not_run`. `codebook_usage` is
    the mean share over all branches and scales. `speed` says how time and memory were measured.
    """
    labels = metric_labels(records)
    rows = []
    for group in group_rows(records):
        first, finished = group[0], [r for r in group if r.status == "finished"]
        values = (
            *table_key(first), first.row, first.label, first.note, config_key(first),
            " ".join(str(r.seed) for r in finished), len(finished),
            reasons(group, "failed"), reasons(group, "not run"),
        )  # fmt: skip
        row: dict[str, Any] = dict(zip(IDENTITY_COLUMNS, values, strict=True))
        for key, label in labels.items():
            row |= _aggregate(label, finished, key)
        row["codebook_usage"] = codebook_frame(finished)["used"].astype(float).mean()
        for name in SIZE_COLUMNS:
            row[name] = _mean([getattr(r.size, name) for r in finished if r.size])
        for name in COST_COLUMNS:
            row[name] = _mean([getattr(r.cost, name) for r in finished if r.cost])
        row["speed"] = how_timed(finished)
        rows.append(row)
    return pd.DataFrame(rows)


def how_timed(records: list[Record]) -> str:
    """How the speed and memory of a row were measured: "alone", `BUSY` or `NOT_TIMED` (earlier records, or it is not
    known) in at least one of its seeds; "" without any."""
    found = {record.cost.alone for record in records if record.cost}
    if False in found:
        return BUSY
    return NOT_TIMED if None in found else "alone" if found else ""


def reasons(group: list[Record], status: str) -> str:
    """Why the records of this status have no numbers, each reason once with its seeds; "" if there are none."""
    seeds: dict[str, list[int]] = {}
    for record in group:
        if record.status == status:
            seeds.setdefault(record.reason or "no reason given", []).append(record.seed)
    return "; ".join(
        f"seed{'s' * (len(found) > 1)} {' '.join(map(str, found))}: {reason}" for reason, found in seeds.items()
    )


def _mean(values: list[float | None]) -> float:
    return pd.Series(values, dtype=float).mean()


def _aggregate(label: str, finished: list[Record], key: MetricKey) -> dict[str, Any]:
    found = [(r.name, m) for r in finished for m in r.metrics if metric_key(m) == key]
    names = [name for name, _ in found]
    if len(set(names)) < len(names):  # one seed would count twice
        raise RecordError(f"a record among {', '.join(sorted(set(names)))} carries {key[0].key} twice; repeat the run")
    values = pd.Series([m.value for _, m in found], dtype=float)
    low, high = (found[0][1].interval if len(found) == 1 else None) or (math.nan, math.nan)
    return {
        label: values.mean(),
        f"{label} sd": values.std(),
        f"{label} seeds": len(found),
        f"{label} low": low,
        f"{label} high": high,
        f"{label} n_real": key[1] if found else None,
        f"{label} n_generated": key[2] if found else None,
        f"{label} floor": _mean([m.floor for _, m in found if m.floor is not None]),
    }


def leaderboard_frame(records: list[Record], reported: pd.DataFrame) -> pd.DataFrame:
    """Measured and reported rows in one flat frame: identity, then metrics, then provenance.

    Names of columns with reported numbers end in ` (reported)`, so that they never share one with measured values.
    """
    measured = measured_frame(records)
    groups = group_rows(records)
    for name, value in {
        "records": lambda r: r.name,
        "commit": lambda r: f"{r.run.git_commit or 'unknown'}{' (modified)' if r.run.git_dirty else ''}",
        "config_sha256": lambda r: r.config_sha256,
        "started": lambda r: r.run.started,
        "hardware": lambda r: r.run.gpu or r.run.cpu,
        "protocols": lambda r: " ".join(m.protocol.key for m in r.metrics),
        "added": lambda r: ", ".join(filter(None, (added_by(r), link_of(r)))),
    }.items():
        measured[name] = ["; ".join(dict.fromkeys(value(r) for r in group)) for group in groups]
    measured.insert(0, "origin", ["added" if group[0].added else "measured" for group in groups])
    other = reported.rename(columns={"system": "label"} | REPORTED_COLUMNS)
    other = other.drop(columns=["family", *OPTIONAL_TEXT]).assign(origin="reported")
    frame = pd.concat([measured, other], ignore_index=True)
    identity = ["origin", *IDENTITY_COLUMNS, "kind", "year"]
    provenance = [*PROVENANCE_COLUMNS, "arxiv", "source", "verified"]
    metrics = [column for column in frame if column not in {*identity, *provenance}]
    return frame.loc[:, identity + metrics + provenance]
