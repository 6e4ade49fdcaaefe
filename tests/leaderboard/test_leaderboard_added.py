"""Rows of others in the report: in the columns of ours, marked, and without a say in the claims."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from make_records import REPORTED_CSV, make_metric, make_record
from pydantic import ValidationError

from leaderboard.record import Added, Record
from leaderboard.report import build_report, summary
from leaderboard.reported import reported_frame
from leaderboard.store import read_record, read_records, write_record
from leaderboard.tables import group_rows, metric_labels
from leaderboard.verdicts import evaluate_claims

LINK = "https://example.org/model?a=1&b=2"


def make_added(row: str = "added-theirs", seed: int = 0, gfid: float = 1.5, **added: object) -> Record:
    """As `reproductions.foreign` records others' samples."""
    nothing = {"size": None, "checkpoints": [], "codebook_usage": [], "pictures": {}, "cost": None, "config": {}}
    values = {"author": "Ada", "link": LINK, "samples": "samples.npz", "samples_sha256": "5a" * 32}
    return make_record(
        row, seed, label="Theirs", order=2**31, metrics=[make_metric("proxy-gFID", gfid, floor=0.31)],
        added=Added.model_validate(values | added), **nothing,
    )  # fmt: skip


def test_an_added_row_has_our_columns_and_is_marked_everywhere(tmp_path: Path) -> None:
    ours = [make_record("imagefolder", seed, 2.0 + seed) for seed in range(2)]
    theirs = [make_added(seed=seed, gfid=1.5 + seed) for seed in range(2)]
    for record in (*theirs, *ours):
        write_record(tmp_path / "records", record)
    records = read_records(tmp_path / "records")
    assert [record.row for record in records] == ["imagefolder"] * 2 + ["added-theirs"] * 2
    assert list(metric_labels(records).values()) == list(metric_labels(ours).values())
    build_report(tmp_path, records, REPORTED_CSV)
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    row = re.search(r"<tr id=[^>]*><th[^>]*><a[^>]*>Theirs.*?</tr>", page, re.DOTALL)
    assert row is not None
    assert '<span class="added">added</span>' in row[0]
    assert "added by Ada" in row[0]
    assert 'href="https://example.org/model?a=1&amp;b=2"' in row[0]
    assert "5a" * 32 in page
    assert "no claim is decided by them" in page
    assert "| Theirs (added) | 2 |" in text
    lines = {line["row"]: line for line in csv.DictReader((tmp_path / "leaderboard.csv").open()) if line["row"]}
    assert (lines["imagefolder"]["origin"], lines["added-theirs"]["origin"]) == ("measured", "added")
    assert lines["added-theirs"]["added"] == f"added by Ada, {LINK}"
    assert float(lines["added-theirs"]["proxy-gFID"]) == 2.0
    assert lines["added-theirs"]["generator_train_seconds"] == ""
    assert "1 row of table2 at scale mini on digits, and 1 added row (4 runs)" in summary(records, [])


def test_added_rows_decide_no_claim(tmp_path: Path) -> None:
    """Not even one that takes the name of a row that a claim is about."""
    reported = reported_frame(REPORTED_CSV, all_kinds=True)
    ours = [make_record("imagefolder", seed, 2.0) for seed in range(3)]
    posing = [make_added("var", seed, gfid=9.0 + seed / 100) for seed in range(3)]
    assert evaluate_claims([*ours, *posing], reported) == evaluate_claims(ours, reported)
    assert evaluate_claims(posing, reported) == []
    verdicts = {f.claim.key: f.verdict for f in evaluate_claims([*ours, *posing], reported)}
    assert verdicts["table2-var-gFID"] == "not run"
    real = [make_record("var", seed, 9.0 + seed / 100) for seed in range(3)]
    verdicts = {f.claim.key: f.verdict for f in evaluate_claims([*ours, *real], reported)}
    assert verdicts["table2-var-gFID"] == "holds"


def test_an_added_row_never_mixes_with_ours_or_with_anothers() -> None:
    ours = make_record("imagefolder", 0)
    posing = make_added("imagefolder", 1).model_copy(update={"config": ours.config})
    other = make_added("imagefolder", 2, author="Bob").model_copy(update={"config": ours.config})
    assert [len(group) for group in group_rows([ours, posing, other])] == [1, 1, 1]


def test_other_images_under_the_same_name_keep_a_copy_of_the_earlier(tmp_path: Path) -> None:
    write_record(tmp_path, make_added())
    write_record(tmp_path, make_added(gfid=1.6))  # the same images again
    assert not (tmp_path / "earlier").exists()
    write_record(tmp_path, make_added(samples_sha256="6b" * 32))
    assert [path.name[-14:] for path in (tmp_path / "earlier").iterdir()] == ["-5a5a5a5a.json"]


@pytest.mark.parametrize("link", ["javascript:alert(1)", "https://a b", 'https://x"onload=', "ftp://x", "https://<b>"])
def test_only_plain_web_addresses_become_links(link: str) -> None:
    with pytest.raises(ValidationError, match="is not a web address"):
        make_added(link=link)


def test_texts_of_others_stay_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> | [x](javascript:1) =1+1"
    record = make_added(author=hostile, samples=hostile).model_copy(update={"label": hostile})
    build_report(tmp_path, [make_record(), record], REPORTED_CSV)
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert "<script>alert" not in page + text
    assert re.search(r"(?<!\\)\]\(javascript", text) is None
    assert r"\[x\](javascript" in text


def test_records_without_the_field_stay_readable(tmp_path: Path) -> None:
    path = write_record(tmp_path, make_record())
    assert path is not None
    document = json.loads(path.read_text())
    del document["added"], document["run"]["checksum"]
    path.write_text(json.dumps(document))
    assert read_record(path) == make_record()
