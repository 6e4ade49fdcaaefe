"""The page about the format of records is what the schema gives now, and what it says is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from leaderboard.record import Part, Record
from leaderboard.record_docs import ADDED_LATER, PARTS, in_words, render
from leaderboard.store import write_record

PAGE = Path(__file__).parents[2] / "leaderboard/RECORDS.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == render(), "run: python -m leaderboard.record_docs leaderboard/RECORDS.md"


def parts(kind: type[Part]) -> set[str]:
    """The parts that a kind of record is made of."""
    return {kind.__name__, *kind.model_json_schema().get("$defs", {})}


def test_every_part_and_every_field_is_described() -> None:
    named = {kind.__name__ for kind in PARTS}
    assert named == set().union(*map(parts, PARTS))
    for kind in PARTS:
        assert kind.__doc__
        for name, field in kind.model_fields.items():
            assert field.description, f"{kind.__name__}.{name}"
    links = set(re.findall(r"\]\(#([a-z]+)\)", PAGE.read_text()))
    assert links <= {name.lower() for name in named}


def test_what_was_added_later_has_a_default() -> None:
    kinds = {kind.__name__: kind for kind in PARTS}
    for _, fields in ADDED_LATER:
        for part, name in (field.split(".") for field in fields):
            assert not kinds[part].model_fields[name].is_required(), f"{part}.{name}"


def test_the_example_reads_records(tmp_path: Path, make, monkeypatch, capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    record: Record = make()
    write_record(tmp_path / "runs/records", record)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "RECORDS.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"imagefolder 0 {m.protocol.name} 1 {m.value}" for m in record.metrics]


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("seed", "whole number"),
        ("order", "whole number of at least 0"),
        ("note", "text"),
        ("scale", '`"mini"` or `"laptop"` or `"small"` or `"full"`'),
        ("reason", "text, or `null`"),
        ("config", "object, of any JSON values"),
        ("metrics", "list of [Metric](#metric), at most 200"),
        ("class_accuracies", "object: text to number of at least 0 and at most 1"),
        ("cost", "[Cost](#cost), or `null`"),
    ],
)
def test_types_in_plain_words(field: str, words: str) -> None:
    assert in_words(Record.model_json_schema()["properties"][field]) == words


def test_defaults_are_json(tmp_path: Path) -> None:
    for kind in PARTS:
        for field in kind.model_fields.values():
            if not field.is_required():
                assert json.loads(json.dumps(field.default)) == field.default
