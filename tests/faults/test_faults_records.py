"""Damaged, edited and hostile files: one line names each, and the report is built from the others."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import run
from hypothesis import given, settings
from hypothesis import strategies as st

from imagefolder.errors import one_line
from leaderboard.__main__ import REPORTED_CSV, command
from leaderboard.record import Record
from leaderboard.report import build_report
from leaderboard.speed import main as speed_main
from leaderboard.store import RecordError, read_record, read_records, write_record
from leaderboard.text import markdown_text, spreadsheet_text

DOCUMENTS = 250  # examples of nearly valid records that are read
REPORTS = 25  # of reports built from them
TEXTS = 300  # of texts escaped for lines, Markdown and spreadsheets
SPEED_FILES = 100  # of benchmark files read

PROTOCOL = {
    "name": "proxy-gFID", "version": 1, "description": "samples against real images", "reference": "digits/train",
    "evaluator": "torch-fidelity 0.4.0", "extractor": "proxy-cnn", "extractor_sha256": "ab" * 32,
    "higher_is_better": False,
}  # fmt: skip
MACHINE = {
    "git_commit": "0123456789abcdef", "git_dirty": False, "packages": {"torch": "2.9.0"}, "python": "3.11.7",
    "platform": "Linux", "cpu": "A CPU", "threads": 2, "gpu": None, "memory_gib": 8.0,
}  # fmt: skip
RECORD: dict[str, Any] = {
    "schema_version": 1, "table": "table2", "row": "imagefolder", "label": "ImageFolder", "note": "A row.", "order": 0,
    "reported_system": "VAR-d16 (paper)", "scale": "mini", "seed": 0, "status": "finished", "reason": None,
    "config": {"tokenizer_training": {"steps": 40, "batch_size": 8}, "widths": [64, 32.5]}, "config_sha256": "c0" * 32,
    "dataset": {
        "name": "digits", "sha256": "d1" * 32, "n_train": 300, "n_test": 60, "classes": 10, "image_size": 16,
        "left_out": {"not readable": 3},
    },
    "size": {
        "tokens": 28, "positions": 14, "steps": 3, "bits": 224.0, "tokenizer_parameters": 9, "generator_parameters": 9,
    },
    "checkpoints": [{"role": "tokenizer", "path": "a.safetensors", "sha256": "77" * 32, "selection": "last step"}],
    "metrics": [
        {"protocol": PROTOCOL, "value": 2.5, "spread": None, "n_real": 300, "n_generated": 60, "floor": 0.3},
        {"protocol": PROTOCOL | {"name": "PSNR"}, "value": 21.5, "spread": 0.5, "n_real": 60, "n_generated": 60,
         "floor": None},
    ],
    "codebook_usage": [
        {"branch": b, "scale": s, "position": s - 1, "tokens": 60, "used": 0.5, "perplexity": 20.0}
        for b in (0, 1) for s in (1, 2)
    ],
    "pictures": {"samples": "pictures/s.png"}, "picture_sha256": {"pictures/s.png": "ee" * 32},
    "cost": {
        "tokenizer_train_seconds": 60.0, "generator_train_seconds": 30.0, "evaluation_seconds": 4.0,
        "samples_per_second": 100.0, "sample_batch": 20, "tokenizer_shared": False, "peak_memory_mib": 812.5,
    },
    "run": MACHINE | {
        "started": "2026-01-02T03:00:00Z", "finished": "2026-01-02T03:01:00Z", "command": "python table2.py",
        "processes": 1, "execution": {"micro_batch": 0},
    },
}  # fmt: skip
NAME = "table2-imagefolder-mini-digits-d1d1d1d1-seed0"
HEADER, ROW = (line for line in REPORTED_CSV.read_text().splitlines()[:2])
BENCHMARKS: dict[str, Any] = {
    "machine_info": {"imagefolder": MACHINE}, "datetime": "2026-01-02T03:04:05",
    "benchmarks": [
        {
            "fullname": f"tests/benchmarks/test_it.py::test_sample[{batch}]",
            "extra_info": {
                "stage": "sample", "model": "VAR-mini-X", "group": "growth", "device": "cpu", "dtype": "float32",
                "batch": batch, "threads": 2, "images": batch, "tokens": 28 * batch, "flops": 1e9, "peak_flops": 1e11,
                "peak_memory_mib": 100.0, "order": "folded", "positions": 14, "growth": "batch",
                "growth_value": float(batch),
            },
            "stats": {"median": 0.1, "q1": 0.09, "q3": 0.12, "rounds": 5},
        }
        for batch in (1, 2)
    ],
}  # fmt: skip


def changed(document: Any, place: tuple[str | int, ...], value: Any) -> Any:
    document = copy.deepcopy(document)
    at = document
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return document


def record(**changes: Any) -> Record:
    return Record.model_validate(RECORD | changes)


def nested(depth: int) -> str:
    return json.dumps(changed(RECORD, ("config", "x"), "@")).replace('"@"', "[" * depth + "]" * depth)


def is_line(text: str) -> bool:
    """Whether any terminal shows the text as one line."""
    return text == one_line(text) and "\n" not in text and bool(text.encode())


def usable(path: Path) -> Record | None:
    """The record of a file, or None if it is refused with one line."""
    try:
        return read_record(path)
    except RecordError as error:
        said = str(error)
    assert said.startswith(one_line(path))
    assert is_line(said)
    assert len(said) < 1000 + len(str(path))
    return None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An output folder with one good record, and a short table of reported numbers."""
    write_record(tmp_path / "records", record(row="var", label="VAR"))
    (tmp_path / "reported.csv").write_text(f"{HEADER}\n{ROW}\n")
    return tmp_path


HALF = "\ud800"
ODD: dict[str, str | bytes] = {
    "lone surrogate in the label": json.dumps(RECORD | {"label": HALF}),
    "lone surrogate in a key of the configuration": json.dumps(RECORD | {"config": {HALF: [HALF]}}),
    "lone surrogate in the execution": json.dumps(changed(RECORD, ("run", "execution"), {HALF: HALF})),
    "lone surrogate in a package": json.dumps(changed(RECORD, ("run", "packages"), {HALF: HALF})),
    "lone surrogate in a picture's path": json.dumps(RECORD | {"pictures": {"samples": HALF}}),
    "NUL in a picture's path": json.dumps(RECORD | {"pictures": {"samples": "a\0b.png"}}),
    "a picture path of 5000 characters": json.dumps(RECORD | {"pictures": {"samples": "p" * 5000}}),
    "NUL in a caption": json.dumps(RECORD | {"pictures": {"\0": "a.png"}}),
    "configuration 60 deep": nested(60),
    "configuration 900 deep": nested(900),
    "configuration 100,000 deep": nested(100_000),
    "10**400 tokens": json.dumps(changed(RECORD, ("size", "tokens"), 10**400)),
    "10**400 as a value": json.dumps(changed(RECORD, ("metrics", 0, "value"), 10**400)),
    "a number of 5000 digits": json.dumps(RECORD).replace("224.0", "9" * 5000),
    "1e400": json.dumps(RECORD).replace("224.0", "1e400"),
    "1e308": json.dumps(RECORD).replace("224.0", "1e308"),
    "-Infinity in the configuration": json.dumps(RECORD | {"config": {"x": -float("inf")}}),
    "a value that is not a number": json.dumps(RECORD).replace("21.5", "NaN"),
    "a metric called origin": json.dumps(changed(RECORD, ("metrics", 1, "protocol", "name"), "origin")),
    "a metric called x sd": json.dumps(changed(RECORD, ("metrics", 1, "protocol", "name"), "proxy-gFID sd")),
    "a metric without a name": json.dumps(changed(RECORD, ("metrics", 1, "protocol", "name"), "")),
    "a metric twice": json.dumps(RECORD | {"metrics": [RECORD["metrics"][0]] * 2}),
    "a place of the codebook twice": json.dumps(RECORD | {"codebook_usage": [RECORD["codebook_usage"][0]] * 2}),
    "20,000 metrics": json.dumps(RECORD | {"metrics": RECORD["metrics"] * 10_000}),
    "a key twice": json.dumps(RECORD).replace('"seed": 0', '"seed": 0, "seed": 0'),
    "a label of a million characters": json.dumps(RECORD | {"label": "x" * 10**6}),
    "a reason of a million characters": json.dumps(RECORD | {"status": "failed", "reason": "x" * 10**6}),
    "no table and no row": json.dumps(RECORD | {"table": "", "row": ""}),
    "a text for a number": json.dumps(changed(RECORD, ("metrics", 0, "value"), "2.5")),
    "a truth value for a number": json.dumps(changed(RECORD, ("metrics", 0, "value"), True)),
    "a negative number of images": json.dumps(changed(RECORD, ("metrics", 0, "n_real"), -1)),
    "trainings that are not settings": json.dumps(RECORD | {"config": {"tokenizer_training": [1]}}),
    "another version, as a list": json.dumps(RECORD | {"schema_version": [1]}),
    "a list": json.dumps([RECORD]),
    "a checksum of null": json.dumps(changed(RECORD, ("run", "checksum"), None)),
    "nothing": "",
    "no JSON": json.dumps(RECORD)[:200],
    "no UTF-8": json.dumps(RECORD | {"label": "é"}, ensure_ascii=False).encode("latin-1"),
    "zeros, as after a power failure": bytes(4096),
}


@pytest.mark.parametrize("content", ODD.values(), ids=list(ODD))
def test_odd_record_is_used_or_named_and_the_others_are_reported(folder, content, capsys, tally) -> None:
    path = folder / "records" / f"{NAME}.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = usable(path)
    assert run(command, "--output", folder, "--reported", folder / "reported.csv") == 0
    html, markdown = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    lines = capsys.readouterr().err.splitlines()
    assert "VAR" in markdown
    if found is None:
        (line,) = lines
        assert line.startswith(f"{path}: ")
        assert markdown_text(line) in markdown
        assert '<section id="left-out">' in html
    else:
        assert lines == []
        assert "Files left out" not in html + markdown
    tally("odd record").add("refused" if found is None else "right")


def test_without_usable_records_the_exit_code_is_2_and_each_file_is_named(tmp_path, capsys) -> None:
    (tmp_path / "records").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"records/{name}.json").write_text("{")
    assert run(command, "--output", tmp_path) == 2
    assert [line.split(": ")[:2] for line in capsys.readouterr().err.splitlines()] == [
        ["error", str(tmp_path / f"records/{name}.json")] for name in ("a", "b")
    ]
    assert not (tmp_path / "report.html").exists()


def test_other_files_are_named_or_ignored(folder) -> None:
    records = folder / "records"
    (records / f"._{NAME}.json").write_bytes(b"\0\5\x16\7")  # macOS adds these on foreign disks
    (records / "notes.txt").write_text("mine")
    assert read_records(records).left_out == ()
    (records / "folder.json").mkdir()
    os.mkfifo(records / "pipe.json")  # reading it would block
    (records / "circle.json").symlink_to("circle.json")
    with (records / "large.json").open("wb") as file:
        file.truncate(2**27)
    (records / "copy.json").write_bytes((records / f"{record(row='var').name}.json").read_bytes())
    (records / os.fsdecode(b"\xff\x1b[31m.json")).write_text("{")
    found = read_records(records)
    assert [r.row for r in found] == ["var"]
    assert len(found.left_out) == 6
    assert all(is_line(line) for line in found.left_out)


def test_report_lists_files_that_were_left_out(folder, capsys) -> None:
    (folder / "speed").mkdir()
    (folder / "speed/x.json").write_text("[]")
    (folder / "records/y.json").write_text("[]")
    told: list[str] = []
    build_report(folder, read_records(folder / "records"), folder / "reported.csv", report=told.append)
    assert [line.split(": ")[0].rsplit("/")[-1] for line in told] == ["y.json", "x.json"]
    assert capsys.readouterr().err == ""
    for line in told:
        assert line in (folder / "report.html").read_text()


def test_changed_byte_of_a_record_is_detected(tmp_path, tally) -> None:
    path = write_record(tmp_path, record())
    content = path.read_bytes()
    digits = [match.start() for match in re.finditer(rb"(?<=[^\\])[0-9]", content)]
    for place in digits[:: len(digits) // 60]:
        flipped = bytearray(content)
        flipped[place] ^= 1  # another digit, still valid JSON
        path.write_bytes(flipped)
        with pytest.raises(RecordError, match=r"checksum|schema version|not readable"):
            read_record(path)
        tally("changed byte of a record").add("refused")
    path.write_bytes(content)
    assert read_record(path) == record()


def test_checksum_depends_on_the_content_and_not_on_its_formatting(tmp_path) -> None:
    path = write_record(tmp_path, record(label="Größe 大"))
    document = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(document.items())), ensure_ascii=True))
    assert read_record(path).label == "Größe 大"
    path.write_text(json.dumps(document | {"label": "another"}))
    with pytest.raises(RecordError, match="damaged, or edited by hand; repeat the run or delete the file"):
        read_record(path)
    del document["run"]["checksum"]  # as earlier versions wrote it
    path.write_text(json.dumps(document))
    assert read_record(path).label == "Größe 大"


def speed_file(folder: Path, document: Any = BENCHMARKS, name: str = "bench.json") -> Path:
    (folder / name).write_text(json.dumps(document))
    return folder / name


TABLES: dict[str, bytes] = {
    "nothing": b"",
    "no UTF-8": f"{HEADER}\n{ROW}é\n".encode("latin-1"),
    "other columns": b"a,b\n1,2\n",
    "a column twice": f"{HEADER},system\n{ROW},x\n".encode(),
    "a row cut short": f"{HEADER}\n{ROW[:40]}".encode(),
    "a row too long": f"{HEADER}\n{ROW},x\n".encode(),
    "a quote that never ends": f'{HEADER}\n"{ROW}\n'.encode(),
    "a word for a number": f"{HEADER}\n{ROW}\n{ROW.replace('295.0', 'about 2')}\n".encode(),
    "a word in an optional column": f"{HEADER}\n{ROW.replace('58.0', 'about 58')}\n".encode(),
    "an infinite number": f"{HEADER}\n{ROW.replace('295.0', 'inf')}\n".encode(),
    "10**400": f"{HEADER}\n{ROW.replace('295.0', '1' + 400 * '0')}\n".encode(),
    "a cell of a million characters": f"{HEADER}\n{ROW}{'x' * 10**6}\n".encode(),
    "a compressed file": b"\x1f\x8b\x08\0\0\0\0\0",
}


@pytest.mark.parametrize("content", TABLES.values(), ids=list(TABLES))
@pytest.mark.parametrize("name", ["mine.csv", "mine.csv.gz", "\x1b[31m.csv"])
def test_damaged_table_of_reported_numbers_is_one_line(folder, content, name, capsys) -> None:
    path = folder / name
    path.write_bytes(content)
    assert run(command, "--output", folder, "--reported", path) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {one_line(path)}")
    assert is_line(err.removesuffix("\n"))


def places(document: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The places in a document that can be changed; single values are more frequent than containers."""
    for key, value in document.items() if isinstance(document, dict) else enumerate(document):
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))
            yield (*at, key)
        else:
            yield from [(*at, key)] * 3


CHARACTERS = st.text(st.characters() | st.sampled_from([HALF, "\0", "\x1b", "|", "<", "`", "=", "\u202e", "\n"]))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([10**400, 2**63, 2**63 - 1, -1, 0]), CHARACTERS,
    st.floats(), st.sampled_from([1e30, 1e-12, 5e-324, 1e308]),
)  # fmt: skip
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(CHARACTERS, inner), max_leaves=8)


@st.composite
def near(draw: st.DrawFn, document: Any) -> Any:
    """A document that differs from a valid one in one or two places, often by a value of the same type."""
    found = copy.deepcopy(document)
    for place in draw(st.lists(st.sampled_from(list(places(document))), min_size=1, max_size=2)):
        at = found
        try:
            for key in place[:-1]:
                at = at[key]
            same = {str: CHARACTERS, float: st.floats(0, 1e30), int: st.integers(0, 2**63 - 1)}.get(type(at[place[-1]]))
            at[place[-1]] = draw(VALUES if same is None or draw(st.integers(0, 4)) == 0 else same)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change removed the place
    return found


@settings(max_examples=DOCUMENTS, deadline=None, derandomize=True)
@given(document=near(RECORD) | VALUES)
def test_reading_returns_a_record_or_fails_with_one_line(tmp_path_factory, document) -> None:
    path = tmp_path_factory.getbasetemp() / f"{NAME}.json"
    path.write_text(json.dumps(document))
    found = usable(path)
    if found is not None:
        assert all(is_line(text) or not text for text in (found.label, found.note, found.run.cpu, *found.pictures))


@settings(max_examples=REPORTS, deadline=None, derandomize=True)
@given(documents=st.lists(near(RECORD), min_size=1, max_size=3), speed=near(BENCHMARKS))
def test_report_is_built_from_anything_readable(tmp_path_factory, documents, speed) -> None:
    output = tmp_path_factory.mktemp("report")
    (output / "records").mkdir()
    for row, document in enumerate(documents):
        path = output / "records" / f"{NAME.replace('imagefolder', f'row{row}')}.json"
        path.write_text(json.dumps(document | {"row": f"row{row}"}))
    run(speed_main, "add", speed_file(output, speed), "--output", output)
    (output / "reported.csv").write_text(f"{HEADER}\n{ROW}\n")
    build_report(output, read_records(output / "records"), output / "reported.csv", report=lambda line: None)
    library = re.compile('<script type="text/plain" id="vega">.*?</script>', re.DOTALL)
    for name in ("report.html", "report.md"):
        text = library.sub("", (output / name).read_text())
        assert not re.search("[\0-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    markdown = (output / "report.md").read_text()
    assert "<" not in re.sub(r"\]\(<[^<>\s]*>\)", "", markdown)
    for table in ("leaderboard.csv", "claims.csv", "speed.csv"):
        if (output / table).exists():
            cells = [cell for row in csv.reader((output / table).open(newline="")) for cell in row]
            assert not [cell for cell in cells if cell.startswith(("=", "@", "\t", "\r"))]


@settings(max_examples=SPEED_FILES, deadline=None, derandomize=True)
@given(document=near(BENCHMARKS) | VALUES)
def test_comparison_with_anything_prints_a_table_or_one_line(tmp_path_factory, document) -> None:
    folder = tmp_path_factory.getbasetemp()
    old, new = speed_file(folder, name="old.json"), speed_file(folder, document, "new.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", io.StringIO())
        patch.setattr(sys, "stderr", io.StringIO())
        status = run(speed_main, "compare", old, new)
        shown, told = sys.stdout.getvalue(), sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert status in (0, 1, 2)
    assert all(is_line(line.strip()) or not line.strip() for line in (shown + told).split("\n"))
    assert (status == 2) == ("error: " in told)


@settings(max_examples=TEXTS, deadline=None, derandomize=True)
@given(text=CHARACTERS)
def test_text_stays_within_its_line_and_cell(text) -> None:
    assert is_line(one_line(text)) or not one_line(text)
    assert one_line(one_line(text)) == one_line(text)
    cell = markdown_text(text)
    assert is_line(cell) or not cell
    assert "<" not in cell
    assert not re.search(r"(?<!\\)(\\\\)*[|`\[\]*_~]", cell)
    assert not re.match("[=@\t\r]", str(spreadsheet_text(text)))
    assert not re.match(r"[+-](?!\d+(\.\d+)?$)", str(spreadsheet_text(text)))
