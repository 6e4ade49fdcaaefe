"""The reference: how it is stored, and how runs are compared with it."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import run
from make_records import EXTRACTOR_SHA256, make_metric, make_record
from reference_curves import curve, identity

from imagefolder.files import write_json
from leaderboard import reference_files
from leaderboard.__main__ import command
from leaderboard.bands import find_band
from leaderboard.record import Checkpoint, Record
from leaderboard.reference_files import (
    REFERENCE,
    make_reference,
    other_data,
    packed,
    read_curves,
    read_packed,
    record_files,
    reference_records,
    thinned,
    window_of,
)
from leaderboard.references import row_beside, stale_references, table_beside
from leaderboard.report import build_report
from leaderboard.significance import prediction_interval
from leaderboard.store import RecordError, read_records, write_record
from leaderboard.validate import METRICS

PLACE = "mini-digits-d1d1d1d1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the reference that ships with the project."""
    monkeypatch.setattr(reference_files, "REFERENCE", tmp_path / "reference")
    return tmp_path / "reference"


def output_of(folder: Path, seeds: range, **changes: Any) -> list[Record]:
    """An output folder of a row with some seeds: records, models with settings and curves, and proxies."""
    records = []
    for seed in seeds:
        model = f"{PLACE}/seed{seed}/tokenizers/mini-A-{seed}0000000"
        write_json(folder / model / "settings.json", identity(seed=seed))
        (folder / model / "curve.jsonl").write_text("".join(f"{json.dumps(point)}\n" for point in curve(seed)))
        paths = {"tokenizer": f"{model}/model.safetensors", "extractor": f"{PLACE}/proxies/extractor.safetensors"}
        checkpoints = [Checkpoint(role=r, path=p, sha256="77" * 32, selection="last") for r, p in paths.items()]
        gfid = 2.5 + random.Random(seed).gauss(0, 0.1)
        records.append(make_record(seed=seed, gfid=gfid, checkpoints=checkpoints, **changes))
        write_record(folder / "records", records[-1])
    about = {"steps": 500, "test_accuracy": 0.98, "sha256": EXTRACTOR_SHA256}
    write_json(folder / PLACE / "proxies/extractor.json", about)
    (folder / PLACE / "proxies/extractor.safetensors").write_bytes(b"weights")
    return records


# Storage


def test_the_reference_holds_what_the_runs_wrote_but_no_pictures(folder, tmp_path):
    records = output_of(tmp_path / "runs", range(5))
    write_record(tmp_path / "runs/records", make_record("lfq", status="failed", reason="too large"))
    make_reference(tmp_path / "runs")
    found = reference_records("table2", "mini", "", records[0].dataset)
    bare = {"pictures": {}, "picture_sha256": {}}
    assert found == [record.model_copy(update=bare) for record in records]
    assert reference_records("folding", "mini", "", records[0].dataset) == []
    assert reference_records("table2", "mini", "steps=10", records[0].dataset) == []


def test_its_text_is_short_and_the_same_whenever_it_is_made(folder, tmp_path):
    output_of(tmp_path / "runs", range(5))
    first = {path: path.read_bytes() for path in make_reference(tmp_path / "runs")}
    assert {path.relative_to(folder).parts[0] for path in first} == {
        "table2-mini-digits-d1d1d1d1.jsonl", "curves", "extractors", "proxies.jsonl"
    }  # fmt: skip
    text = (folder / "table2-mini-digits-d1d1d1d1.jsonl").read_text()
    assert text.count("generated PNG images") == len(make_record().metrics)  # each protocol once, not per seed
    assert max(map(len, text.splitlines())) < 4000
    assert {path: path.read_bytes() for path in make_reference(tmp_path / "runs")} == first


def test_other_tables_and_data_stay_and_curves_that_nobody_needs_go(folder, tmp_path):
    output_of(tmp_path / "a", range(3))
    output_of(tmp_path / "b", range(3), table="folding")
    make_reference(tmp_path / "a")
    left = folder / "curves/tokenizer-old-0123456789ab.jsonl"
    left.write_text((next((folder / "curves").glob("tokenizer-mini-A-*"))).read_text().replace("mini-A-", "old-"))
    make_reference(tmp_path / "b")
    assert [path.name for path in record_files()] == [
        "folding-mini-digits-d1d1d1d1.jsonl", "table2-mini-digits-d1d1d1d1.jsonl"
    ]  # fmt: skip
    assert not left.exists()
    assert len(list((folder / "curves").iterdir())) == 1


@pytest.mark.parametrize(
    "damage", [lambda text: text[: len(text) // 2], lambda text: text.replace('"row":', '"raw":'), lambda text: "[]\n"]
)
def test_a_damaged_file_is_named_and_stops_no_report(folder, tmp_path, reported_csv, damage: Callable[[str], str]):
    records = output_of(tmp_path / "runs", range(3))
    make_reference(tmp_path / "runs")
    path = folder / "table2-mini-digits-d1d1d1d1.jsonl"
    path.write_text(damage(path.read_text()))
    with pytest.raises(RecordError, match=r"table2-mini-digits.*line \d+.*python -m leaderboard reference"):
        read_packed(path)
    build_report(tmp_path / "runs", records, reported_csv)
    assert "Not compared with the reference: " in (tmp_path / "runs/report.html").read_text()


def test_curves_that_are_not_as_long_as_they_say_are_refused(folder, tmp_path):
    output_of(tmp_path / "runs", range(3))
    make_reference(tmp_path / "runs")
    path = next((folder / "curves").iterdir())
    path.write_text(path.read_text().replace('"windows":20', '"windows":19'))
    with pytest.raises(RecordError, match="other lengths than 19"):
        read_curves(path)


def test_a_thinned_curve_has_the_means_of_equal_windows(tmp_path):
    points = [{"step": step, "loss": float(step)} for step in (20, 40, 50, 60, 80, 100)]
    windows, means = thinned([*points, {"step": 100, "evaluation": 1.0}], 100, tmp_path)
    assert (windows, means) == (5, {"loss": [20.0, 40.0, 55.0, 80.0, 100.0]})  # evaluation: not in every window
    long = [{"step": step, "loss": 1 / 3} for step in range(1, 10_001)]
    assert thinned(long, 10_000, tmp_path) == (40, {"loss": [0.3333] * 40})
    assert [window_of(step, 100, 5) for step in (1, 20, 21, 100)] == [0, 0, 1, 4]
    with pytest.raises(RecordError, match="ends at step 100 of 200"):
        thinned(points, 200, tmp_path)


# Bands


def test_a_band_is_found_for_other_seeds_and_for_other_settings_of_the_row(folder, tmp_path):
    records = output_of(tmp_path / "runs", range(4))
    make_reference(tmp_path / "runs")
    place = {"table": "table2", "row": "imagefolder", "scale": "mini", "dataset": records[0].dataset}
    same = find_band("tokenizer", identity(seed=17), **place)
    assert same is not None
    assert (sorted(same.curves.seeds), same.other_settings) == ([0, 1, 2, 3], "")
    other = find_band("tokenizer", identity(rate=0.03), **place)
    assert other is not None
    assert other.other_settings == "training.learning_rate 0.03 instead of 0.003"
    assert find_band("tokenizer", identity(steps=10), **place) is None
    assert find_band("tokenizer", identity(rate=0.03), **(place | {"row": "vq"})) is None
    assert find_band("generator", identity(), **place) is None


def test_two_seeds_make_no_band(folder, tmp_path):
    records = output_of(tmp_path / "runs", range(2))
    make_reference(tmp_path / "runs")
    place = {"table": "table2", "row": "imagefolder", "scale": "mini", "dataset": records[0].dataset}
    assert find_band("tokenizer", identity(), **place) is None


# Values


def test_the_interval_holds_as_many_further_values_as_it_says():
    draw, inside = random.Random(1), 0
    for _ in range(4000):
        low, high = prediction_interval([draw.gauss(5, 2) for _ in range(4)], number=3)
        inside += low <= statistics.fmean(draw.gauss(5, 2) for _ in range(3)) <= high
    assert 0.985 < inside / 4000 < 0.995


def rows(*values: float, **changes: Any) -> list[Record]:
    return [make_record(seed=seed, gfid=value, **changes) for seed, value in enumerate(values)]


def states(group: list[Record], reference: list[Record]) -> dict[str, str]:
    beside = row_beside(group, reference)
    assert beside is not None
    return {key[0].name: value.state for key, value in beside.values.items()}


def test_values_are_inside_above_below_or_equal():
    reference = rows(2.4, 2.5, 2.6, 2.45, 2.55)
    # PSNR is gFID + 21.3, and proxy-rFID 1.5 + gFID / 10; SSIM is the same in all
    assert states(rows(2.4, 2.5), reference)["proxy-gFID"] == "equal"
    assert states(rows(2.42, 2.5), reference) | {"SSIM": ""} == {
        "proxy-rFID": "inside", "PSNR": "inside", "SSIM": "", "proxy-gFID": "inside",
        "proxy-IS": "equal", "precision": "equal", "class accuracy": "equal",
    }  # fmt: skip
    assert states(rows(3.2), reference)["PSNR"] == "above"
    assert states(rows(1.2), reference)["proxy-gFID"] == "below"
    assert states(rows(3.2), reference[:2])["PSNR"] == "spread not known"
    others = rows(2.5, metrics=[make_metric("class accuracy", 0.999)])
    assert states(others, reference) == {"class accuracy": "spread not known"}  # all seeds of the reference have 0.953
    # The mean of five seeds is known better than one of them
    assert states(rows(*[2.8] * 5), reference)["PSNR"] == "above"
    assert states(rows(2.8), reference)["PSNR"] == "inside"


def test_values_of_other_extractors_and_protocols_are_not_compared():
    reference = rows(2.4, 2.5, 2.6)
    trained_here = make_metric("proxy-gFID", 9.9, extractor_sha256="99" * 32)
    newer = make_metric("PSNR", 40.0, version=2)
    unknown = make_metric("pFID", 40.0)
    found = states([make_record(metrics=[trained_here, newer, unknown])], reference)
    assert found == {"proxy-gFID": "other extractor", "PSNR": "other protocol"}


def test_rows_with_other_settings_say_which():
    config = {"tokenizer": {"branches": 4, "width": 64}, "row": "imagefolder"}
    beside = row_beside([make_record(config=config)], rows(2.4, 2.5, 2.6))
    assert beside is not None
    assert beside.line == "other settings than the reference: tokenizer.branches 4 instead of 2"
    assert row_beside([make_record("var")], rows(2.4, 2.5, 2.6)) is None


def test_a_line_counts_what_is_inside_and_lists_what_is_not():
    beside = row_beside(rows(3.2), rows(2.4, 2.5, 2.6, 2.45, 2.55))
    assert beside is not None
    assert beside.line.startswith("4 equal to the reference, 3 OUTSIDE it (proxy-rFID above 1.7")
    assert "PSNR above 23." in beside.line


def test_the_report_shows_the_reference_beside_the_values(folder, tmp_path, reported_csv):
    output_of(tmp_path / "reference-runs", range(5))
    make_reference(tmp_path / "reference-runs")
    records = rows(2.5, 2.45)
    build_report(tmp_path, records, reported_csv)
    html, markdown = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    mean = statistics.fmean(r.metrics[3].value for r in reference_records("table2", "mini", "", records[0].dataset))
    for text in (html, markdown):
        assert f"reference {mean:.2f} ± " in text
        assert ": inside" in text
        assert "99% prediction interval" in text


def test_data_of_the_same_name_but_other_content_is_told(folder, tmp_path, make):
    records = output_of(tmp_path / "runs", range(3))
    make_reference(tmp_path / "runs")
    dataset = records[0].dataset
    assert other_data("mini", dataset) == ""
    shuffled = dataset.model_copy(update={"sha256": "5f" * 32})
    assert "digits holds other images or labels here (hash 5f5f5f5f)" in other_data("mini", shuffled)
    assert other_data("mini", shuffled.model_copy(update={"name": "mine"})) == ""
    besides, remark = table_beside([[make(dataset=shuffled)]])
    assert besides == [None]
    assert "d1d1d1d1" in remark


# The command


def test_the_command_makes_the_reference_and_says_what_is_stale(folder, tmp_path, capsys):
    code = dict.fromkeys(("data", "tokenizer"), "12" * 32)
    base = make_record().run
    output_of(tmp_path / "runs", range(3), run=base.model_copy(update={"code": code}))
    assert run(command, "reference", tmp_path / "runs") == 0
    assert str(folder / "table2-mini-digits-d1d1d1d1.jsonl") in capsys.readouterr().out
    assert stale_references(code) == []
    (line,) = stale_references(code | {"tokenizer": "34" * 32})
    assert line == ("table2-mini-digits-d1d1d1d1.jsonl: made at 0123456789ab; the code of tokenizer/ has changed since")
    assert run(command, "reference", "--check") == 0
    assert "the code of" in capsys.readouterr().out


def test_references_measured_by_another_extractor_than_the_one_that_ships_are_stale(folder, tmp_path):
    output_of(tmp_path / "runs", range(3))
    make_reference(tmp_path / "runs")
    write_json(folder / f"extractors/{PLACE}.json", {"sha256": "12" * 32})
    (line,) = stale_references({})
    assert line == f"table2-{PLACE}.jsonl: measured with a proxy extractor other than the one that ships (12121212)"


def test_references_of_earlier_protocols_are_stale(folder, tmp_path, monkeypatch):
    output_of(tmp_path / "runs", range(3))
    make_reference(tmp_path / "runs")
    assert not any("protocol" in line for line in stale_references({}))
    newer = METRICS["PSNR"].__class__(**{**vars(METRICS["PSNR"]), "version": 2})
    monkeypatch.setitem(METRICS, "PSNR", newer)
    assert [line.split(": ")[1] for line in stale_references({})] == [
        "PSNR has version 1 of its protocol, the code has 2"
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "name an output folder"),
        (("runs", "--check"), "name an output folder"),
        (("empty",), "no finished records"),
    ],
)
def test_wrong_arguments_are_one_line(folder, tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert run(command, "reference", *arguments) == 2
    _, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert expected in err
    assert err.count("\n") == 1


def test_a_model_without_its_curve_is_one_line(folder, tmp_path, capsys):
    output_of(tmp_path / "runs", range(3))
    next(tmp_path.glob("runs/*/seed1/tokenizers/*/curve.jsonl")).unlink()
    assert run(command, "reference", tmp_path / "runs") == 2
    assert "curve.jsonl: no such file" in capsys.readouterr().err


# What ships


def test_the_reference_that_ships_is_as_it_was_written():
    files = record_files()
    if not files:
        pytest.skip("the project ships no reference yet")
    for path in files:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert packed(read_packed(path)) == lines, path.name
        assert not any(record.pictures for record in read_packed(path))
    for path in sorted((REFERENCE / "curves").glob("*.jsonl")):
        read_curves(path)
    assert not read_records(REFERENCE)
