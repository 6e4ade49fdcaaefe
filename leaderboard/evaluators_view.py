"""The report's section on evaluators: what the method alone does to the numbers of the same images."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import pandas as pd

from leaderboard.cells import number, signed
from leaderboard.record import Metric, Protocol, Record
from leaderboard.tables import MetricKey, added_by, config_key, group_rows, group_tables, metric_key, reasons

EVALUATORS = "evaluators"
"""The table of the records that are shown here, and nowhere else in the report but under provenance."""
ROUNDING = 1e-4  # relative: programs that do the same differ by less
SENTENCE = (
    "The same images, measured by the suite's protocol (first line of each metric) and in other ways. Every line has a "
    "protocol of its own, so that no two values compare models, none is best, and no claim is decided by them: a "
    "difference shows how far the method alone moves the number."
)


@dataclass
class VariantRow:
    """One way to measure the images; formatted as text, over all seeds."""

    metric: str
    group: str
    how: str
    """what differs from the suite's protocol"""
    value: str
    spread: str
    difference: str
    """from the value by the suite's protocol; "" for that value itself"""
    percent: str
    n: str
    n_real: str
    protocol: Protocol


@dataclass
class EvaluatorTable:
    """All ways to measure the images of one row."""

    title: str
    note: str
    seeds: str
    problem: str
    """which seeds failed or were not run, and why"""
    extractors: list[str]
    rows: list[VariantRow]
    notes: list[str]
    """what was not measured, and why"""


def split_evaluators(records: list[Record]) -> tuple[list[Record], list[Record]]:
    """The records of this section, and all others."""
    return [r for r in records if r.table == EVALUATORS], [r for r in records if r.table != EVALUATORS]


def evaluator_tables(records: list[Record]) -> list[EvaluatorTable]:
    """One table per row, scale, budget and data set; `records` are those of the table `EVALUATORS`."""
    tables = []
    for members in group_tables(records).values():
        groups = group_rows(members)
        twice = [group[0].row for group in groups]
        for group in groups:
            first = group[0]
            config = f" (config {config_key(first)})" if twice.count(first.row) > 1 else ""
            added = f", {added_by(first)}" if first.added else ""
            title = f"{first.label}{config}{added} · {first.place} · {first.dataset.name}"
            tables.append(_table(title, group))
    return tables


def _table(title: str, records: list[Record]) -> EvaluatorTable:
    finished = [r for r in records if r.status == "finished"]
    problems = [f"{status}: {text}" for status in ("failed", "not run") if (text := reasons(records, status))]
    rows = _rows(finished)
    protocols = [row.protocol for row in rows]
    return EvaluatorTable(
        title=title,
        note=records[0].note,
        seeds=" ".join(str(r.seed) for r in finished),
        problem="; ".join(problems),
        extractors=list(
            dict.fromkeys(f"{p.extractor}, sha256 {p.extractor_sha256}" for p in protocols if p.extractor is not None)
        ),
        rows=rows,
        notes=list(dict.fromkeys(note for r in finished for note in r.notes)),
    )


def _rows(records: list[Record]) -> list[VariantRow]:
    """The suite's value of every metric, each followed by its variants; different protocols are never averaged."""
    keys = list(dict.fromkeys(metric_key(m) for r in records for m in r.metrics))
    usual = list(dict.fromkeys(protocol.usual_name for protocol, _, _ in keys))
    order = sorted(keys, key=lambda key: (usual.index(key[0].usual_name), key[0].variant is not None))
    return [_row(key, [{metric_key(m): m for m in r.metrics} for r in records]) for key in order]


def _row(key: MetricKey, by_seed: list[dict[MetricKey, Metric]]) -> VariantRow:
    protocol, n_real, n_generated = key
    found = [metrics[key] for metrics in by_seed if key in metrics]
    pairs = [
        (metrics[key].value, usual.value)
        for metrics in by_seed
        if key in metrics
        for usual in metrics.values()
        if usual.protocol.name == protocol.usual_name
    ]
    mean = statistics.fmean(metric.value for metric in found)
    gap = statistics.fmean(a - b for a, b in pairs) if pairs else math.nan
    base = statistics.fmean(b for _, b in pairs) if pairs else math.nan
    group, how = protocol.variant or ("", "the suite's protocol")
    is_shown = bool(group) and not math.isnan(gap)
    is_equal = abs(gap) <= ROUNDING * abs(base)
    return VariantRow(
        metric=protocol.usual_name,
        group=group,
        how=how,
        value=number(mean),
        spread=f"± {number(statistics.stdev(m.value for m in found), mean)}" if len(found) > 1 else "",
        difference="" if not is_shown else "equal up to rounding" if is_equal else signed(gap, base),
        percent=f"{100 * gap / base:+.1f}%" if is_shown and not is_equal and base > 0 else "",
        n=f"{n_generated:,}",
        n_real=f"{n_real:,}" if n_real else "",
        protocol=protocol,
    )


def evaluators_frame(records: list[Record]) -> pd.DataFrame:
    """One line per value: row, data and seed, the metric and how it was measured, with protocol and provenance."""
    lines = []
    for record in (r for r in records if r.status == "finished"):
        suite = {m.protocol.name: m.value for m in record.metrics if m.protocol.variant is None}
        for metric in record.metrics:
            protocol = metric.protocol
            group, how = protocol.variant or ("", "")
            base = suite.get(protocol.usual_name, math.nan)
            lines.append(
                {
                    "row": record.row, "label": record.label, "scale": record.scale, "budget": record.budget,
                    "dataset": record.dataset.name, "dataset_sha256": record.dataset.sha256, "seed": record.seed,
                    "metric": protocol.usual_name, "group": group, "variant": how, "value": metric.value,
                    "difference": metric.value - base if group else math.nan,
                    "n_generated": metric.n_generated, "n_real": metric.n_real, "reference": protocol.reference,
                    "evaluator": protocol.evaluator, "extractor": protocol.extractor,
                    "extractor_sha256": protocol.extractor_sha256, "description": protocol.description,
                    "record": record.name, "commit": record.run.git_commit,
                }
            )  # fmt: skip
    return pd.DataFrame(lines)
