"""Runs beside the reference: what is printed while models train, and of the rows at the end."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from imagefolder.files import file_sha256, read_json
from imagefolder.training.classifier import finish_classifier, read_classifier
from leaderboard import reference_files
from leaderboard.reference_files import make_reference, read_packed, record_files, reference_extractor
from reproductions import table2
from reproductions.options import Options
from reproductions.plan import plan_rows
from reproductions.proxies import is_proxy_done, make_extractor

RunTable = Callable[..., int]


@pytest.mark.parametrize("damaged", [False, True])
def test_the_extractor_of_the_reference_is_used_unless_it_is_damaged(
    trained_row: Callable[[str], Path],
    tmp_path: Path,
    damaged: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(reference_files, "REFERENCE", tmp_path / "reference")
    (plan,) = plan_rows(table2.TABLE, Options(rows=("imagefolder",), output=trained_row("imagefolder")))
    make_reference(plan.row.output)
    mine = plan.row.extractor
    shipped = reference_extractor(plan.row.shared.name)
    tensors = load_file(mine)
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first] + 1}, shipped)  # recognisably not what is trained here
    finish_classifier(shipped, read_json(mine.with_suffix(".json")))
    if damaged:
        shipped.write_bytes(shipped.read_bytes()[:-1])
    trained = mine.read_bytes()
    mine.unlink()

    make_extractor(plan.row)
    out = capsys.readouterr().out
    assert is_proxy_done(mine, plan.row)
    assert (mine.read_bytes() == shipped.read_bytes()) is not damaged
    assert (mine.read_bytes() == trained) is damaged
    assert ("proxy extractor: the reference's, so values can be compared across machines" in out) is not damaged
    assert bool(re.search(r"^extractor: test accuracy .* as in the reference", out, re.MULTILINE)) is damaged
    assert (f"{shipped}: unfinished, damaged" in out.replace("\n", "")) is damaged


def test_the_extractors_that_ship_are_those_of_the_reference_records() -> None:
    found = {}
    for path in record_files():
        records = read_packed(path)
        hashes = {m.protocol.extractor_sha256 for r in records for m in r.metrics if m.protocol.is_proxy}
        found.setdefault(path.stem.partition("-")[2], set()).update(hashes)
    assert found
    for place, hashes in found.items():
        shipped = reference_extractor(place)
        read_classifier(shipped)  # undamaged
        assert file_sha256(shipped) in hashes, place


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
    assert sorted(path.name.split("-")[0] for path in made) == [
        "generator", "mini", "mini", "proxies.jsonl", "table2", "tokenizer"
    ]  # fmt: skip

    assert table(tmp_path / "again", "var") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "proxy extractor: the reference's, so values can be compared across machines" in lines
    told = [line for line in lines if "until step 6, losses in the reference's band of 3 seeds" in line]
    assert len(told) == 2  # tokenizer and generator
    assert not [line for line in lines if "other settings" in line or "OUTSIDE" in line]
    (row,) = [line for line in lines if line.startswith("var: ")]
    assert row.endswith(" equal to the reference")
