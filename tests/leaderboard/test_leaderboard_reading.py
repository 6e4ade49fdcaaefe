"""The page on reading the numbers, its links from column heads, and the report's section on evaluators."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from make_records import REPORTED_CSV, make_metric, make_record
from suite_records import suite

from leaderboard.evaluators_view import evaluator_tables
from leaderboard.reading import PAGE, PREFIX, SECTIONS, page_html, section_of, slug
from leaderboard.record import Metric, Record
from leaderboard.report import build_report

ROOT = Path(__file__).parents[2]
JPEG = "proxy-gFID [format: JPEG, quality 95]"


def ids(html: str) -> set[str]:
    return set(re.findall(r' id="([^"]*)"', html))


def test_the_page_in_docs_is_that_of_the_report() -> None:
    page = ROOT / "docs" / "reading-the-numbers.md"
    assert page.read_text() == PAGE.read_text(), f"run: cp {PAGE.relative_to(ROOT)} {page.relative_to(ROOT)}"


def test_every_section_that_heads_link_to_exists() -> None:
    found = ids(page_html())
    assert {PREFIX + section for _, section in SECTIONS} <= found
    headings = re.findall(r"^#+ (.*)$", PAGE.read_text(), re.MULTILINE)
    assert {PREFIX + slug(heading) for heading in headings} == found
    assert len(headings) == len(found)
    assert "<a" not in page_html()  # links to other pages of the repository would lead nowhere
    for target in re.findall(r"\]\(([^)]*)\)", PAGE.read_text()):
        assert (ROOT / "docs" / target).is_file()


@pytest.mark.parametrize(
    ("head", "section"),
    [
        ("proxy-gFID\u00a0↓ (n\u00a01000)", "why-can-gfid-be-lower-than-rfid"),
        ("proxy-gFID (unguided)\u00a0↓", "with-and-without-guidance"),
        ("proxy-rFID\u00a0↓", "what-is-rfid-measured-against"),
        ("lite0-gFID\u00a0↓", "what-lite0-is-and-when-to-trust-it"),
        ("reported ImageNet gFID\u00a0↓", "reported-numbers"),
        ("positions", "why-265-286-and-572"),
        ("linear probe accuracy (quantized)\u00a0↑", "what-does-the-linear-probe-read"),
        ("samples/s\u00a0↑", "how-speed-and-memory-are-measured"),
        ("generator ms per step\u00a0↓", "how-speed-and-memory-are-measured"),
    ],
)
def test_heads_link_to_their_section(head: str, section: str) -> None:
    assert section_of(head) == PREFIX + section


def test_links_and_tooltips_of_a_report(tmp_path: Path) -> None:
    build_report(tmp_path, suite(), REPORTED_CSV)
    html = (tmp_path / "report.html").read_text()
    heads = re.findall(r'<a class="why" href="#([^"]*)"(?: title="([^"]*)")? aria-label="[^"]+">', html)
    assert len(heads) > 40
    assert {anchor for anchor, _ in heads} <= ids(html)
    assert {anchor.partition("-")[0] for anchor, _ in heads} == {"protocol", "reading"}
    assert any(tip.startswith("proxy-gFID: generated PNG images against real ones; proxy-gFID@1/") for _, tip in heads)
    all_ids = re.findall(r' id="([^"]*)"', html)
    assert len(all_ids) == len(set(all_ids))


def variants(seed: int, gfid: float = 2.5, **changes: object) -> Record:
    metrics: list[Metric] = [
        make_metric("proxy-gFID", gfid),
        make_metric(JPEG, gfid + 1 + seed / 10, reference="digits/train"),
        make_metric("proxy-gFID [reference: test images]", gfid / 2, reference="digits/test"),
    ]
    changes = {"table": "evaluators", "metrics": metrics, "notes": ["clean-fid not measured: weights absent"]} | changes
    return make_record("imagefolder", seed, **changes)


def test_differences_are_from_the_suites_value_seed_by_seed() -> None:
    (table,) = evaluator_tables([variants(0), variants(1, 3.5)])
    suite_value, jpeg, tests = table.rows
    assert (suite_value.group, suite_value.value, suite_value.spread) == ("", "3.00", "± 0.71")
    assert suite_value.difference == suite_value.percent == ""
    assert (jpeg.metric, jpeg.group, jpeg.how) == ("proxy-gFID", "format", "JPEG, quality 95")
    assert (jpeg.value, jpeg.difference, jpeg.percent) == ("4.05", "+1.05", "+35.0%")
    assert (tests.difference, tests.percent) == ("-1.50", "-50.0%")
    assert table.seeds == "0 1"
    same = make_metric("proxy-gFID [program: another]", 2.50001)
    (table,) = evaluator_tables([variants(0, metrics=[make_metric("proxy-gFID", 2.5), same])])
    assert (table.rows[1].difference, table.rows[1].percent) == ("equal up to rounding", "")
    assert table.notes == ["clean-fid not measured: weights absent"]


def test_evaluators_average_only_values_of_one_protocol() -> None:
    newer = variants(
        1, metrics=[make_metric("proxy-gFID", 2.5), make_metric(JPEG, 9.5, evaluator="torch-fidelity 0.5")]
    )
    (table,) = evaluator_tables([variants(0), newer])
    found = [(row.value, row.difference, row.protocol.evaluator) for row in table.rows if row.group == "format"]
    assert found == [("3.50", "+1.00", "torch-fidelity 0.4.0"), ("9.50", "+7.00", "torch-fidelity 0.5")]


def test_evaluators_share_no_table_bold_or_claim_with_results(tmp_path: Path) -> None:
    rows = [make_record("imagefolder", seed) for seed in range(3)] + [
        make_record("var", seed, 9.0) for seed in range(3)
    ]
    without = tmp_path / "without"
    build_report(without, rows, REPORTED_CSV)
    build_report(tmp_path, [variants(seed, 0.1) for seed in range(3)] + rows, REPORTED_CSV)
    for name in ("leaderboard.csv", "claims.csv"):
        assert (tmp_path / name).read_bytes() == (without / name).read_bytes()
    assert not (without / "evaluators.csv").exists()
    assert len(pd.read_csv(tmp_path / "evaluators.csv")) == 9
    html, markdown = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    section = html[html.index('<section id="evaluators">') :].split("</section>")[0]
    assert "best" not in section.replace("none is best", "")
    assert section.count("<tr") == 4
    part = markdown.split("## How much the method alone moves the numbers")[1].split("\n## ")[0]
    assert "**" not in part
    assert "JPEG, quality 95" in part
    assert len({line.count("|") for line in part.splitlines() if line.startswith("|")}) == 1


def test_a_row_that_failed_is_named(tmp_path: Path) -> None:
    failed = variants(0, status="not run", reason="weights absent: inception", metrics=[], cost=None)
    (table,) = evaluator_tables([failed])
    assert table.rows == []
    assert table.problem == "not run: seed 0: weights absent: inception"
    build_report(tmp_path, [failed], REPORTED_CSV)
    assert "weights absent: inception" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "variant", "metric"),
    [
        (JPEG, ("format", "JPEG, quality 95"), "gFID"),
        ("proxy-gFID", None, "gFID"),
        ("linear probe accuracy (quantized)", None, "linear probe accuracy (quantized)"),
    ],
)
def test_variants_are_read_from_names(name: str, variant: tuple[str, str] | None, metric: str) -> None:
    protocol = make_metric(name, 1.0).protocol
    assert (protocol.variant, protocol.usual_metric) == (variant, metric)
