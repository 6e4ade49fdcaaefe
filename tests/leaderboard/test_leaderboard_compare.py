"""`python -m leaderboard --compare A B`: what changed between two folders of records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import run
from make_records import make_failed, make_metric, make_record

from leaderboard.__main__ import command
from leaderboard.compare import compare_folders
from leaderboard.record import Record
from leaderboard.reference_files import packed
from leaderboard.store import write_record


def write(folder: Path, *records: Record) -> Path:
    for record in records:
        write_record(folder / "records", record)
    return folder


def row(row: str = "imagefolder", *values: float) -> list[Record]:
    return [make_record(row, seed, value) for seed, value in enumerate(values)]


def test_equal_folders_differ_in_nothing(tmp_path):
    a, b = (write(tmp_path / name, *row("imagefolder", 2.5, 2.6)) for name in "ab")
    text = "\n".join(compare_folders(a, b))
    assert "only in" not in text
    assert "->" not in text
    assert "equal: proxy-rFID, PSNR, SSIM, proxy-gFID, proxy-IS, precision, class accuracy" in text
    assert "made with: the same" in text


def test_rows_and_seeds_of_only_one_are_listed(tmp_path):
    a = write(tmp_path / "a", *row("imagefolder", 2.5, 2.6), *row("var", 2.0), make_failed())
    b = write(tmp_path / "b", *row("imagefolder", 2.5, 2.6, 2.7))
    lines = compare_folders(a, b)
    assert "only in A: table2 var, mini on digits (d1d1d1d1), seed 0" in lines
    assert "only in A: table2 lfq, mini on digits (d1d1d1d1), seed 0 failed" in lines
    assert "table2 imagefolder, mini on digits (d1d1d1d1): seeds 0 1 -> seeds 0 1 2" in lines
    (gfid,) = [line for line in lines if "proxy-gFID" in line]
    assert gfid.endswith("equal for every seed that both have")


def test_values_that_differ_are_told_apart_by_the_spread_of_the_seeds(tmp_path):
    a = write(tmp_path / "a", *row("imagefolder", 2.4, 2.5, 2.6), *row("var", 2.4, 2.5, 2.6))
    b = write(tmp_path / "b", *row("imagefolder", 2.45, 2.5, 2.7), *row("var", 4.4, 4.5, 4.6))
    within, beyond = [line for line in compare_folders(a, b) if line.startswith("   proxy-gFID")]
    assert within == "   proxy-gFID: 2.5 ± 0.1 -> 2.55 ± 0.13, different (+0.05), within the seeds' spread"
    assert beyond == "   proxy-gFID: 2.5 ± 0.1 -> 4.5 ± 0.1, different (+2), BEYOND the seeds' spread"


def test_two_seeds_have_no_spread_that_anything_could_be_within(tmp_path):
    a, b = write(tmp_path / "a", *row("imagefolder", 2.5, 2.6)), write(tmp_path / "b", *row("imagefolder", 4.5, 4.6))
    (line,) = [line for line in compare_folders(a, b) if line.startswith("   proxy-gFID")]
    assert line.endswith("different (+2)")


def test_changes_of_settings_protocols_and_versions_are_named(tmp_path):
    old = make_record()
    metrics = [make_metric("proxy-gFID", 9.0, extractor_sha256="99" * 32, version=2), make_metric("LPIPS", 0.1)]
    run = old.run.model_copy(
        update={"git_commit": "f" * 40, "git_dirty": False, "packages": {"torch": "2.10.0", "torch-fidelity": "0.4.0"}}
    )
    config = {"tokenizer": {"branches": 4, "width": 64, "scales": [1, 2]}, "row": "imagefolder"}
    new = old.model_copy(update={"config": config, "metrics": metrics, "run": run})
    lines = compare_folders(write(tmp_path / "a", old), write(tmp_path / "b", new))
    assert "   configuration: tokenizer.branches: 2 -> 4" in lines
    assert "   configuration: tokenizer.scales: absent -> [1, 2]" in lines
    assert not any("seed:" in line for line in lines)
    (gfid,) = [line for line in lines if "proxy-gFID" in line]
    assert gfid.endswith("not comparable: version 1 -> 2, extractor_sha256 ab12cd34 -> 99999999")
    assert "   LPIPS: 0.1, only in B" in lines
    assert "   PSNR: 23.8, only in A" in lines
    assert "   torch: 2.9.0 -> 2.10.0" in lines
    assert "   commit: 0123456789ab with uncommitted changes -> ffffffffffff" in lines
    assert not any("torch-fidelity:" in line for line in lines)


def test_folders_of_records_and_the_reference_can_be_compared(tmp_path):
    a = write(tmp_path / "a", *row("imagefolder", 2.4, 2.5, 2.6))
    (tmp_path / "b").mkdir()
    lines = packed(row("imagefolder", 2.4, 2.5, 2.6))
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "b/table2-mini-digits-d1d1d1d1.jsonl").write_text(text)
    text = "\n".join(compare_folders(a / "records", tmp_path / "b"))
    assert "made with: the same" in text
    assert "BEYOND" not in text


def test_the_command_prints_it_and_builds_no_report(tmp_path, capsys):
    a, b = write(tmp_path / "a", *row("imagefolder", 2.5)), write(tmp_path / "b", *row("imagefolder", 2.6))
    (b / "records/broken.json").write_text("{")
    assert run(command, "--compare", a, b) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "left out: " in out
    assert "broken.json" in out
    assert "different (+0.1)" in out
    assert sorted(path.name for path in a.iterdir()) == [".records.lock", "records"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("a",), "needs two folders"), (("a", "gone"), "gone: no such folder"), (("a", "empty"), "no usable records")],
)
def test_folders_that_cannot_be_compared_are_one_line(tmp_path, capsys, names, expected):
    write(tmp_path / "a", make_record())
    (tmp_path / "empty").mkdir()
    assert run(command, "--compare", *(tmp_path / name for name in names)) == 2
    _, err = capsys.readouterr()
    assert expected in err
    assert err.count("\n") == 1
