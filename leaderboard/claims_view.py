"""The report's claims section: a table for every scale and data set, and the same as a flat frame."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass

import pandas as pd

from leaderboard.cells import count, number, signed
from leaderboard.verdicts import SPEED, VERDICTS, Finding

UNITS = {SPEED: "samples/s"}


@dataclass
class ClaimRow:
    """One claim, formatted as text."""

    finding: Finding
    metric: str
    compared: str
    measured: str
    difference: str
    spread: str
    interval: str
    """of the difference, if a test has one"""
    p: str
    """of the test, and corrected"""
    records: list[tuple[str, tuple[str, ...]]]
    """row name and record names of both rows, in the order of the seeds"""
    anchor: str


@dataclass
class ClaimTable:
    """The claims at one scale on one data set."""

    title: str
    counts: str
    """of every verdict, and of the tests that p is corrected for"""
    anchor: str
    rows: list[ClaimRow]


def claim_anchor(finding: Finding) -> str:
    """Of a claim at one scale on one data set."""
    place = f"{finding.scale} {finding.budget} {finding.dataset} {finding.dataset_sha256[:8]}"
    return "claim-" + re.sub("[^A-Za-z0-9]+", "-", f"{finding.claim.key} {place}")


def claim_tables(findings: list[Finding]) -> list[ClaimTable]:
    """One table for every scale, budget and data set, in the order of the findings; those not run come last."""
    places: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        place = f"{finding.scale} [{finding.budget}]" if finding.budget else finding.scale
        places.setdefault((place, finding.dataset, finding.dataset_sha256), []).append(finding)
    names = [key[:2] for key in places]
    tables = []
    for (scale, dataset, content), members in places.items():
        # Data sets of the same name may hold different images
        suffix = f" (images {content[:8]})" if names.count((scale, dataset)) > 1 else ""
        members = sorted(members, key=lambda finding: finding.verdict == "not run")
        verdicts = [finding.verdict for finding in members]
        counts = ", ".join(f"{v}: {verdicts.count(v)}" for v in VERDICTS if v in verdicts)
        if tests := sum(not math.isnan(finding.corrected) for finding in members):
            counts += f"; p corrected for {tests} test{'s' * (tests > 1)}"
        anchor = "claims-" + re.sub("[^A-Za-z0-9]+", "-", f"{scale} {dataset} {content[:8]}")
        rows = [claim_row(finding) for finding in members]
        tables.append(ClaimTable(f"{scale} · {dataset}{suffix}", counts, anchor, rows))
    return tables


def claim_row(finding: Finding) -> ClaimRow:
    """A finding as text."""
    pair, n = finding.pair, {key[2] for key in finding.keys}
    metric = UNITS.get(finding.metric, finding.metric) + (f" (n\u00a0{n.pop()})" if len(n) == 1 else "")
    records = [(name, finding.records[side::2]) for side, name in enumerate((pair.row, pair.other)) if finding.records]
    compared = f"{pair.table}: {pair.row} against {pair.other}"
    row = ClaimRow(finding, metric, compared, "", "", "", "", "", records, claim_anchor(finding))
    if not finding.values:
        return row
    means = [statistics.fmean(side) for side in zip(*finding.values, strict=True)]
    gap, like = statistics.fmean(finding.differences), max(map(abs, means))
    if finding.claim.direction == "half":  # lengths are integers without spread
        row.measured, row.difference = " against ".join(map(count, means)), f"{gap:+,.0f}"
        return row
    row.measured = " against ".join(number(mean, like) for mean in means)
    row.difference = signed(gap, like)
    row.spread = f"± {number(_spread(finding.differences), like)}"
    if (test := finding.test) and test.has_spread:
        row.interval = f"{signed(test.low, like)} to {signed(test.high, like)}"
        row.p = _p(test.p) + ("" if math.isnan(finding.corrected) else f", corrected {_p(finding.corrected)}")
    return row


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}"


def _spread(gaps: list[float]) -> float:
    return statistics.stdev(gaps) if len(gaps) > 1 else math.nan


def claims_frame(findings: list[Finding]) -> pd.DataFrame:
    """One row per claim, scale and data set: the claimed, reported and measured values, the verdict and its records.

    Differences are the first row minus the other; their spread is over seeds (ddof=1), the interval is the test's.
    """
    rows = []
    for finding in findings:
        claim, pair, gaps = finding.claim, finding.pair, finding.differences
        sides, test = list(zip(*finding.values, strict=True)) or [(), ()], finding.test
        rows.append(
            {
                "claim": claim.key, "text": claim.text, "source": claim.source, "paper": finding.paper,
                "scale": finding.scale, "budget": finding.budget, "dataset": finding.dataset,
                "dataset_sha256": finding.dataset_sha256,
                "table": pair.table, "row": pair.row, "other": pair.other, "metric": finding.metric,
                "claimed": claim.direction,
                "protocol": " / ".join(dict.fromkeys(key[0].key for key in finding.keys)),
                "n_real": " / ".join(dict.fromkeys(str(key[1]) for key in finding.keys)),
                "n_generated": " / ".join(dict.fromkeys(str(key[2]) for key in finding.keys)),
                "row_mean": _mean(sides[0]), "other_mean": _mean(sides[1]),
                "difference": _mean(gaps), "difference_sd": _spread(gaps),
                "difference_low": test.low if test else math.nan, "difference_high": test.high if test else math.nan,
                "p": test.p if test else math.nan, "p_corrected": finding.corrected,
                "seeds": " ".join(map(str, finding.seeds)), "verdict": finding.verdict, "reason": finding.reason,
                "records": " ".join(finding.records),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _mean(values: list[float] | tuple[float, ...]) -> float:
    return statistics.fmean(values) if values else math.nan
