"""This run beside the reference: where a row's values lie among those of the reference's seeds, in words."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from leaderboard.record import Metric, Record
from leaderboard.reference_files import extractor_hash, other_data, read_packed, record_files, reference_records
from leaderboard.significance import MIN_SEEDS, PREDICTED, prediction_interval
from leaderboard.store import RecordError
from leaderboard.tables import MetricKey, config_key, metric_key
from leaderboard.text import differences_text
from leaderboard.validate import METRICS

State = Literal["equal", "inside", "above", "below", "other extractor", "other protocol", "spread not known"]
OUTSIDE: tuple[State, ...] = ("above", "below")
RULE = (
    "Reference: the seeds that ship with the project, for values of the same row, configuration, data and protocol. "
    f"Inside: the mean of this run's seeds lies in the {PREDICTED:.0%} prediction interval of the reference's, where "
    "one of a hundred values of an intact run does not; equal: every seed has the reference's very value. Values "
    "of another proxy extractor than the reference's are not compared."
)


@dataclass(frozen=True)
class Beside:
    """A row's value beside the reference's: `values` of its seeds, and the interval from `low` to `high`, if there is
    one."""

    state: State
    values: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def text(self, number: Callable[[float], str]) -> str:
        """E.g. "reference 2.61 ± 0.12: inside", with numbers written by `number`."""
        if not self.values:
            return f"reference: {self.state}"
        spread = f" ± {number(statistics.stdev(self.values))}" if len(self.values) > 1 else ""
        return f"reference {number(statistics.fmean(self.values))}{spread}: {self.state}"


@dataclass(frozen=True)
class RowBeside:
    """A row beside the reference, by kind of value, or why it cannot be compared."""

    values: dict[MetricKey, Beside] = field(default_factory=dict)
    problem: str = ""

    @property
    def line(self) -> str:
        """One line, e.g. "5 values as in the reference: 4 inside its spread, 1 above it (PSNR 24.1, ...)"."""
        if self.problem:
            return self.problem
        outside = [
            f"{key[0].name} {beside.state} {beside.low:.4g} to {beside.high:.4g}"
            for key, beside in self.values.items()
            if beside.state in OUTSIDE
        ]
        numbers = Counter("outside" if b.state in OUTSIDE else b.state for b in self.values.values())
        names = {
            "equal": "equal to the reference",
            "inside": "inside the reference's spread",
            "outside": f"OUTSIDE it ({'; '.join(outside)})",
            "other extractor": "not compared, by another proxy extractor",
            "other protocol": "not compared, by another protocol",
            "spread not known": "not compared, as the reference's seeds are too few or all agree",
        }
        return ", ".join(f"{numbers[state]} {text}" for state, text in names.items() if numbers[state])


def row_beside(group: list[Record], reference: list[Record]) -> RowBeside | None:
    """A row beside the reference; None if the reference lacks it, or they have no kind of value in common.

    Args:
        group: its records, one per seed.
        reference: all records of the reference's table.
    """
    finished = [record for record in group if record.status == "finished" and record.added is None]
    others = [record for record in reference if finished and record.row == finished[0].row]
    if not finished or not others:
        return None
    if not (same := [record for record in others if config_key(record) == config_key(finished[0])]):
        found = differences_text(others[0].config, finished[0].config)
        return RowBeside(problem=f"other settings than the reference: {found}")
    keys = dict.fromkeys(metric_key(metric) for record in finished for metric in record.metrics)
    values = {key: value for key in keys if (value := _beside(key, finished, same)) is not None}
    return RowBeside(values) if values else None


def _beside(key: MetricKey, group: list[Record], reference: list[Record]) -> Beside | None:
    """One kind of value; None if the reference has no metric of this name."""
    here, there = _values(group, key), _values(reference, key)
    if there:
        numbers = tuple(there.values())
        if all(there.get(seed) == value for seed, value in here.items()):
            return Beside("equal", numbers)
        if len(numbers) < MIN_SEEDS or len(set(numbers)) == 1:  # as shares that are 1 for every seed
            return Beside("spread not known", numbers)
        low, high = prediction_interval(numbers, len(here))
        mean = statistics.fmean(here.values())
        return Beside("below" if mean < low else "above" if mean > high else "inside", numbers, low, high)
    named = [metric_key(m) for r in reference for m in r.metrics if m.protocol.name == key[0].name]
    if not named:
        return None
    other = any(_without_hash(found) == _without_hash(key) for found in named)
    return Beside("other extractor" if other else "other protocol")


def _values(records: list[Record], key: MetricKey) -> dict[int, float]:
    return {r.seed: m.value for r in records for m in r.metrics if metric_key(m) == key}


def _without_hash(key: MetricKey) -> MetricKey:
    protocol, n_real, n_generated = key
    return protocol.model_copy(update={"extractor_sha256": None}), n_real, n_generated


def table_beside(groups: list[list[Record]]) -> tuple[list[RowBeside | None], str]:
    """The rows of one table beside the reference, and a remark if they cannot be compared ("" if they can)."""
    first = groups[0][0]
    try:
        reference = reference_records(first.table, first.scale, first.budget, first.dataset)
        return [row_beside(group, reference) for group in groups], other_data(first.scale, first.dataset)
    except RecordError as error:
        return [None] * len(groups), f"Not compared with the reference: {error}"


def stale_references(code: Mapping[str, str]) -> list[str]:
    """Lines on the reference's files that other code has made, or whose extractors or protocols are out of date.

    Args:
        code: sha256 of the current code by part, as in `Run.code`.
    """
    if not record_files():
        return ["there is no reference yet"]
    lines = []
    for path in record_files():
        records = read_packed(path)
        parts = [part for part in code if any((r.run.code or {}).get(part) != code[part] for r in records)]
        if parts:
            commits = ", ".join(sorted({(r.run.git_commit or "an unknown commit")[:12] for r in records}))
            names = ", ".join(f"{part}/" for part in parts)
            lines.append(f"{path.name}: made at {commits}; the code of {names} has changed since")
        shipped = extractor_hash(path.stem.partition("-")[2])
        protocols = [m.protocol for r in records for m in r.metrics]
        if shipped and any(p.is_proxy and p.extractor_sha256 != shipped for p in protocols):
            lines.append(f"{path.name}: measured with a proxy extractor other than the one that ships ({shipped[:8]})")
        old = sorted({_outdated(m) for r in records for m in r.metrics} - {""})
        lines += [f"{path.name}: {text}" for text in old]
    return lines


def _outdated(metric: Metric) -> str:
    protocol = metric.protocol
    known = METRICS.get(protocol.usual_metric)
    if known is None or known.version == protocol.version:
        return ""
    return f"{protocol.name} has version {protocol.version} of its protocol, the code has {known.version}"
