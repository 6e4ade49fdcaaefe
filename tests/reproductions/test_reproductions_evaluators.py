"""The same images through many evaluators: which agree, how much each mistake moves the numbers, what is recorded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from imagefolder.data.digits import digits
from imagefolder.errors import InputError
from imagefolder.evaluation.protocols import evaluate_files
from imagefolder.evaluation.proxy import proxy_extractor
from leaderboard.record import Metric, Record
from leaderboard.store import read_record, read_records
from leaderboard.validate import examine
from reproductions import evaluators, plan
from reproductions.command import run_table
from reproductions.evaluator_rows import evaluate_folders, record_folders
from reproductions.evaluator_variants import cropped, jpeg
from reproductions.options import Options

Run = Callable[..., int]


def run(output: Path, **options: object) -> int:
    return run_table(evaluators.TABLE, Options(output=output, **options))


def record_of(output: Path) -> Record:
    (path,) = (output / "records").glob("evaluators-*.json")
    return read_record(path)


def by_name(record: Record) -> dict[str, Metric]:
    return {metric.protocol.name: metric for metric in record.metrics}


def test_a_row_is_recorded_with_its_models_and_resumed(imagefolder_row: Path, executed: list[str]) -> None:
    trained = sorted(path for path in imagefolder_row.rglob("*.safetensors"))
    executed.clear()
    assert run(imagefolder_row) == 0
    assert [name.split()[0] for name in executed] == ["evaluators"]  # the models are table 2's
    assert sorted(imagefolder_row.rglob("*.safetensors")) == trained
    record = record_of(imagefolder_row)
    (table2,) = (r for r in read_records(imagefolder_row / "records") if r.table == "table2")
    assert record.checkpoints == table2.checkpoints
    assert not examine(imagefolder_row / "records" / f"{record.name}.json").problems
    ours, theirs = by_name(record), by_name(table2)
    for name in ("proxy-rFID", "proxy-gFID", "proxy-IS"):  # exactly what the table measures
        assert ours[name].protocol == theirs[name].protocol
        assert ours[name].value == theirs[name].value
    assert not list(imagefolder_row.rglob("evaluators/*/*.png"))  # the samples were only needed meanwhile
    before = (imagefolder_row / "records" / f"{record.name}.json").read_bytes()
    executed.clear()
    assert run(imagefolder_row) == 0
    assert executed == []
    assert (imagefolder_row / "records" / f"{record.name}.json").read_bytes() == before

    groups: dict[str, list[str]] = {}
    for metric in record.metrics:
        group, _ = metric.protocol.variant or ("", "")
        groups.setdefault(group, []).append(metric.protocol.usual_metric)
    assert groups == {
        "": ["rFID", "gFID", "IS"],
        "program": ["rFID"] * 2,
        "resize filter": ["rFID"] * 3,
        "reference": ["rFID", "gFID"],
        "crop": ["rFID", "gFID"],
        "format": ["rFID"] * 3 + ["gFID"] * 2,
        "number of images": ["gFID"],
        "splits": ["IS"] * 3,
    }
    suite = ours["proxy-rFID"].value
    for name in (name for name in ours if "[program: " in name):
        assert ours[name].value == pytest.approx(suite, rel=1e-4)
    assert ours["proxy-gFID [number of images: the first 20]"].n_generated == 20
    assert ours["proxy-gFID [reference: test images instead of training images]"].n_real == 60
    assert ours["proxy-rFID [reference: training images instead of the originals]"].n_real == 150

    html, markdown = ((imagefolder_row / f"report.{kind}").read_text() for kind in ("html", "md"))
    for text in (html, markdown):
        assert "How much the method alone moves the numbers" in text
        assert "the first 20" in text
    assert "evaluators" not in (imagefolder_row / "leaderboard.csv").read_text()
    lines = (imagefolder_row / "evaluators.csv").read_text().splitlines()
    assert len(lines) == 1 + len(record.metrics)


def test_several_processes_are_refused_before_anything_is_trained(
    imagefolder_row: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    executed.clear()
    monkeypatch.setattr(plan, "world_size", lambda: 2)
    with pytest.raises(InputError, match="without torchrun"):
        run(imagefolder_row)
    assert executed == []


def write(folder: Path, images: Tensor) -> Path:
    folder.mkdir()
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{index:03}.png")
    return folder


@pytest.fixture
def extractor(imagefolder_row: Path) -> Path:
    (path,) = imagefolder_row.glob("*/proxies/extractor.safetensors")
    return path


def blurred(images: Tensor) -> Tensor:
    small = torch.nn.functional.avg_pool2d(images.float(), 2)
    return torch.nn.functional.interpolate(small, images.shape[-2:]).to(torch.uint8)


def test_files_of_the_user(extractor: Path, tmp_path: Path) -> None:
    images = digits(32)
    samples = write(tmp_path / "samples", blurred(images.test.images[:40]))
    reference = write(tmp_path / "reference", images.test.images[:40])
    training = write(tmp_path / "training", images.train.images[:50])
    out, chosen = tmp_path / "out", proxy_extractor(extractor)
    path = record_folders(samples, reference, training, chosen, out, "a command")
    record, again = read_record(path), record_folders(samples, reference, training, chosen, out, "a command")
    assert again == path
    assert not examine(path).problems
    assert record.added is not None
    assert record.added.samples == "samples"
    assert (record.dataset.n_train, record.dataset.n_test) == (50, 40)
    found = by_name(record)
    result, sha256 = evaluate_files(samples, reference, [chosen])
    assert record.added.samples_sha256 == sha256
    assert found["proxy-FID"].value == result.measurements[0].value
    right, wrong = found["proxy-FID"].value, found["proxy-FID [reference: training instead]"].value
    assert right != wrong
    assert found["proxy-FID [crop: reference images cropped from 1.125 x the size]"].value != right
    without, _ = evaluate_folders(samples, reference, None, chosen)
    assert not [m for m in without.measurements if "[reference: " in m.protocol.name]
    small = write(tmp_path / "small", images.test.images[:40, :, ::2, ::2])
    with pytest.raises(InputError, match="have 32 x 32 pixels"):
        evaluate_folders(samples, small, None, chosen)


def test_class_sorted_images_lower_the_score_of_ordered_splits(extractor: Path, tmp_path: Path) -> None:
    images = digits(32).test
    reference = write(tmp_path / "reference", images.images[:100])
    result, _ = evaluate_folders(reference, reference, None, proxy_extractor(extractor))
    found = {m.protocol.name: m.value for m in result.measurements}
    own = next(value for name, value in found.items() if name.startswith("proxy-IS [splits: torch-fidelity"))
    assert own == pytest.approx(found["proxy-IS"], rel=1e-9)
    assert found["proxy-IS [splits: 10 of images sorted by class]"] < found["proxy-IS"]


def test_the_command_for_files(
    extractor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "images", digits(32).test.images[:20])
    words = ["evaluators.py", "files", str(folder), "--reference", str(folder), "--extractor", str(extractor)]
    monkeypatch.setattr(sys, "argv", [*words, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        evaluators.main()
    assert stop.value.code == 0
    (path,) = (tmp_path / "out/records").glob("*.json")
    command = json.loads(path.read_text())["run"]["command"]
    assert command.startswith(f"python reproductions/evaluators.py files {folder} --reference")
    assert "Evaluators" in (tmp_path / "out/report.html").read_text()
    monkeypatch.setattr(sys, "argv", [*words[:2], str(tmp_path / "none"), *words[3:]])
    with pytest.raises(SystemExit) as stop:
        evaluators.main()
    assert stop.value.code == 2
    assert "is no folder; give folders of PNG files" in capsys.readouterr().err


def test_transforms() -> None:
    images = digits(32).test.images[:8]
    assert cropped(images).shape == images.shape
    moved = (cropped(images).int() - images.int()).abs().float().mean()
    assert moved > 5
    losses = [(jpeg(quality)(images).int() - images.int()).abs().float().mean() for quality in (95, 75)]
    assert 0 < losses[0] < losses[1] < moved
