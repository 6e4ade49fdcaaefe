"""Where the numbers of a row come from: its records, and every value by seed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from leaderboard.cells import number
from leaderboard.links import protocol_anchor, record_anchor, row_anchor
from leaderboard.record import Metric, Record
from leaderboard.tables import MetricKey, metric_key


@dataclass(frozen=True)
class Values:
    """One kind of value of a row, as text."""

    label: str
    protocol: str
    anchor: str
    """of its protocol"""
    n_real: int
    n_generated: int
    mean: float
    spread: str
    """standard deviation over seeds, or the interval over images of a single seed; "" without either"""
    floor: str
    by_seed: tuple[str, ...]
    """in the order of the finished records; "" for a seed without it"""


@dataclass(frozen=True)
class Origin:
    """What a row's panel shows."""

    anchor: str
    label: str
    records: list[Record]
    seeds: tuple[int, ...]
    """of the finished records"""
    values: list[Values]

    @property
    def anchors(self) -> list[str]:
        """Of the records."""
        return [record_anchor(record) for record in self.records]


def origin_of(label: str, group: list[Record], labels: dict[MetricKey, str]) -> Origin:
    """The origin of a row.

    Args:
        group: its records, one per seed.
        labels: of the table's kinds of values.
    """
    finished = [record for record in group if record.status == "finished"]
    metrics = [{metric_key(metric): metric for metric in record.metrics} for record in finished]
    values = [
        _values(text, key, [found.get(key) for found in metrics])
        for key, text in labels.items()
        if any(key in found for found in metrics)
    ]
    return Origin(row_anchor(group[0]), label, group, tuple(record.seed for record in finished), values)


def _values(label: str, key: MetricKey, metrics: list[Metric | None]) -> Values:
    protocol, n_real, n_generated = key
    known = [metric for metric in metrics if metric is not None]
    found = [metric.value for metric in known]
    mean, interval = statistics.fmean(found), known[0].interval if len(known) == 1 else None
    spread = f"± {number(statistics.stdev(found), mean)}" if len(found) > 1 else ""
    if interval:
        spread = f"[{number(interval[0], mean)}, {number(interval[1], mean)}] over images"
    return Values(
        label, protocol.key, protocol_anchor(key), n_real, n_generated, mean, spread,
        next((number(m.floor) for m in known if m.floor is not None), ""),
        tuple("" if metric is None else f"{metric.value:.6g}" for metric in metrics),
    )  # fmt: skip
