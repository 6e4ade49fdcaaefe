"""The report: one HTML page that opens offline, the same content as Markdown, and flat tables as CSV."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from imagefolder.errors import one_line, printable
from imagefolder.files import write_text
from leaderboard.cards import by_question, cards
from leaderboard.cells import number
from leaderboard.claims_view import claim_tables, claims_frame
from leaderboard.drawing import Gallery
from leaderboard.evaluators_view import SENTENCE as EVALUATORS_SENTENCE
from leaderboard.evaluators_view import evaluator_tables, evaluators_frame, split_evaluators
from leaderboard.links import linked, protocol_anchor, record_anchor, row_anchor
from leaderboard.pictures import EMBEDDED, picture_file, small
from leaderboard.reading import page_html, section_of
from leaderboard.record import Record
from leaderboard.reported import REPORTED_LABELS, published_column, reported_frame, reported_rows
from leaderboard.reported_chart import reported_charts
from leaderboard.speed_record import SpeedRecord, machine_text
from leaderboard.speed_view import SENTENCES, commit_text, speed_frame, speed_machines
from leaderboard.store import Records, read_speed
from leaderboard.tables import group_rows, group_tables, how_timed, leaderboard_frame, metric_key
from leaderboard.text import markdown_text, spreadsheet_text
from leaderboard.verdicts import RULE, VERDICTS, Finding, evaluate_claims
from leaderboard.view import dataset_text, measured_tables

TITLE = "ImageFolder: measured and reported results"
LATE = 50  # rows of a table beyond which they are added to the page on demand, as boards.js does
PLURALS = {"holds": "hold", "does not hold": "do not hold"}
MARKS = {"holds": "✓", "does not hold": "✗", "leaning": "~", "undecided": "≈", "not comparable": "≠", "not run": "–"}
HELP = (
    "Values are comparable only within a column of one table. Proxy metrics are computed with the features of a small "
    "network: they are comparable only if the extractor's hash is the same, and never with Inception metrics.",
    "rFID (reconstructions) and gFID (samples) are measured against different real images, which are listed under "
    "Protocols; gFID can therefore be lower than rFID.",
    "± is the standard deviation over seeds (-: a single seed). [low, high] over images: a single seed, with the 95% "
    "bootstrap interval over images of a Frechet distance, which tells how far other images of the same model would "
    "move the value, and nothing of other seeds: those usually move it further. The best mean of a column is bold, "
    "regardless of the spread; arrows show which direction is better.",
    "Real images (train vs test): the same metric between two sets of real images. A value close to it cannot be "
    "distinguished from a perfect one with this number of images.",
    "Codebook usage is the share of codes hit at least once, averaged over branches and scales. Positions is the "
    "sequence length of the generator, tokens the number of discrete tokens of all branches, steps the number of "
    "forward passes per image.",
)
REPORTED_SENTENCE = (
    "Inception metrics on class-conditional ImageNet 256×256, as reported by the authors or by the cited comparison "
    "table. They were not measured here and are not comparable with proxy metrics. Blank: not found. "
    "† unverified: known from third-party notes only."
)


def warn(line: str) -> None:
    """Print one line to stderr."""
    print(one_line(line), file=sys.stderr)


def build_report(
    output: Path,
    records: list[Record],
    reported_csv: Path,
    *,
    all_kinds: bool = False,
    speed: list[SpeedRecord] | None = None,
    findings: list[Finding] | None = None,
    into: Path | None = None,
    report: Callable[[str], None] = warn,
) -> list[Path]:
    """Write the report and its tables into `output`, and return their paths without those of the charts.

    Equal arguments give equal bytes.

    Args:
        output: folder for `report.html`, `report.md` and its `charts/`, for `leaderboard.csv` and `claims.csv` if there
            are records, for `evaluators.csv` if some are of evaluators, and for `speed.csv` if there are speed records;
            paths of pictures and of trained models are relative to it.
        records: the results to show.
        reported_csv: CSV file of published numbers.
        all_kinds: also list reported GANs, one-step systems, tokenizers, ablations and references.
        speed: speed records; those in `output`/speed by default.
        findings: what the records say of the claims; by default evaluated on these records alone.
        into: folder that the files are written into instead of `output`.
        report: called with a line for each file that `read_records` or `read_speed` left out; the report lists them.

    Raises OSError or RecordError (one line).
    """
    reported = reported_frame(reported_csv, all_kinds)
    everything = reported_frame(reported_csv, all_kinds=True)
    evaluators, compared = split_evaluators(by_question(records))
    findings = evaluate_claims(compared, everything) if findings is None else findings
    speed = read_speed(output / "speed") if speed is None else speed
    left_out = [line for found in (records, speed) if isinstance(found, Records) for line in found.left_out]
    for line in left_out:
        report(line)
    tables, claims = measured_tables(compared, output, everything), claim_tables(findings)
    names = ["leaderboard.csv", "claims.csv"] * bool(compared) + ["evaluators.csv"] * bool(evaluators)
    shown_cards = cards(tables, list(group_tables(compared).values()), findings, everything)
    many = sum(bool(picture.data) for table in tables for picture in table.pictures) > EMBEDDED
    for table in tables if many else []:
        table.pictures = [small(picture) for picture in table.pictures]
    gallery = Gallery()
    view = {
        "title": TITLE,
        "gallery": gallery,
        "lead": lead(compared, findings),
        "cards": shown_cards,
        "summary": summary(records, speed),
        "files": [*names, *["speed.csv"] * bool(speed)],
        "help": HELP,
        "left_out": left_out,
        "late": LATE,
        "claims": claims,
        "claims_rule": RULE,
        "tables": tables,
        "small_pictures": many,
        "evaluators": evaluator_tables(evaluators),
        "evaluators_sentence": EVALUATORS_SENTENCE,
        "reading": page_html(),
        "reported_sentence": REPORTED_SENTENCE,
        "reported_columns": REPORTED_LABELS,
        "reported": _reported(reported, compared),
        "reported_charts": reported_charts(everything, compared),
        "protocols": _protocols(compared),
        "records": records,
        "anchors": {record.name: record_anchor(record) for record in records},
        "speed_sentences": SENTENCES,
        "speed_machines": speed_machines(speed),
        "has_picture": lambda path: picture_file(into or output, path) is not None,
    }
    texts = {name: templates().get_template(f"{name}.j2").render(view) for name in ("report.html", "report.md")}
    if compared:
        texts["leaderboard.csv"] = _harmless(leaderboard_frame(compared, reported)).convert_dtypes().to_csv(index=False)
        texts["claims.csv"] = _harmless(claims_frame(findings)).to_csv(index=False)
    if evaluators:
        texts["evaluators.csv"] = _harmless(evaluators_frame(evaluators)).convert_dtypes().to_csv(index=False)
    if speed:
        texts["speed.csv"] = _harmless(speed_frame(speed)).to_csv(index=False)
    paths = [write_text((into or output) / name, text) for name, text in texts.items()]
    for name, text in gallery.files.items():
        write_text((into or output) / name, text)
    return paths


@functools.cache
def templates() -> Environment:
    """The templates, each compiled once: HTML is escaped, and no text brings control characters along."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters |= {
        "md": markdown_text, "pretty": _pretty, "number": number, "commit": commit_text, "dataset": dataset_text,
        "section": section_of, "how_timed": lambda record: how_timed([record]), "linked": linked, "mark": MARKS.get,
    }  # fmt: skip
    return environment


def lead(records: list[Record], findings: list[Finding]) -> str:
    """What a visitor wants to know first, in one sentence or two."""
    decided = [finding for finding in findings if finding.verdict != "not run"]
    counts = [(sum(finding.verdict == verdict for finding in decided), verdict) for verdict in VERDICTS]
    tally = ", ".join(f"{n} {PLURALS.get(verdict, verdict) if n > 1 else verdict}" for n, verdict in counts if n)
    claims = f"Of the paper's claims, {len(decided)} were tested: {tally}. " if decided else ""
    datasets = ", ".join(
        dict.fromkeys(f"{r.dataset.name} ({r.dataset.image_size}×{r.dataset.image_size})" for r in records)
    )
    real = any(published_column(m.protocol, r.dataset) for r in records for m in r.metrics)
    scope = (
        "values measured by the published protocols stand beside the reported ones."
        if real
        else "nothing was measured on ImageNet, so no value here is on the scale of the paper's; only orders compare."
    )
    return f"{claims}Measured on {datasets}: {scope}" if records else "No results were measured."


def summary(records: list[Record], speed: list[SpeedRecord]) -> str:
    """What was measured on which machines: one sentence about results, one about speed."""
    sentences = [_results_sentence(records)] if records else []
    if speed:
        machines = "; ".join(dict.fromkeys(machine_text(r.machine) for r in speed))
        sentences.append(f"Speed: {len(speed)} case{_s(len(speed))} on {machines}.")
    return " ".join(sentences) or "Nothing was measured."


def _results_sentence(records: list[Record]) -> str:
    everything = group_rows(records)
    groups = [g for g in everything if g[0].added is None]
    added = len(everything) - len(groups)
    places = dict.fromkeys((g[0].table, g[0].place, g[0].dataset.name) for g in groups)
    rows = {place: sum((g[0].table, g[0].place, g[0].dataset.name) == place for g in groups) for place in places}
    what = "; ".join(f"{n} row{_s(n)} of {t} at scale {s} on {d}" for (t, s, d), n in rows.items())
    what += f"{', and ' * bool(what)}{added} added row{_s(added)}" if added else ""
    problems = [f"{n} {status}" for status in ("failed", "not run") if (n := sum(r.status == status for r in records))]
    machines = "; ".join(dict.fromkeys(_machine(r) for r in records))
    return f"Measured: {what} ({', '.join([f'{len(records)} run{_s(len(records))}', *problems])}), on {machines}."


def _s(n: int) -> str:
    return "" if n == 1 else "s"


def _machine(record: Record) -> str:
    run = record.run
    processes = f"{run.processes} processes, " if run.processes > 1 else ""
    threads = f"{run.threads} thread{_s(run.threads)}"
    return f"{run.gpu or 'no GPU'}, {run.cpu} ({processes}{threads}, {run.memory_gib:.0f} GiB)"


def _protocols(records: list[Record]) -> list[dict[str, Any]]:
    keys = dict.fromkeys(metric_key(metric) for record in records for metric in record.metrics)
    return [
        {"protocol": key[0], "n_real": key[1], "n_generated": key[2], "anchor": protocol_anchor(key)} for key in keys
    ]


def _reported(reported: pd.DataFrame, records: list[Record]) -> list[dict[str, Any]]:
    """The reported rows, and for the counterpart of a measured row that one's anchor and name."""
    measured: dict[str, tuple[str, str]] = {}
    for record in records:
        if record.reported_system:
            measured.setdefault(record.reported_system, (row_anchor(record), f"{record.table}: {record.label}"))
    return [
        row | {"counterpart": next((measured[name] for name in (row["system"], *also) if name in measured), None)}
        for row, also in zip(reported_rows(reported), reported["also"], strict=True)
    ]


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=str)


def _harmless(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame without text that a spreadsheet program would evaluate."""
    return frame.map(spreadsheet_text).rename(columns=spreadsheet_text)
