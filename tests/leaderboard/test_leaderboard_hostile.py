"""Strings crafted to be more than text, and pictures that have changed."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import speed_files as files
from commands import run
from make_records import REPORTED_CSV, make_record
from PIL import Image

from imagefolder.errors import one_line
from leaderboard.__main__ import command as report
from leaderboard.pictures import LARGEST_PICTURE, pictures_intact
from leaderboard.record import Dataset, Record
from leaderboard.report import build_report, markdown_text
from leaderboard.reported import reported_frame
from leaderboard.speed import main as speed_main
from leaderboard.speed import read_benchmarks
from leaderboard.store import write_record
from leaderboard.text import spreadsheet_text

SVG = "data:image/svg+xml;base64,"
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script></style></svg><script>alert(1)</script>",
    "'\" onmouseover=alert(1) x=",
    "=cmd|' /C calc'!A0",
    "+cmd|' /C calc'!A0",
    "-cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "\t=1+1",
    "[here](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "<javascript:alert(1)>",
    "https://evil.example/ www.evil.example",
    "`code` ``` | cell | \\| \\",
    "# heading\n\n- list\n\n---\n\n    code",
    "a\nb\r\nc\x0bd\u2028e",
    "\x1b[31mred\x1b[0m \x07 \x9b31m \u202egnp",
    "[bold red]markup[/] :smile:",
    "{{ 7 * 7 }} {% raw %}",
)


def every_string(value: Any, text: str) -> Any:
    """The document with `text` in place of every free-form string."""
    if isinstance(value, dict):
        fixed = ("scale", "status", "role", "group", "device", "dtype", "order", "growth", "budget")
        return {key: item if key in fixed else every_string(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [every_string(item, f"{text}{i or ''}") for i, item in enumerate(value)]
    return text if isinstance(value, str) else value


def short_table(folder: Path) -> Path:
    """A file with the first reported row only, which makes reports faster to build."""
    path = folder / "reported.csv"
    path.write_text("\n".join(REPORTED_CSV.read_text().splitlines()[:2]))
    return path


class Elements(HTMLParser):
    """What a browser finds in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts = 0
        self.targets: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href", "action", "srcset"):
                self.targets.add(value or "")


@pytest.mark.parametrize("text", HOSTILE)
def test_strings_of_records_stay_text_wherever_they_are_shown(tmp_path, text):
    document = json.loads(make_record().model_dump_json())
    record = Record.model_validate(every_string(document, text) | {"config": {text: text}, "row": f"row {text}"})
    other = Record.model_validate(record.model_dump() | {"row": f"other {text}", "status": "failed", "reason": text})
    entries = [
        entry | {"extra_info": entry["extra_info"] | {"stage": text, "model": text}, "fullname": text}
        for entry in files.growing()[:2] + files.folding()[:2] + files.stages()[:1]
    ]
    speed = read_benchmarks(files.write(tmp_path / "bench.json", entries, cpu=text, git_commit=text))
    build_report(tmp_path, [record, other], short_table(tmp_path), speed=speed)
    html, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    page = Elements(html)
    assert page.scripts == 4  # the page's, the charts', and two of data
    harmless = ("#", "./", "https://arxiv.org/abs/2", "data:image/png;base64,", SVG)
    assert all(target.startswith(harmless) for target in page.targets)
    for target in (target for target in page.targets if target.startswith(SVG)):
        root = ElementTree.fromstring(base64.b64decode(target.removeprefix(SVG)))  # else no browser shows it
        names = {name for element in root.iter() for name in (element.tag.rpartition("}")[2], *element.attrib)}
        assert not [name for name in names if name in ("script", "image", "a", "href") or name.startswith("on")]
    (specs,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', html, re.DOTALL)
    assert len(json.loads(specs)) > 4
    html = re.sub(r'<script type="text/plain" id="vega">.*?</script>', "", html, flags=re.DOTALL)
    links = re.findall(r"(?<!\\)\]\(<([^<>\s]*)>\)", markdown)
    assert all(re.match(r"records/|charts/[a-z0-9-]+\.svg$", link) for link in links)
    assert "<" not in re.sub(r"\]\(<[^<>\s]*>\)", "", markdown)
    assert "://" not in markdown
    assert "](java" not in markdown.replace("\\](", "")
    assert not re.search("[\0-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", html + markdown)
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert not re.findall(r"^(?:    |\t|```|~~~|---$|===)", markdown, re.MULTILINE)
    for name in ("leaderboard.csv", "claims.csv", "speed.csv"):
        with (tmp_path / name).open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if re.match(r"[=@\t\r]|[+-](?![\d.]+)", cell)]
        assert not re.search("[\0-\x09\x0b-\x1f\x7f-\x9f]", "".join(cells))


@pytest.mark.parametrize("text", HOSTILE)
def test_strings_of_reported_numbers_stay_text(tmp_path, text):
    columns = REPORTED_CSV.read_text().splitlines()[0].split(",")
    words = dict.fromkeys(("system", "arxiv", "tokens", "codebook", "cfg", "source", "verified"), text)
    cells = words | {"kind": "VAR", "year": "2024", "gfid": "-1.5"}
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, [cells.get(name, "") for name in columns]])
    assert reported_frame(tmp_path / "mine.csv").iloc[0]["system"] == one_line(text)
    build_report(tmp_path, [make_record()], tmp_path / "mine.csv")
    assert Elements((tmp_path / "report.html").read_text()).scripts == 4
    assert markdown_text(one_line(text)) in (tmp_path / "report.md").read_text()
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["origin"] == "reported"]
    assert row["label"] == row["source"] == spreadsheet_text(text)
    assert float(row["gFID (reported)"]) == -1.5  # numbers stay numbers


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1", "'=1"), ("+a", "'+a"), ("-", "'-"), ("@x", "'@x"), ("\t=1", "'=1"), ("＝1", "'＝1"), ("a=1", "a=1"),
        ("-1.5", "-1.5"), ("+3", "+3"), ("-1+1", "'-1+1"), (-1.5, -1.5), (None, None), ("", ""), ("0 1 2", "0 1 2"),
    ],
)  # fmt: skip
def test_cell_of_a_spreadsheet(value, cell):
    assert spreadsheet_text(value) == cell


@pytest.mark.parametrize("text", HOSTILE)
def test_terminal_shows_no_control_characters_and_no_markup(tmp_path, capsys, text):
    entries = [files.benchmark(), files.benchmark("sample")]
    for entry in entries:
        entry["extra_info"]["model"] = text
        entry["fullname"] = text
    old = files.write(tmp_path / "old.json", entries, cpu=text)
    assert run(speed_main, "compare", old, old) == 0
    out = capsys.readouterr().out
    assert one_line(text)[:12] in out
    entries[0]["extra_info"]["stage"] = 3
    for wrong in (files.write(tmp_path / "wrong.json", entries), files.write(tmp_path / "other.json", [], cpu=text)):
        assert run(speed_main, "compare", old, wrong) == 2
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / f"{text.replace('/', '')}.json").write_text(json.dumps({"schema_version": text}))
    assert run(report, "--output", tmp_path) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 3
    assert not re.search("[\0-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", out + err)


@pytest.fixture
def pictured(tmp_path: Path) -> Record:
    """A record with a picture in the output folder `tmp_path`/out, and one outside."""
    for path in (tmp_path / "out/pictures/a.png", tmp_path / "outside.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 100).save(path)
    sha256 = hashlib.sha256((tmp_path / "outside.png").read_bytes()).hexdigest()
    return make_record(pictures={"samples": "pictures/a.png"}, picture_sha256={"pictures/a.png": sha256})


def damage(path: Path, what: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if what == "a folder":
        path.mkdir()
    elif what == "a link outside":
        path.symlink_to(path.parents[2] / "outside.png")
    elif what == "a circle":
        path.symlink_to(path.name)
    elif what == "a byte":
        path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    elif what == "cut short":
        path.write_bytes(content[:-20])
    elif what == "another picture":
        Image.new("L", (8, 8), 101).save(path)
    elif what == "no picture":
        path.write_text("<script>")
    elif what == "large":
        path.write_bytes(content[:-12] + bytes(LARGEST_PICTURE) + content[-12:])


def shown(folder: Path, record: Record) -> bool:
    """Whether the report embeds the picture; if not, HTML and Markdown name it."""
    build_report(folder, [record], short_table(folder))
    html, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    embedded = "data:image/png;base64," in html.split("<body>")[1]
    assert embedded is ("picture missing or damaged: " not in html) is ("picture missing or damaged: " not in markdown)
    assert embedded is ("](<pictures/a.png>)" in markdown)
    return embedded


def test_unchanged_picture_is_shown(tmp_path, pictured):
    assert pictures_intact(pictured, tmp_path / "out")
    assert shown(tmp_path / "out", pictured)
    earlier = pictured.model_copy(update={"picture_sha256": {}})  # written before hashes were stored
    assert pictures_intact(earlier, tmp_path / "out")
    assert shown(tmp_path / "out", earlier)


@pytest.mark.parametrize(
    ("what", "without_hash"),
    [
        ("gone", False), ("a folder", False), ("a link outside", False), ("a circle", False), ("cut short", False),
        ("no picture", False), ("large", False), ("a byte", True), ("another picture", True),
    ],
)  # fmt: skip
def test_changed_picture_is_named(tmp_path, pictured, what, without_hash):
    damage(tmp_path / "out/pictures/a.png", what)
    assert not pictures_intact(pictured, tmp_path / "out")
    assert not shown(tmp_path / "out", pictured)
    earlier = pictured.model_copy(update={"picture_sha256": {}})
    assert pictures_intact(earlier, tmp_path / "out") is without_hash


@pytest.mark.parametrize("path", ["../outside.png", "a\0b.png", "\ud800.png", "p" * 9000, "", ".", "//evil/x.png"])
def test_invalid_path_is_named(tmp_path, pictured, path):
    record = make_record(pictures={"samples": path})
    assert not pictures_intact(record, tmp_path / "out")
    assert not shown(tmp_path / "out", record)


def test_output_folder_may_be_a_link(tmp_path, pictured):
    (tmp_path / "link").symlink_to("out")
    assert shown(tmp_path / "link", pictured)


def test_files_left_out_of_the_data_are_shown_with_the_data_set(tmp_path, make):
    values = {"name": "birds", "sha256": "d1" * 32, "n_train": 90, "n_test": 10, "classes": 2, "image_size": 64}
    left_out = {"not readable": 3, "<b>text</b>": 1}
    write_record(tmp_path / "records", make(dataset=Dataset(**values, left_out=left_out)))
    assert run(report, "--output", tmp_path) == 0
    words = "birds, 90 train and 10 test images of 64×64, 2 classes, 3 left out: not readable, 1 left out: "
    assert f"{words}&lt;b&gt;text&lt;/b&gt;, <code>" in (tmp_path / "report.html").read_text()
    assert f"| {words}&lt;b&gt;text&lt;/b&gt; |" in (tmp_path / "report.md").read_text()
