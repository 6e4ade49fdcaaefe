"""Runs beside the reference: what is printed while models train, and of the rows at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from leaderboard import reference_files
from leaderboard.reference_files import make_reference

RunTable = Callable[..., int]


@pytest.mark.slow  # four trainings
@pytest.mark.usefixtures("tiny_mini", "executed")
def test_a_run_is_compared_with_the_reference_that_another_run_has_become(
    tmp_path: Path, table: RunTable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference_files, "REFERENCE", tmp_path / "reference")
    monkeypatch.setenv("COLUMNS", "400")
    assert table(tmp_path / "runs", "var", seeds=(0, 1, 2)) == 0
    assert "reference" not in capsys.readouterr().out
    made = make_reference(tmp_path / "runs")
    assert sorted(path.name.split("-")[0] for path in made) == ["generator", "proxies.jsonl", "table2", "tokenizer"]

    assert table(tmp_path / "again", "var") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("extractor: test accuracy") and "as in the reference" in line]
    told = [line for line in lines if "until step 6, losses in the reference's band of 3 seeds" in line]
    assert len(told) == 2  # tokenizer and generator
    assert not [line for line in lines if "other settings" in line or "OUTSIDE" in line]
    (row,) = [line for line in lines if line.startswith("var: ")]
    assert row.endswith(" equal to the reference")
