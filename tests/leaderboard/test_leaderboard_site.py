"""`--publish`: the site as a host of files would serve it."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import yaml
from commands import run
from make_records import REPORTED_CSV, make_failed, make_record
from PIL import Image
from suite_records import record, suite

from imagefolder.errors import InputError
from leaderboard.__main__ import command as leaderboard
from leaderboard.report import build_report
from leaderboard.site import MARKER, publish_site
from leaderboard.store import read_records, read_speed, write_record

TABLES = ("table2", "ablation")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, Path]:
    """An output folder with the records of two tables, and the site of it."""
    output = tmp_path_factory.mktemp("published") / "runs"
    (output / "pictures").mkdir(parents=True)
    for found in suite():
        if found.table in TABLES and found.scale == "mini":
            write_record(output / "records", found)
            for path in found.pictures.values():
                Image.new("L", (8, 8)).save(output / path)
    damaged = next(iter(record("table2", "vq", 2).pictures.values()))
    (output / damaged).write_bytes(b"no picture")
    (output / "private.txt").write_text("private")
    return output, publish(output, output.parent / "site")


def publish(output: Path, folder: Path) -> Path:
    publish_site(folder, output, read_records(output / "records"), read_speed(output / "speed"), REPORTED_CSV)
    return folder


class Links(HTMLParser):
    """Addresses that a page loads or links to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("href", "src") and value]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_site_has_a_page_per_experiment_with_its_data(published):
    output, site = published
    assert sorted(path.name for path in site.iterdir()) == [
        MARKER, ".nojekyll", "README.md", "ablation", "index.html", "table2",
    ]  # fmt: skip
    for table in TABLES:
        members = [found for found in read_records(output / "records") if found.table == table]
        assert {path.name for path in (site / table / "records").iterdir()} == {f"{m.name}.json" for m in members}
        for member in members:
            name = f"records/{member.name}.json"
            assert (site / table / name).read_bytes() == (output / name).read_bytes()
        frame = pd.read_csv(site / table / "leaderboard.csv")
        assert set(frame.loc[frame["origin"] == "measured", "table"]) == {table}
        html = (site / table / "report.html").read_text()
        assert members[0].run.command in html
    assert "unfolded" not in (site / "ablation" / "claims.csv").read_text()
    assert not [name for name in files(site) if "private" in name or name.endswith(".lock")]
    assert str(output) not in "".join((site / name).read_text() for name in files(site) if name.endswith(".html"))


def test_every_link_is_relative_and_leads_to_a_file_of_the_site(published):
    _, site = published
    for page in site.rglob("*.html"):
        for link in Links(page).found:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "data") or not parts.path:
                continue
            assert not parts.path.startswith("/")
            assert (page.parent / unquote(parts.path)).resolve().is_file(), f"{page}: {link}"
    links = Links(site / "index.html").found
    assert links[0] == "table2/report.html"
    assert "ablation/claims.csv" in links
    assert sum(link.startswith("ablation/records/") for link in links) == 24


def test_claims_are_corrected_for_all_experiments_as_in_the_report(published, tmp_path, reported_csv):
    output, site = published
    build_report(output, read_records(output / "records"), reported_csv, into=tmp_path)
    whole = pd.read_csv(tmp_path / "claims.csv").set_index("claim")
    parts = pd.concat([pd.read_csv(site / table / "claims.csv") for table in TABLES]).set_index("claim")
    tested = parts[parts["p_corrected"].notna()]
    assert len(tested) > 10
    assert set(tested["table"]) == set(TABLES)
    for column in ("verdict", "p_corrected", "reason"):
        pd.testing.assert_series_equal(parts[column], whole.loc[parts.index, column])
    counts = re.findall(r"holds: (\d+)", (site / "index.html").read_text())
    assert [int(n) for n in counts[:1]] == [int((parts[parts["table"] == "table2"]["verdict"] == "holds").sum())]


def test_the_card_is_one_of_a_space(published):
    _, site = published
    text = (site / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    values = yaml.safe_load(header)
    assert (values["sdk"], values["license"], values["app_file"]) == ("static", "apache-2.0", "index.html")
    assert text.isascii() or not re.search("[\U0001f300-\U0001faff]", text)
    assert "digits" in body
    assert "Example CPU @ 2 GHz" in body
    assert "](table2/report.md)" in body


def test_a_second_publication_replaces_the_first_and_nothing_else(published, tmp_path):
    _, earlier = published
    output, site = tmp_path / "runs", shutil.copytree(earlier, tmp_path / "site")
    (site / ".git").mkdir()
    (site / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (site / "CNAME").write_text("example.org")
    write_record(output / "records", make_record("new row"))
    publish(output, site)
    assert not (site / "ablation").exists()
    assert [path.name for path in (site / "table2" / "records").iterdir()] == [f"{make_record('new row').name}.json"]
    before = {name: (site / name).read_bytes() for name in files(site)}
    publish(output, site)
    assert {name: (site / name).read_bytes() for name in files(site)} == before
    assert (site / "CNAME").read_text() == "example.org"
    assert (site / ".git" / "HEAD").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "site"]


@pytest.mark.parametrize("content", ["{", '{"names": ["../runs"]}', '{"names": [".git"]}', '{"names": "x"}'])
def test_a_folder_of_somebody_else_is_refused(tmp_path, capsys, make, content):
    write_record(tmp_path / "runs" / "records", make())
    site = tmp_path / "site"
    (site / ".git").mkdir(parents=True)
    (site / "thesis.tex").write_text("years of work")
    for _ in range(2):
        assert run(leaderboard, "--output", tmp_path / "runs", "--publish", site) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert str(site) in error
        (site / MARKER).write_text(content)
    assert sorted(path.name for path in site.iterdir()) == [".git", MARKER, "thesis.tex"]
    assert (tmp_path / "runs" / "records").is_dir()


def test_a_publication_that_fails_leaves_the_earlier_one(published, tmp_path):
    _, earlier = published
    site = shutil.copytree(earlier, tmp_path / "site")
    before = {name: (site / name).read_bytes() for name in files(site)}
    (site / "new_table").write_text("somebody else's")
    records = [make_record(table="new_table")]
    write_record(tmp_path / "runs" / "records", records[0])
    with pytest.raises(InputError, match="new_table is in the way"):
        publish(tmp_path / "runs", site)
    with pytest.raises(OSError, match=r"gone\.csv"):
        publish_site(site, tmp_path / "runs", records, [], tmp_path / "gone.csv")
    assert {name: (site / name).read_bytes() for name in files(site) if name != "new_table"} == before


HOSTILE = ["<b>x", "-..", "a b?c#d", "speed", "INDEX", "index"]


def test_names_of_tables_become_names_of_folders(tmp_path, capsys):
    for table in HOSTILE:
        write_record(tmp_path / "runs" / "records", make_failed().model_copy(update={"table": table}))
    assert run(leaderboard, "--output", tmp_path / "runs", "--publish", tmp_path / "site") == 0
    folders = {path.name for path in (tmp_path / "site").iterdir() if path.is_dir()}
    assert folders == {"b-x", "experiment", "a-b-c-d", "speed-1", "INDEX", "index-1"}
    html = (tmp_path / "site" / "index.html").read_text()
    assert "<b>x" not in html
    assert "&lt;b&gt;x" in html
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(tmp_path / "site" / "index.html")
    assert len(printed) == 1 + len(HOSTILE)
