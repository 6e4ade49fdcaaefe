"""Whether the records support the paper's claims, separately for every scale and data set."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from leaderboard.claims import CLAIMS, PROBES, Claim, Direction, Pair
from leaderboard.record import SCALES, Record
from leaderboard.reported import AFTER_THE_PAPER, COUNTERPARTS, reported_text
from leaderboard.significance import LEVEL, MIN_SEEDS, MOST_SEEDS, POWER, Test, holm, paired_test, seeds_needed
from leaderboard.store import RecordError
from leaderboard.tables import MetricKey, config_key, metric_key

SPEED = "samples_per_second"
RULE = (
    "Each claim is a two-sided paired t-test over seeds: of the differences between its two rows, which get the same "
    "seeds. p is also given corrected (Holm) for the number of claims tested at one scale and budget on one data set, "
    f"so that the chance of any false decision among them is at most {LEVEL:.0%}. A claim holds, or does not hold, if "
    f"the corrected p is at most {LEVEL:g} and the difference has the claimed sign, or the opposite one. Leaning: only "
    f"its own p is; among so many claims, chance alone makes some lean. Undecided: not even that, fewer than "
    f"{MIN_SEEDS} seeds, or a difference that is the same for every seed, so that its spread is not known. How many "
    f"seeds would decide: a test with so many does in {POWER:.0%} of cases, if difference and spread are as measured. "
    "Choose the number beforehand: adding seeds until one decides makes false decisions likelier. Sequence lengths are "
    "exact: one seed decides, and they are not tests. Speeds count only if measured with nothing running beside."
)

Verdict = Literal["holds", "does not hold", "leaning", "undecided", "not comparable", "not run"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "leaning", "undecided", "not comparable", "not run")


@dataclass(frozen=True)
class Judgement:
    """A verdict by `RULE`, the reason for one that decides nothing, and the test behind it (None: exact numbers); as
    the fields of `Finding`."""

    verdict: Verdict
    reason: str = ""
    test: Test | None = None
    corrected: float = math.nan
    """p after Holm's correction; NaN for fewer than `MIN_SEEDS` seeds, which are not part of the family"""


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
    test: Test | None = None
    """of the differences; None without values, and for exact numbers"""
    corrected: float = math.nan
    """the test's p, corrected for all tests of this scale, budget and data set; NaN if it is not one of them"""
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
    return [finding for members in places.values() for finding in _findings(claims, members, reported)]


def _findings(claims: tuple[Claim, ...], records: list[Record], reported: pd.DataFrame) -> list[Finding]:
    """All claims over the records of one scale, budget and data set, whose tests are corrected together."""
    findings = [_measured(claim, records, reported) for claim in claims]
    judgements = iter(judge([(f.claim.direction, f.values) for f in findings if f.values]))
    return [replace(finding, **vars(next(judgements))) if finding.values else finding for finding in findings]


def _measured(claim: Claim, records: list[Record], reported: pd.DataFrame) -> Finding:
    """The values of a claim over the records of one scale and data set, or why there are none; not judged yet."""
    started = [pair for pair in claim.pairs if any(r.table == pair.table for r in records)]
    names = _names(claim.metric, records)
    candidates = [(pair, name) for pair in started or claim.pairs for name in names]
    pair, metric = next((c for c in candidates if _same_seeds(*c, records)), (candidates[0][0], names[-1]))
    both = _same_seeds(pair, metric, records)
    values: list[tuple[float, float]] = []
    verdict, reason = "undecided", ""
    if both:
        try:
            values = paired_values(both, metric, claim.equal)
        except RecordError as error:
            verdict, reason = "not comparable", str(error)
    elif metric == SPEED and (crowded := _not_alone(pair, records)):
        verdict, reason = "not comparable", crowded
    else:
        verdict, reason = "not run", _why_not_run(pair, metric, records)
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


def judge(claims: Sequence[tuple[Direction, Sequence[tuple[float, float]]]]) -> list[Judgement]:
    """Verdicts by `RULE` on claims that are corrected together: their directions and (row, other) for every seed."""
    tests = [None if direction == "half" else paired_test(values) for direction, values in claims]
    family = [i for i, test in enumerate(tests) if test is not None and test.seeds >= MIN_SEEDS]
    # A difference without spread cannot be decided, and counts as one that chance explains
    p = [test.p if (test := tests[i]) and test.has_spread else 1.0 for i in family]
    corrected = dict(zip(family, holm(p).tolist(), strict=True))
    undecided = sum(value > LEVEL for value in corrected.values())
    return [
        _exact(values)
        if test is None
        else _decide(test, direction, corrected.get(i), LEVEL / max(1, undecided))  # Holm's level for the next claim
        for i, ((direction, values), test) in enumerate(zip(claims, tests, strict=True))
    ]


def points_to_claim(finding: Finding) -> bool:
    """Whether the mean difference has the claimed sign, decided or not."""
    mean = statistics.fmean(finding.differences) if finding.values else 0.0
    return mean > 0 if finding.claim.direction == "higher" else mean < 0


def _exact(values: Sequence[tuple[float, float]]) -> Judgement:
    return Judgement("holds" if all(2 * row == other for row, other in values) else "does not hold")


def _decide(test: Test, direction: Direction, corrected: float | None, level: float) -> Judgement:
    """The verdict on one claim; `level` is that of a test which would decide it."""
    gain = -test.mean if direction == "lower" else test.mean
    side = "with the claim" if gain > 0 else "against the claim" if gain < 0 else "no difference"
    if corrected is None:
        reason = f"{test.seeds} seed{'s' * (test.seeds > 1)} of at least {MIN_SEEDS}; {side}"
        return Judgement("undecided", reason, test)
    if not test.has_spread:
        same = f"the same difference for every seed, so its spread is not known; {side}" if gain else "no difference"
        return Judgement("undecided", same, test, corrected)
    if corrected <= LEVEL:
        return Judgement("holds" if gain > 0 else "does not hold", "", test, corrected)
    needed = seeds_needed(test, level)
    seeds = f"{needed} seeds" if needed else f"more than {MOST_SEEDS} seeds"
    needs = f"{seeds} would decide at this spread"
    if test.p <= LEVEL:
        return Judgement("leaning", f"{side}; {needs}", test, corrected)
    return Judgement("undecided", f"within the noise; {side}; {needs}" if gain else "within the noise", test, corrected)


def paired_values(
    both: list[tuple[Record, Record]], metric: str, equal: str | None = None
) -> list[tuple[float, float]]:
    """Values of both rows for every seed.

    Args:
        both: the records of the two rows, paired by seed, all with a value of `metric`.
        metric: name of a protocol, "positions" or `SPEED`.
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
    if metric == SPEED:
        timings = {(r.machine, r.cost.threads, r.cost.sample_batch) for r in used if r.cost}
        _require_one("machines, threads or batch sizes", timings)
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
    if metric == SPEED:  # what other work beside it did to a speed is not known
        return record.cost.samples_per_second if record.cost and record.cost.alone is True else None
    return next((m.value for m in record.metrics if m.protocol.name == metric), None)


def _number(record: Record, metric: str) -> float:
    value = _value(record, metric)
    assert value is not None  # asked for by the callers
    return value


def _not_alone(pair: Pair, records: list[Record]) -> str:
    """Which rows have speeds, but none measured with nothing running beside; "" if a row has no speed at all."""
    crowded = []
    for row in (pair.row, pair.other):
        costs = [r.cost for r in records if (r.table, r.row, r.status) == (pair.table, row, "finished") and r.cost]
        measured = [cost for cost in costs if cost.samples_per_second is not None]
        if not measured:
            return ""
        if not any(cost.alone for cost in measured):
            crowded.append(row)
    if not crowded:
        return ""
    return f"speed of {' and '.join(crowded)} not known to be measured alone; run the script again with nothing beside"


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
