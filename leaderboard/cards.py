"""The head of the report: a card for every experiment, which answers its question in a few seconds."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from leaderboard.claims_view import claim_anchor, claim_row
from leaderboard.pictures import Picture, small
from leaderboard.record import Record
from leaderboard.reported import COUNTERPARTS, PUBLISHED_N, published_column, reported_text
from leaderboard.sampling_view import SWEEP
from leaderboard.tables import table_key
from leaderboard.verdicts import VERDICTS, Finding, points_to_claim
from leaderboard.view import MeasuredTable

QUESTIONS = {
    "table2": "Does ImageFolder beat its baselines?",
    "ablation": "Does every step of the method help?",
    "folding": "Does folding help at equal tokens?",
    "token_length": "Which sequence length is best?",
    "branches": "Are two branches the right number?",
    "linear_probe": "Do the tokens carry more meaning?",
    "zoo": "How do the released tokenizers compare?",
    SWEEP: "How much guidance is best?",
}
"""By table, in the order of the cards; other tables follow with their names."""
DECIDED = ("holds", "does not hold")
LISTED = 3  # claims of a card


class Line(NamedTuple):
    """One claim on a card."""

    verdict: str
    text: str
    measured: str
    paper: str
    anchor: str
    """of the claim"""


@dataclass(frozen=True)
class Card:
    """One experiment at one scale on one data set."""

    table: str
    question: str
    answer: str
    verdict: str
    """one of `VERDICTS`; "undecided" if the answer is neither yes nor no"""
    what: str
    """what was measured on what"""
    lines: list[Line]
    more: int
    """claims beyond the lines"""
    paper: str
    """how far this is from the published numbers"""
    anchor: str
    """of its table"""
    picture: Picture | None
    picture_text: str
    pixelated: bool


def cards(
    tables: list[MeasuredTable], members: list[list[Record]], findings: list[Finding], reported: pd.DataFrame
) -> list[Card]:
    """The cards of measured tables, in their order.

    Args:
        tables: as they are shown.
        members: the records of each.
        findings: of all claims.
        reported: with systems of all kinds.
    """
    return [_card(t, records, findings, reported) for t, records in zip(tables, members, strict=True)]


def by_question(records: list[Record]) -> list[Record]:
    """Records in the order of their tables' cards."""
    order = list(QUESTIONS)
    return sorted(records, key=lambda record: order.index(record.table) if record.table in order else len(order))


def _card(table: MeasuredTable, records: list[Record], findings: list[Finding], reported: pd.DataFrame) -> Card:
    first = records[0]
    place = table_key(first)
    own = [f for f in findings if (f.pair.table, f.scale, f.budget, f.dataset, f.dataset_sha256) == place]
    own = [f for f in own if f.verdict != "not run"]
    shown = sorted(own, key=lambda finding: VERDICTS.index(finding.verdict))
    answer, verdict = _answer(own)
    picture = next((p for p in _by_gfid(table) if p.data), None)
    return Card(
        table=first.table,
        question=QUESTIONS.get(first.table, first.table),
        answer=answer,
        verdict=verdict,
        what=_what(table, records),
        lines=[_line(finding) for finding in shown[:LISTED]],
        more=max(0, len(shown) - LISTED),
        paper=_paper(records, reported),
        anchor=table.anchor,
        picture=small(picture) if picture else None,
        picture_text=f"{picture.row}: {picture.caption}, seed {picture.seed}" if picture else "",
        pixelated=table.pixelated,
    )


def _answer(findings: list[Finding]) -> tuple[str, str]:
    """The answer to the card's question in words, and as a verdict."""
    if not findings:
        return "No claim of the paper is about it.", "undecided"
    number = len(findings)
    hold, fail = (sum(finding.verdict == verdict for finding in findings) for verdict in DECIDED)
    others = [finding for finding in findings if finding.verdict not in DECIDED]
    towards = sum(points_to_claim(finding) for finding in others)
    rest = f"{len(others)} undecided, {towards} of them towards the claim" if others else ""
    if fail:
        parts = [
            f"{fail} of {number} claims fail{'s' * (fail == 1)} here",
            f"{hold} hold{'s' * (hold == 1)}" * bool(hold),
            rest,
        ]
        return f"Not as the paper claims: {'; '.join(filter(None, parts))}.", "does not hold"
    if hold == number:
        return f"Yes: {'all ' * (number > 1)}{number} claim{'s' * (number > 1)} hold{'s' * (number == 1)}.", "holds"
    if hold:
        return f"In part: {hold} of {number} claims hold{'s' * (hold == 1)}; {rest}.", "undecided"
    differences = f"{number} difference{'s' * (number > 1)}"
    return f"Not decided: {towards} of {differences} point{'s' * (towards == 1)} towards the claim.", "undecided"


def _line(finding: Finding) -> Line:
    row = claim_row(finding)
    effect = f"{row.difference} {row.metric}" if row.difference else finding.reason
    interval = f" [{row.interval}]" if row.interval else ""
    return Line(finding.verdict, finding.claim.text, effect + interval, finding.paper, claim_anchor(finding))


def _what(table: MeasuredTable, records: list[Record]) -> str:
    finished = [record for record in records if record.status == "finished"]
    first, seeds = records[0], sorted({record.seed for record in finished})
    rows = sum(row.status == "finished" for row in table.rows)
    text = (
        f"{first.dataset.name} {first.dataset.image_size}×{first.dataset.image_size}, scale {first.place}: "
        f"{rows} of {len(table.rows)} rows, {len(seeds)} seed{'s' * (len(seeds) != 1)}"
    )
    running = [row for row in table.rows if row.status != "finished"]
    return text + (f"; {len(running)} failed or not run" if running else "")


def _paper(records: list[Record], reported: pd.DataFrame) -> str:
    """The first row with a published counterpart beside it."""
    for record in records:
        metrics = {m.protocol.metric: m for m in record.metrics if m.protocol.variant is None}
        system = record.reported_system
        known = [n for n in ("gFID", "rFID") if n in metrics and reported_text(reported, system, COUNTERPARTS[n])]
        if record.status != "finished" or record.added or not known:
            continue
        found = known[0]
        same = [r for r in records if (r.row, r.status) == (record.row, "finished") and r.added is None]
        values = [m.value for r in same for m in r.metrics if m.protocol == metrics[found].protocol]
        text, protocol = reported_text(reported, system, COUNTERPARTS[found]), metrics[found].protocol
        here = f"{record.label}: {protocol.name} {statistics.fmean(values):.2f} here"
        if published_column(protocol, record.dataset):
            n = metrics[found].n_generated
            few = f" (n {n:,} of {PUBLISHED_N:,})" if n < PUBLISHED_N else ""
            return f"{here}{few}, {text} in the paper."
        return (
            f"{here}; {found} {text} in the paper, on ImageNet 256×256. Nothing here was measured on ImageNet, and the "
            "two are not on one scale: only the order of rows can be compared."
        )
    return ""


def _by_gfid(table: MeasuredTable) -> list[Picture]:
    """Pictures of samples, those of the row with the best gFID first; then the others."""
    best = {
        row.label
        for row in table.rows
        for c, cell in zip(table.columns, row.cells, strict=False)
        if c.metric == "gFID" and cell.best
    }
    return sorted(table.pictures, key=lambda p: ("samples" not in p.caption, p.row not in best))
