from __future__ import annotations

import base64
import re
import subprocess
import sys

import pandas as pd
import pytest

from leaderboard.report import build_report, markdown_text
from leaderboard.reported import reported_frame
from leaderboard.store import read_records, write_record
from leaderboard.view import MeasuredTable, measured_tables

HOSTILE = "<script>alert('x')</script> & \"q\" | $x_1$ `c`"


def build(folder, records, csv):
    build_report(folder, records, csv)
    return (folder / "report.html").read_text(), (folder / "report.md").read_text()


def test_report_holds_every_row_protocol_record_and_picture(output, reported_csv):
    folder, records = output
    html, markdown = build(folder, records, reported_csv)
    for record in records:
        assert record.label in html
        assert markdown_text(record.label) in markdown
        assert record.run.command in html
        assert record.config_sha256 in html
        for metric in record.metrics:
            assert metric.protocol.key in html
            assert metric.protocol.extractor_sha256 is None or metric.protocol.extractor_sha256 in html
            assert metric.protocol.extractor_sha256 is None or metric.protocol.extractor_sha256 in markdown
        for checkpoint in record.checkpoints:
            assert checkpoint.sha256 in html
    for text in (html, markdown):
        assert "loss is not finite at step 120" in text
        assert "real images (train vs test)" in text
    for path in [path for record in records if record.seed == 0 for path in record.pictures.values()]:
        assert base64.b64encode((folder / path).read_bytes()).decode() in html
    assert html.count('<figure class="chart"') == 4  # length, codebooks, two of the reported systems
    assert len(re.findall(r"!\[[^\]]*\]\(<charts/", markdown)) == 4


def test_page_loads_nothing(output, reported_csv):
    html, _ = build(*output, reported_csv)
    html = re.sub(r'<script type="text/plain" id="vega">.*?</script>', "", html, flags=re.DOTALL)
    sources = re.findall(r"""(?:src|srcset|poster|data)\s*=\s*["']([^"']*)""", html)
    assert len(sources) > 2
    assert all(source.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,")) for source in sources), (
        sources
    )
    links = set(re.findall(r'href="([^"#]*)', html))
    assert all(link.startswith(("./", "https://arxiv.org/abs/")) for link in links if link), links
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []


def column_names(table: MeasuredTable) -> list[str]:
    return [column.label.replace("\u00a0", " ") for column in table.columns]


def test_values_of_a_measured_table(output, reported_csv):
    folder, records = output
    (table,) = measured_tables(records, folder, reported_frame(reported_csv))
    gfid, psnr, size = (
        column_names(table).index(name) for name in ("proxy-gFID ↓ (n 1000)", "PSNR ↑ (n 1000)", "positions")
    )
    first, third, failed = table.rows
    # seeds of imagefolder: 2, 3, 4; of var: 2.5, 2.6, 2.7. PSNR is 21.3 more.
    assert (first.cells[gfid].text, first.cells[gfid].spread, first.cells[gfid].best) == ("3.00", "± 1.00", False)
    assert (third.cells[gfid].text, third.cells[gfid].spread, third.cells[gfid].best) == ("2.60", "± 0.10", True)
    assert (first.cells[psnr].best, third.cells[psnr].best) == (True, False)
    assert (first.cells[size].text, third.cells[size].text) == ("30", "60")
    assert (failed.seeds, failed.problem) == ("0", "failed: seed 0: loss is not finite at step 120")
    assert table.columns[gfid].floor == "0.310"


def test_one_seed_shows_a_dash_for_its_spread(make, tmp_path, reported_csv):
    html, markdown = build(tmp_path, [make()], reported_csv)
    assert "2.50</a> <small>± -</small>" in html
    assert "2.50 ± - |" in markdown


@pytest.mark.parametrize("cpu", ["Example CPU @ 2 GHz", "Another CPU"])
def test_times_of_different_machines_are_not_compared(make, tmp_path, reported_csv, cpu):
    second = make("var")
    second = second.model_copy(update={"run": second.run.model_copy(update={"cpu": cpu})})
    (table,) = measured_tables([make(), second], tmp_path, reported_frame(reported_csv))
    same = cpu == make().run.cpu
    column = column_names(table).index("samples/s ↑" if same else "samples/s")
    assert [row.cells[column].best for row in table.rows] == [False, same]
    assert any("different machines" in remark for remark in table.remarks) is not same


def test_text_of_records_is_escaped(make, tmp_path, reported_csv):
    record = make("evil", label=HOSTILE, note=HOSTILE, pictures={HOSTILE: "../secret.png"}, config={HOSTILE: HOSTILE})
    html, markdown = build(tmp_path, [record, make()], reported_csv)
    assert "<script>alert" not in html
    assert html.count("<script>") == 2
    assert "&lt;script&gt;alert" in html
    row = next(line for line in markdown.splitlines() if "alert" in line and line.startswith("|"))
    header = next(line for line in markdown.splitlines() if line.startswith("| row"))
    assert "<script>" not in markdown
    assert len(re.findall(r"(?<!\\)\|", row)) == header.count("|")


def test_only_pngs_inside_the_output_folder_are_embedded(make, tmp_path, reported_csv):
    (tmp_path / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/text.png").write_text("no picture")
    pictures = {"a": "../secret.png", "b": str(tmp_path / "secret.png"), "c": "text.png", "d": "gone.png"}
    html, _ = build(tmp_path / "out", [make(pictures=pictures)], reported_csv)
    assert html.count("picture missing or damaged:") == 4
    assert "data:image/png" not in html


def test_equal_records_give_equal_reports(output, reported_csv):
    folder, records = output
    for record in records:
        write_record(folder / "records", record)
    first = [path.read_bytes() for path in build_report(folder, read_records(folder / "records"), reported_csv)]
    second = [path.read_bytes() for path in build_report(folder, read_records(folder / "records"), reported_csv)]
    assert first == second
    # Also in another process, where strings hash differently
    subprocess.run([sys.executable, "-m", "leaderboard", "--output", str(folder)], check=True)
    names = ("report.html", "report.md", "leaderboard.csv", "claims.csv")
    assert [(folder / name).read_bytes() for name in names] == first


def test_reported_rows_are_shown_with_sources_and_doubts(make, tmp_path, reported_csv):
    html, markdown = build(tmp_path, [make()], reported_csv)
    csv = pd.read_csv(reported_csv, dtype=str, keep_default_na=False)
    doubtful = csv[(csv["verified"] == "no") & csv["kind"].isin(["AR", "VAR", "Diff", "MAR", "MIM"])]
    assert len(doubtful) > 10
    assert html.count(">†</span>") == len(reported_rows_of(html, "no"))
    assert len(reported_rows_of(html, "no")) >= len(doubtful)
    assert '<td class="source">lxa9867/ImageFolder README' in html
    assert '<td class="number">295.0</td>' in html
    assert '<td class="number">0.80</td>' in html
    assert "not comparable with proxy metrics" in html
    assert "not comparable with proxy metrics" in markdown
    assert "BigGAN" not in html
    build_report(tmp_path, [make()], reported_csv, all_kinds=True)
    assert "BigGAN" in (tmp_path / "report.html").read_text()


def reported_rows_of(html: str, verified: str) -> list[str]:
    return re.findall(rf'<td class="verified">{verified}</td>', html)


def test_markdown_tables_have_as_many_cells_as_their_headers(output, reported_csv):
    _, markdown = build(*output, reported_csv)
    width, tables = 0, 0
    lines = markdown.splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if not line.startswith("|"):
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        if not before.startswith("|"):
            width, tables = cells, tables + 1
        assert cells == width, line
    assert tables == 7  # claims, measured, two of codebooks, reported, protocols, provenance


def test_failed_build_keeps_the_old_report(output, reported_csv, tmp_path):
    folder, records = output
    html, _ = build(folder, records, reported_csv)
    with pytest.raises(FileNotFoundError):
        build_report(folder, records[:1], folder / "gone.csv")
    assert (folder / "report.html").read_text() == html


def test_reported_numbers_are_shown_in_separate_columns_of_their_row(make, tmp_path, reported_csv):
    system = "ImageFolder (VAR-d17, MSVR10P2-4096)"
    records = [make(reported_system=system), make(row="other", label="Other")]
    (table,) = measured_tables(records, tmp_path, reported_frame(reported_csv))
    columns = column_names(table)
    beside = [columns.index(f"reported ImageNet {name}") for name in ("tokenizer rFID ↓", "gFID ↓", "IS ↑")]
    assert [[row.cells[i].text for i in beside] for row in table.rows] == [["0.80", "2.60", "295.0"], ["-", "-", "-"]]
    assert system in table.rows[0].note
    (without,) = measured_tables([make()], tmp_path, reported_frame(reported_csv))
    assert not [name for name in column_names(without) if name.startswith("reported")]
