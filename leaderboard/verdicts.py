"""Whether the records support the paper's claims, separately for every scale and data set."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Hashable, Set
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from leaderboard.claims import CLAIMS, PROBES, Claim, Direction, Pair
from leaderboard.record import SCALES, Record
from leaderboard.reported import AFTER_THE_PAPER, COUNTERPARTS, reported_text
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

Verdict = Literal["holds", "does not hold", "undecided", "not comparable", "not run"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "undecided", "not comparable", "not run")


@dataclass(frozen=True)
class Finding:
    """Whether the records support a claim at one scale on one data set, and what that rests on."""

    claim: Claim
    scale: str
    budget: str
    """what differs from the scale's; "" if nothing"""
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
    """protocol and numbers of images; empty for sizes and times; more than one makes the values incomparable"""
    records: tuple[str, ...] = ()

    @property
    def differences(self) -> list[float]:
        """Row minus other, for every seed."""
        return [row - other for row, other in self.values]


def evaluate_claims(records: list[Record], reported: pd.DataFrame, claims: tuple[Claim, ...] = CLAIMS) -> list[Finding]:
    """Every claim at every scale and on every data set of `records`, in that order. Added rows decide none.

    `reported` is `reported_frame(..., all_kinds=True)`.
    """
    places: dict[tuple[str, ...], list[Record]] = {}
    ours = [record for record in records if record.added is None]
    for record in sorted(ours, key=lambda r: (SCALES.index(r.scale), r.budget, r.dataset.name, r.dataset.sha256)):
        key = record.scale, record.budget, record.dataset.name, record.dataset.sha256
        places.setdefault(key, []).append(record)
    return [_evaluate(claim, members, reported) for members in places.values() for claim in claims]


def _evaluate(claim: Claim, records: list[Record], reported: pd.DataFrame) -> Finding:
    """A claim over the records of one scale and data set."""
    started = [pair for pair in claim.pairs if any(r.table == pair.table for r in records)]
    names = _names(claim.metric, records)
    candidates = [(pair, name) for pair in started or claim.pairs for name in names]
    pair, metric = next((c for c in candidates if _same_seeds(*c, records)), (candidates[0][0], names[-1]))
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
        budget=records[0].budget,
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
    """Verdict by `RULE` over the (row, other) values of every seed, and the reason for one that is undecided."""
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
        both: the records of the two rows, paired by seed, all with a value of `metric`.
        metric: name of a protocol, "positions" or "samples_per_second".
        equal: a field of `Size` that must be equal in all records.

    Raises RecordError (one line) if the values may not be compared: data sets, protocols, numbers of images, training
    budgets or, for times, machines differ, or the runs of one row have different configurations.
    """
    used = [record for rows in both for record in rows]
    _require_one("data sets", {(r.dataset.name, r.dataset.sha256) for r in used})
    _require_one("scales", {r.place for r in used})
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


def _require_one(what: str, found: Set[Hashable]) -> None:
    if len(found) > 1:
        texts = sorted(" ".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in found)
        raise RecordError(f"different {what}: {'; '.join(texts)}")


def _budget(record: Record) -> str:
    """Steps and batch sizes of both trainings."""
    trainings = [record.config.get(name) for name in ("tokenizer_training", "generator_training")]
    known = [training if isinstance(training, dict) else {} for training in trainings]
    return ", then ".join(f"{t.get('steps')} steps of {t.get('batch_size')}" for t in known)


def _same_seeds(pair: Pair, metric: str, records: list[Record]) -> list[tuple[Record, Record]]:
    """The finished records of both rows that have a value, paired by seed."""
    rows, others = (
        {
            r.seed: r
            for r in records
            if (r.table, r.row, r.status) == (pair.table, row, "finished") and _value(r, metric) is not None
        }
        for row in (pair.row, pair.other)
    )
    return [(rows[seed], others[seed]) for seed in sorted(set(rows) & set(others))]


def _names(metric: str, records: list[Record]) -> list[str]:
    """Names of the protocols that measure a metric, the published one before its proxy; its own name if none does."""
    found = {(p.is_proxy, p.name) for r in records for p in (m.protocol for m in r.metrics) if p.metric == metric}
    return [name for _, name in sorted(found)] or [metric]


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
    """What is missing, in one line."""
    found = {row: [r for r in records if (r.table, r.row) == (pair.table, row)] for row in (pair.row, pair.other)}
    missing = [row for row, members in found.items() if not members]
    if missing:
        first, options = records[0], [f"--rows {' '.join(missing)}"]
        options += [f"--scale {first.scale}"] * (first.scale != "mini")
        options += [f"--budget {first.budget}"] * bool(first.budget)
        options += [f"--data {_data(first)}"] * (first.dataset.name != "digits")
        return f"no record; python reproductions/{pair.table}.py {' '.join(options)}"
    problems = []
    for row, members in found.items():
        if not any(r.status == "finished" for r in members):
            causes = " or ".join(dict.fromkeys(r.status for r in members))
            problems.append(f"{row}: {causes}, see its row in {pair.table}")
        elif not any(_value(r, metric) is not None for r in members if r.status == "finished"):
            problems.append(f"{row} has no {metric}")
    return "; ".join(problems) or "the two rows share no finished seed"


def _data(record: Record) -> str:
    """As given to `--data` in the command that wrote the record."""
    try:
        words = shlex.split(record.run.command.replace("--data=", "--data "))
        return shlex.quote(words[words.index("--data") + 1])
    except (ValueError, IndexError):  # not given, or the command was cut
        return "DIR"


def _reported(claim: Claim, reported: pd.DataFrame) -> str:
    """Both reported numbers if they are known, or else what the claim quotes."""
    if claim.reported is None:
        return claim.paper
    column = "linear_probe_acc" if claim.metric in PROBES else COUNTERPARTS[claim.metric]
    texts = [reported_text(reported, system, column) for system in claim.reported]
    if not all(texts):
        return claim.paper
    status = reported_text(reported, claim.reported[0], "status")
    return f"{texts[0]} against {texts[1]}" + (f" ({status})" if status == AFTER_THE_PAPER else "")
