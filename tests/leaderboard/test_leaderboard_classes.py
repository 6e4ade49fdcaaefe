"""Accuracy of samples by class in the report, and metrics of which no value is best."""

from __future__ import annotations

from make_records import make_metric, make_record

from leaderboard.record import Record
from leaderboard.report import build_report
from leaderboard.reported import reported_frame
from leaderboard.view import LISTED, class_rows, measured_tables


def test_classes_are_averaged_over_seeds_and_the_worst_come_first() -> None:
    group = [make_record(seed=seed, class_accuracies={"cat": 0.9, "dog": 0.2 + seed / 10}) for seed in range(3)]
    assert class_rows(["ImageFolder", "VAR"], [group, [make_record("var")]]) == [
        {"row": "ImageFolder", "classes": [("dog", "30.0%"), ("cat", "90.0%")], "more": 0}
    ]
    many = make_record(class_accuracies={f"class {i}": i / 100 for i in range(50)})
    (row,) = class_rows(["ImageFolder"], [[many]])
    assert (len(row["classes"]), row["more"]) == (LISTED, 50 - LISTED)


def test_the_report_shows_them_as_text(tmp_path, reported_csv) -> None:
    record = make_record(pictures={}, class_accuracies={"<b>cat</b>": 0.25, "a | b": 1.0})
    build_report(tmp_path, [record], reported_csv)
    html, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert "&lt;b&gt;cat&lt;/b&gt; 25.0%, a | b 100.0%" in html
    assert "<b>cat</b>" not in html + markdown
    assert "Accuracy of samples by class" in markdown
    build_report(tmp_path, [make_record(pictures={})], reported_csv)
    assert "Accuracy of samples by class" not in (tmp_path / "report.html").read_text()


def test_earlier_records_have_no_classes() -> None:
    fields = make_record().model_dump()
    del fields["class_accuracies"]
    assert Record.model_validate(fields).class_accuracies == {}


def test_no_ratio_is_best(tmp_path, reported_csv) -> None:
    """Neither copies of training images nor images unlike any."""
    name, changes = "proxy-training neighbour ratio", {"higher_is_better": True, "reference": "digits/train"}
    records = [
        make_record(row, pictures={}, metrics=[make_metric(name, value, **changes), make_metric("PSNR", 20 + value)])
        for row, value in (("imagefolder", 0.1), ("var", 2.0))
    ]
    (table,) = measured_tables(records, tmp_path, reported_frame(reported_csv))
    marked = [[cell.best for cell in row.cells[:2]] for row in table.rows]
    assert marked == [[False, False], [False, True]]
    assert "↑" not in table.columns[0].label
    assert "↑" in table.columns[1].label
