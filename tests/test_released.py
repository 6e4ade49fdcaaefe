"""docs/zoo.md sets every field of every released tokenizer beside the published value, and both agree."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from imagefolder.released import ROWS, fields, model, render, write_page
from imagefolder.zoo import OBJECTIVES, REPORTED, TOKENIZERS


def test_every_field_has_a_row() -> None:
    assert [row.field for row in ROWS] == fields()
    for row in ROWS:
        assert row.published or row.remark, row.field
        missing = [name for name in OBJECTIVES if row.published_value(name) is None]
        assert row.remark or not missing, (row.field, missing)  # what is taken where the release says nothing


def test_every_released_tokenizer_has_an_objective() -> None:
    assert set(OBJECTIVES) == set(REPORTED) & set(TOKENIZERS)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ours_are_the_published_values(name: str) -> None:
    ours = model(name)
    for row in ROWS:
        published = row.published_value(name)
        if published is not None:
            found = row.translated(ours)
            assert found == (pytest.approx(published) if isinstance(published, float) else published), row.field


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parent.parent / "docs" / "zoo.md"
    assert page.read_text() == render(), "run: python -m imagefolder.released docs/zoo.md"


@pytest.mark.parametrize("arguments", [[], ["-h"], ["a", "b"]])
def test_the_program_of_a_page_says_how_it_is_called(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["page", *arguments])
    assert write_page(render, "python -m page PATH") == 2
    assert capsys.readouterr().err == "usage: python -m page PATH\n"


def test_a_page_is_written_or_the_path_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["page", str(tmp_path / "page.md")])
    assert write_page(lambda: "text", "python -m page PATH") == 0
    assert (tmp_path / "page.md").read_text() == "text"
    monkeypatch.setattr(sys, "argv", ["page", str(tmp_path)])
    assert write_page(lambda: "text", "python -m page PATH") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}")
    assert error.count("\n") == 1
