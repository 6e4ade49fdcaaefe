"""What the records say about the paper's claims, at every scale and on every data set by itself."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from leaderboard.claims import CLAIMS, Claim, Direction, Pair
from leaderboard.record import SCALES, Record
from leaderboard.reported import COUNTERPARTS, reported_text
from leaderboard.store import RecordError
from leaderboard.tables import MetricKey, config_key, metric_key

MIN_SEEDS = 3
STANDARD_ERRORS = 2
RULE = (
    "A claim holds if the difference between its two rows, averaged over pairs of equal seeds, has the claimed sign "
    f"and exceeds {STANDARD_ERRORS} standard errors (spread / √seeds), with at least {MIN_SEEDS} seeds; it does not "
    "hold if the opposite sign passes the same test; otherwise it is undecided. Sequence lengths are exact: one seed "
    "decides."
)
PROXIED = ("rFID", "gFID")  # metrics of the published protocols, which scales below full replace by proxies

Verdict = Literal["holds", "does not hold", "undecided", "not comparable", "not run"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "undecided", "not comparable", "not run")


@dataclass(frozen=True)
class Finding:
    """What the records say about a claim at one scale on one data set."""

    claim: Claim
    scale: str
    dataset: str
    dataset_sha256: str
    paper: str
    metric: str
    pair: Pair
    verdict: Verdict
    reason: str
    values: tuple[tuple[float, float], ...] = ()
    """(row, other) for every seed"""
    seeds: tuple[int, ...] = ()
    keys: tuple[MetricKey, ...] = ()
    """protocol and numbers of images; none for sizes and times, several where that makes the values incomparable"""
    records: tuple[str, ...] = ()

    @property
    def differences(self) -> list[float]:
        """Row minus other, for every seed."""
        return [row - other for row, other in self.values]


def evaluate_claims(records: list[Record], reported: pd.DataFrame, claims: tuple[Claim, ...] = CLAIMS) -> list[Finding]:
    """Every claim at every scale and on every data set of `records`, in that order.

    `reported` is `reported_frame(..., all_kinds=True)`.
    """
    places: dict[tuple[str, str, str], list[Record]] = {}
    for record in sorted(records, key=lambda r: (SCALES.index(r.scale), r.dataset.name, r.dataset.sha256)):
        places.setdefault((record.scale, record.dataset.name, record.dataset.sha256), []).append(record)
    return [_evaluate(claim, members, reported) for members in places.values() for claim in claims]


def _evaluate(claim: Claim, records: list[Record], reported: pd.DataFrame) -> Finding:
    """A claim over the records of one scale and data set."""
    metric = f"proxy-{claim.metric}" if claim.metric in PROXIED and records[0].scale != "full" else claim.metric
    started = [pair for pair in claim.pairs if any(r.table == pair.table for r in records)]
    pair = next((p for p in started if _same_seeds(p, metric, records)), (started or claim.pairs)[0])
    both = _same_seeds(pair, metric, records)
    values: list[tuple[float, float]] = []
    verdict: Verdict = "not run"
    if both:
        try:
            values = paired_values(both, metric, claim.equal)
            verdict, reason = judge(values, claim.direction)
        except RecordError as error:
            verdict, reason = "not comparable", str(error)
    else:
        reason = _why_not_run(pair, metric, records)
    used = [record for rows in both for record in rows]
    keys = [key for record in used for key in _metric_keys(record, metric)]
    return Finding(
        claim=claim,
        scale=records[0].scale,
        dataset=records[0].dataset.name,
        dataset_sha256=records[0].dataset.sha256,
        paper=_reported(claim, reported),
        metric=metric,
        pair=pair,
        verdict=verdict,
        reason=reason,
        values=tuple(values),
        seeds=tuple(row.seed for row, _ in both),
        keys=tuple(dict.fromkeys(keys)),
        records=tuple(record.name for record in used),
    )


def judge(values: list[tuple[float, float]], direction: Direction) -> tuple[Verdict, str]:
    """Verdict by `RULE` over the (row, other) values of every seed, and why if the numbers do not say it."""
    if direction == "half":
        return ("holds" if all(2 * row == other for row, other in values) else "does not hold"), ""
    gains = [(other - row) if direction == "lower" else (row - other) for row, other in values]
    gain, n = statistics.fmean(gains), len(gains)
    side = "with the claim" if gain > 0 else "against the claim" if gain < 0 else "no difference"
    if n < MIN_SEEDS:
        return "undecided", f"{n} seed{'s' * (n > 1)} of at least {MIN_SEEDS}; {side}"
    if abs(gain) <= STANDARD_ERRORS * statistics.stdev(gains) / math.sqrt(n):
        return "undecided", f"within the noise; {side}"
    return ("holds" if gain > 0 else "does not hold"), ""


def paired_values(
    both: list[tuple[Record, Record]], metric: str, equal: str | None = None
) -> list[tuple[float, float]]:
    """Values of both rows for every seed.

    Args:
        both: the records of the two rows with equal seeds, all of them with a value of `metric`.
        metric: name of a metric, "positions" or "samples_per_second".
        equal: a field of `Size` that must be equal everywhere.

    Raises RecordError (one line) where the values may not be compared: other data sets, protocols, numbers of images,
    training budgets or, for times, machines; or runs of one row with several configurations.
    """
    used = [record for rows in both for record in rows]
    _require_one("data sets", {(r.dataset.name, r.dataset.sha256) for r in used})
    _require_one("scales", {r.scale for r in used})
    for side in zip(*both, strict=True):
        _require_one(f"configurations of {side[0].row}", {config_key(r) for r in side})
    _require_one("training budgets", {_budget(r) for r in used})
    if equal is not None:
        _require_one(f"numbers of {equal}", {getattr(r.size, equal) if r.size else None for r in used})
    if metric == "samples_per_second":
        _require_one("machines or batch sizes", {(r.machine, r.cost.sample_batch) for r in used if r.cost})
    keys = {key for r in used for key in _metric_keys(r, metric)}
    _require_one(f"protocols of {metric}", {(protocol.key, protocol.evaluator, a, b) for protocol, a, b in keys})
    _require_one(f"descriptions of {metric}", keys)
    return [(_number(row, metric), _number(other, metric)) for row, other in both]


def _require_one(what: str, found: set[Hashable]) -> None:
    if len(found) > 1:
        texts = sorted(" ".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in found)
        raise RecordError(f"different {what}: {'; '.join(texts)}")


def _budget(record: Record) -> str:
    """Steps and batch sizes of the trainings."""
    trainings = [record.config.get(name) for name in ("tokenizer_training", "generator_training")]
    known = [training if isinstance(training, dict) else {} for training in trainings]
    return ", then ".join(f"{t.get('steps')} steps of {t.get('batch_size')}" for t in known)


def _same_seeds(pair: Pair, metric: str, records: list[Record]) -> list[tuple[Record, Record]]:
    """The finished records of both rows that have a value, by equal seed."""
    rows, others = (
        {
            r.seed: r
            for r in records
            if (r.table, r.row, r.status) == (pair.table, row, "finished") and _value(r, metric) is not None
        }
        for row in (pair.row, pair.other)
    )
    return [(rows[seed], others[seed]) for seed in sorted(set(rows) & set(others))]


def _metric_keys(record: Record, metric: str) -> list[MetricKey]:
    return [metric_key(m) for m in record.metrics if m.protocol.name == metric]


def _value(record: Record, metric: str) -> float | None:
    if metric == "positions":
        return record.size.positions if record.size else None
    if metric == "samples_per_second":
        return record.cost.samples_per_second if record.cost else None
    return next((m.value for m in record.metrics if m.protocol.name == metric), None)


def _number(record: Record, metric: str) -> float:
    value = _value(record, metric)
    assert value is not None  # asked for by the callers
    return value


def _why_not_run(pair: Pair, metric: str, records: list[Record]) -> str:
    """One line: what both rows lack."""
    found = {row: [r for r in records if (r.table, r.row) == (pair.table, row)] for row in (pair.row, pair.other)}
    missing = [row for row, members in found.items() if not members]
    if missing:
        data = "" if records[0].scale == "mini" else f" --scale {records[0].scale} --data DIR"
        return f"no record; python reproductions/{pair.table}.py --rows {' '.join(missing)}{data}"
    problems = []
    for row, members in found.items():
        if not any(r.status == "finished" for r in members):
            causes = " or ".join(dict.fromkeys(r.status for r in members))
            problems.append(f"{row}: {causes}, see its row in {pair.table}")
        elif not any(_value(r, metric) is not None for r in members if r.status == "finished"):
            problems.append(f"{row} has no {metric}")
    return "; ".join(problems) or "the two rows share no finished seed"


def _reported(claim: Claim, reported: pd.DataFrame) -> str:
    """What the paper reports: both numbers where known."""
    if claim.reported is None:
        return claim.paper
    column = COUNTERPARTS.get(claim.metric, "linear_probe_acc")
    rows = [reported[reported["system"].str.match(rf"{re.escape(name)}(?!\w)")] for name in claim.reported]
    systems = [None if row.empty else row.iloc[0]["system"] for row in rows]
    texts = [reported_text(reported, system, column) for system in systems]
    if not all(texts):
        return claim.paper
    later = " (after the paper)" if "after the paper" in rows[0]["status"].tolist() else ""
    return f"{texts[0]} against {texts[1]}{later}"
