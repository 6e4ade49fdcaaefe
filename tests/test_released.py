"""docs/zoo.md lists every field of every released tokenizer next to the published value, and the two agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import run

from imagefolder.released import ROWS, fields, main, model, render
from imagefolder.zoo import OBJECTIVES, TOKENIZERS
from leaderboard.reported import REPORTED_CSV, reported_frame, reported_text


def test_every_field_has_a_row() -> None:
    assert [row.field for row in ROWS] == fields()
    for row in ROWS:
        assert row.published or row.remark, row.field
        missing = [name for name in OBJECTIVES if row.published_value(name) is None]
        assert row.remark or not missing, (row.field, missing)  # our choice where the release specifies nothing


def test_every_released_tokenizer_has_an_objective() -> None:
    reported = reported_frame(REPORTED_CSV, all_kinds=True)
    assert set(OBJECTIVES) == {name for name in TOKENIZERS if reported_text(reported, name, "tokenizer_rfid")}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_our_values_are_the_published_ones(name: str) -> None:
    ours = model(name)
    for row in ROWS:
        published = row.published_value(name)
        if published is not None:
            found = row.translated(ours)
            assert found == (pytest.approx(published) if isinstance(published, float) else published), row.field


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parent.parent / "docs" / "zoo.md"
    assert page.read_text() == render(), "run: python -m imagefolder.released docs/zoo.md"


@pytest.mark.parametrize("arguments", [[], ["--helb"], ["a", "b"]])
def test_bad_arguments_of_a_page_are_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(main, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.endswith("(see python -m imagefolder.released --help)\n")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_of_a_page_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(main, "--help") == 0
    assert "usage: python -m imagefolder.released" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_page_is_written_or_the_path_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, tmp_path / "page.md") == 0
    assert (tmp_path / "page.md").read_text() == render()
    assert run(main, tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}")
    assert error.count("\n") == 1
