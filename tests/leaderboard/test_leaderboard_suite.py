"""The report of all the paper's experiments on one page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from make_records import REPORTED_CSV
from suite_records import IMAGENET, WEIGHTS, full_record, record, suite

from leaderboard.links import record_anchor
from leaderboard.record import Cost, Record, Size
from leaderboard.report import build_report, markdown_text
from leaderboard.reported import (
    OPTIONAL_NUMBERS,
    OPTIONAL_TEXT,
    PUBLISHED_N,
    REPORTED_NUMBERS,
    published_column,
    reported_frame,
    reported_length,
    reported_text,
)
from leaderboard.store import RecordError, read_record, write_record
from leaderboard.tables import leaderboard_frame, measured_frame
from leaderboard.verdicts import RULE, VERDICTS
from leaderboard.view import MeasuredTable, measured_tables

VOID = {"meta", "input", "br", "img", "link"}


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return suite()


@pytest.fixture(scope="module")
def page(tmp_path_factory, records) -> tuple[str, str, pd.DataFrame]:
    """report.html, report.md and claims.csv of everything."""
    folder = tmp_path_factory.mktemp("suite")
    build_report(folder, records, REPORTED_CSV)
    claims = pd.read_csv(folder / "claims.csv")
    return (folder / "report.html").read_text(), (folder / "report.md").read_text(), claims


@pytest.fixture(scope="module")
def tables(records, tmp_path_factory) -> dict[str, MeasuredTable]:
    found = measured_tables(records, tmp_path_factory.mktemp("none"), reported_frame(REPORTED_CSV, all_kinds=True))
    return {table.title: table for table in found}


def column(table: MeasuredTable, label: str) -> list[str]:
    """The texts of one column, "" for rows without numbers."""
    index = [column.label.replace("\u00a0", " ") for column in table.columns].index(label)
    return [row.cells[index].text if row.cells else "" for row in table.rows]


def test_claims_come_first_with_their_verdicts(page):
    html, markdown, claims = page
    assert html.index('<section id="claims">') < html.index('<section id="measured">')
    assert markdown.index("## The paper's claims") < markdown.index("## Measured rows")
    shown = re.findall(r'<tr id="claim-[^"]*" data-verdict="([^"]*)"', html)
    assert shown == claims["verdict"].tolist()
    mini = claims[claims["scale"] == "mini"]["verdict"]
    counts = ", ".join(f"{verdict}: {sum(mini == verdict)}" for verdict in VERDICTS if sum(mini == verdict))
    assert {"holds", "undecided"} <= set(mini)
    counts += f"; p corrected for {len(mini) - 1} tests"  # lengths are exact
    assert f"<p>{counts}.</p>" in html
    assert f"{counts}." in markdown
    assert set(claims[claims["scale"] == "full"]["verdict"]) == {"not run"}
    assert RULE in html
    assert markdown_text(RULE) in markdown


def test_every_claim_links_to_its_records(page, records):
    html, _, _ = page
    links = set(re.findall(r'href="#(record-[^"]+)"', html))
    assert len(links) > 50
    for entry in records:
        position = html.index(f'<details id="{record_anchor(entry)}"')
        assert f"records/{entry.name}.json" in html[position : html.index("</dl>", position)]
    assert links <= {record_anchor(entry) for entry in records}


def test_table_of_contents_links_to_every_table(page):
    html, _, _ = page
    contents = html[html.index('<nav aria-label="Tables">') :]
    entries = re.findall(r'<a href="#(table-[^"]*)">([^<]*)</a>', contents[: contents.index("</nav>")])
    assert len(entries) == 7
    for anchor, title in entries:
        assert f'<h3 id="{anchor}-title">{title}</h3>' in html
        assert f'id="{anchor}" data-selects' in html


class Structure(HTMLParser):
    """Checks that elements are closed in order, and collects ids and the cells of every table row."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())


def test_page_is_well_formed(page):
    structure = Structure()
    structure.feed(page[0])
    assert structure.open == []
    assert len(set(structure.ids)) == len(structure.ids)


def test_rows_that_were_not_run_give_the_reason_in_their_table(tables, page):
    html, markdown, _ = page
    table = tables["table2 · full · imagenet"]
    assert [row.problem for row in table.rows] == ["", *[f"not run: seed 0: {WEIGHTS}"] * 3]
    assert [bool(row.cells) for row in table.rows] == [True, False, False, False]
    assert html.count(f'<span class="note failed">not run: seed 0: {WEIGHTS}</span>') == 3
    assert markdown.count(markdown_text(f"not run: seed 0: {WEIGHTS}")) == 3
    assert "85 runs, 1 failed, 3 not run" in html
    assert tables["table2 · mini · digits"].rows[1].problem == "failed: seed 2: loss is not finite"


def test_equal_reasons_are_given_once(make, failed):
    several = [failed("var", seed, reason) for seed, reason in enumerate(("no memory", "no disk", "no memory"))]
    absent = failed("var", 3, WEIGHTS).model_copy(update={"status": "not run"})
    (row,) = measured_frame([*several, absent]).to_dict("records")
    assert row["failed"] == "seeds 0 2: no memory; seed 1: no disk"
    assert row["not_run"] == f"seed 3: {WEIGHTS}"
    assert row["n_seeds"] == 0


def test_rows_without_a_generator_have_no_columns_for_one(tables, page):
    table = tables["linear_probe · mini · digits"]
    names = " ".join(column.label for column in table.columns).replace("\u00a0", " ")
    assert "linear probe accuracy (continuous) ↑" in names
    for missing in ("gFID ↓ (n", "positions", "steps", "generator", "samples/s"):
        assert missing not in names
    assert column(table, "tokens") == ["28"] * 5
    entry = page[0].split("<code>records/linear_probe-step4-mini")[1].split("</dl>")[0]
    assert "no generator" in entry
    assert "samples/s" not in entry


def test_ablation_shows_the_reported_numbers_next_to_its_own(tables):
    table = tables["ablation · mini · digits"]
    assert column(table, "reported ImageNet tokenizer rFID ↓") == [
        "1.92",
        "1.71",
        "3.24",
        "2.06",
        "1.97",
        "1.57",
        "1.04",
        "0.80",
    ]
    assert column(table, "reported ImageNet gFID ↓") == ["7.52", "6.03", "6.56", "5.96", "5.21", "3.53", "2.94", "2.60"]
    assert column(table, "reported ImageNet linear probe accuracy % ↑") == [*"-----", "40.5", "50.2", "58.0"]
    assert column(table, "reported ImageNet length") == ["680", "680", *["286 (printed: 265)"] * 6]
    assert column(table, "reported ImageNet IS ↑") == [*"-------", "295.0"]  # known only of the released system
    assert [row.note.endswith("after the paper") for row in table.rows] == [False] * 6 + [True] * 2
    assert not [column for column in table.columns if "difference" in column.label]


def test_every_reported_number_is_stored_once(reported_csv):
    systems = pd.read_csv(reported_csv, dtype=str, keep_default_na=False)
    names = [name for row in systems.itertuples() for name in {row.system, *filter(None, row.also.split("; "))}]
    twice = {name for name in names if names.count(name) > 1}
    assert twice == set(systems["system"][systems["system"].duplicated()])  # with and without guidance
    assert not systems.duplicated(["system", "cfg"]).any()
    # Different systems cannot share both FIDs, gFID and IS, or (rows without a generator) the tokenizer
    generators, tokenizers = systems[systems["gfid"] != ""], systems[systems["gfid"] == ""]
    for first, second in (("tokenizer_rfid", "gfid"), ("gfid", "is")):
        known = generators[(generators[first] != "") & (generators[second] != "")]
        equal = known[known.duplicated([first, second], keep=False)]
        assert set(equal["system"]) <= {"RobustTok + RAR-L", "RobusTok-B + tokenizer post-training"}
        assert not equal.duplicated(["source"]).any()
    of_tokenizers = ["tokenizer_rfid", "tokens", "codebook"]
    assert not tokenizers.duplicated(of_tokenizers).any()
    assert tokenizers.merge(generators, on=of_tokenizers).empty


def test_last_step_of_the_ablation_is_the_released_system(reported_csv):
    frame = reported_frame(reported_csv, all_kinds=True)
    released, last = "ImageFolder (VAR-d17, MSVR10P2-4096)", "ImageFolder ablation A8 +equilibrium enhancement"
    for column, value in {
        "gfid": "2.60",
        "linear_probe_acc": "58.0",
        "is": "295.0",
        "status": "after the paper",
    }.items():
        assert reported_text(frame, released, column) == reported_text(frame, last, column) == value
    assert sum(frame["system"].str.startswith("ImageFolder ablation")) == 7


def test_published_protocols_are_compared_with_reported_numbers(tables):
    table = tables["table2 · full · imagenet"]
    names = [column.label.replace("\u00a0", " ") for column in table.columns]
    assert names[:3] == ["rFID ↓ (n 50000)", "reported rFID", "difference"]
    assert names[3:6] == ["gFID ↓ (n 10000)", "reported gFID", "difference"]
    other = names.index("clean-rFID ↓ (n 50000)")  # another protocol
    texts = [cell.text for cell in table.rows[0].cells]
    assert (*texts[:6], texts[other]) == ("0.802", "0.80", "+0.00", "4.31", "2.60", "+1.71", "0.910")
    reported = [i for i, name in enumerate(names) if name.startswith("reported ") and "ImageNet" not in name]
    assert [texts[i] for i in reported] == ["0.80", "2.60", "295.0", "0.75", "0.63"]
    assert [texts[i + 1] for i in reported] == ["+0.00", "+1.71", "-6.60", "+0.01", "-0.01"]
    spreads = [table.rows[0].cells[i].spread for i in (0, 3)]
    assert spreads == ["± -", "± -, n 10,000 of 50,000"]
    assert any("Fewer than 50,000 images" in remark for remark in table.remarks)


@pytest.mark.parametrize(
    ("change", "data"),
    [
        ({"extractor_sha256": "ab" * 32}, {}),
        ({"extractor_sha256": None}, {}),
        ({"name": "clean-rFID"}, {}),
        ({"name": "proxy-rFID"}, {}),
        ({"reference": "VIRTUAL_imagenet256_labeled.npz"}, {}),  # rFID against the training statistics
        ({"name": "gFID"}, {}),  # samples against the validation images
        ({}, {"classes": 100}),
        ({}, {"image_size": 128}),
    ],
)
def test_other_protocols_are_not_compared(change, data):
    protocol = full_record().metrics[0].protocol
    assert published_column(protocol, IMAGENET) == "tokenizer_rfid"
    changed = protocol.model_copy(update=change)
    assert published_column(changed, IMAGENET.model_copy(update=data)) is None


def test_enough_samples_need_no_remark(tmp_path, reported_csv):
    (table,) = measured_tables([full_record(PUBLISHED_N)], tmp_path, reported_frame(reported_csv))
    assert [cell.spread for cell in table.rows[0].cells if "of 50,000" in cell.spread] == []


def test_rfid_and_gfid_are_drawn_against_token_length(tables):
    (chart,) = tables["token_length · mini · digits"].charts
    assert chart.title == "token_length · mini · digits: proxy-rFID, proxy-gFID against sequence length"
    panels = [view["layer"][1]["encoding"] for view in chart.spec["concat"]]
    assert [panel["y"]["axis"]["title"] for panel in panels] == [
        "proxy-rFID, ↓ lower is better", "proxy-gFID, ↓ lower is better"
    ]  # fmt: skip
    assert len(tables["ablation · mini · digits"].charts) == 2  # its steps, and the length
    assert tables["branches · mini · digits"].charts == []  # all of the same length
    assert tables["linear_probe · mini · digits"].charts == []


def test_notes_and_settings_of_every_row_are_shown(page, records):
    html, markdown, _ = page
    for entry in records:
        assert entry.note.rstrip(".") in html
        assert f"**{markdown_text(entry.label)}**: {markdown_text(entry.note.rstrip('.'))}" in markdown
    assert "8 processes" in html
    assert "compile True, micro_batch 32" in html


def test_reported_numbers_share_no_column_with_measured_ones(records, reported_csv):
    frame = leaderboard_frame(records, reported_frame(reported_csv, all_kinds=True))
    measured, reported = frame[frame["origin"] == "measured"], frame[frame["origin"] == "reported"]
    shared = {name for name in frame if measured[name].notna().any() and reported[name].notna().any()}
    assert shared == {"origin", "label"}
    assert sorted(reported["linear probe accuracy (reported)"].dropna()) == [40.5, 50.2, 58.0]
    assert measured["not_run"].str.startswith("seed 0: weights absent").sum() == 3


def test_reported_numbers_without_the_optional_columns(tmp_path, reported_csv):
    systems = pd.read_csv(reported_csv, dtype=str, keep_default_na=False)
    copy = tmp_path / "mine.csv"
    systems.drop(columns=[*OPTIONAL_TEXT, *OPTIONAL_NUMBERS]).to_csv(copy, index=False)
    frame = reported_frame(copy, all_kinds=True)
    pd.testing.assert_frame_equal(
        frame[list(REPORTED_NUMBERS)], reported_frame(reported_csv, True)[list(REPORTED_NUMBERS)]
    )
    assert frame["linear_probe_acc"].isna().all()
    system = frame.loc[frame["system"].str.contains("A6"), "system"].item()
    assert (reported_length(frame, system), reported_length(frame, None)) == ("286", "")
    systems.drop(columns="gfid").to_csv(copy, index=False)
    with pytest.raises(RecordError, match=r"mine\.csv: not a table of reported numbers .*gfid"):
        reported_frame(copy)


def test_records_without_later_fields_stay_readable(tmp_path, make):
    """Records of earlier versions lack fields that were added later."""
    written = make()
    path = write_record(tmp_path, written)
    data = json.loads(path.read_text())
    for name in ("processes", "execution", "checksum"):
        del data["run"][name]
    del data["picture_sha256"]
    del data["dataset"]["left_out"]
    path.write_text(json.dumps(data))
    assert read_record(path) == written
    assert (written.run.processes, written.run.execution) == (1, {})


def test_generatorless_and_unfinished_records_are_read_back_unchanged(tmp_path, records):
    assert Size(tokens=1, bits=8.0, tokenizer_parameters=3).positions is None
    cost = Cost(evaluation_seconds=1.0, tokenizer_shared=False, peak_memory_mib=9.0)
    probe = record("linear_probe", "step4", 0).model_copy(update={"cost": cost})
    absent = next(entry for entry in records if entry.status == "not run")
    for entry in (probe, absent):
        assert read_record(write_record(tmp_path, entry)) == entry
