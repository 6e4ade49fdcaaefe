"""Rows of others beside ours: the same images give the same values in the same columns, and all else is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image

import reproductions.source as source
from imagefolder.data.images import to_float, to_uint8
from imagefolder.generator.__main__ import main as sample
from imagefolder.loading import load_tokenizer
from leaderboard.__main__ import command as leaderboard
from leaderboard.record import Metric, Record
from leaderboard.store import read_records

pytestmark = pytest.mark.usefixtures("tiny_mini")
NUMBER, TESTS = 40, 60


@pytest.fixture
def finished(imagefolder_row: Path) -> Path:
    return imagefolder_row


def write_pngs(folder: Path, images: torch.Tensor, order: list[int] | None = None) -> Path:
    """Files whose names sort in the given order of the images."""
    folder.mkdir(parents=True)
    for place, index in enumerate(order or range(len(images))):
        Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(folder / f"{place:05d}.png")
    return folder


def add(output: Path, *arguments: object, like: str = "table2", label: str = "Theirs") -> int:
    return run(leaderboard, "add", *arguments, "--like", like, "--label", label, "--output", output)


def record_of(output: Path, row: str) -> Record:
    (found,) = [record for record in read_records(output / "records") if record.row.startswith(row)]
    return found


def comparable(record: Record) -> dict[str, Metric]:
    """Its values as images in files have them: one set of samples has no spread over several sets."""
    return {
        metric.protocol.key: metric.model_copy(update={"spread": None}) if metric.protocol.metric == "gFID" else metric
        for metric in record.metrics
    }


def models(output: Path) -> dict[str, Path]:
    return {c.role: (output / c.path).parent for c in record_of(output, "imagefolder").checkpoints}


def samples_of_the_row(output: Path, folder: Path, format: str = "npz") -> Path:
    """Samples by the command line, with the settings of the row's evaluation."""
    found, settings = models(output), record_of(output, "imagefolder").config["sampling"]
    arguments = [
        *("--generator", "VAR-mini-MSVR3P2-256", "--generator-weights", found["generator"]),
        *("--tokenizer-weights", found["tokenizer"], "--number", NUMBER, "--output", folder, "--format", format),
        *("--seed", 0, "--guidance", settings["guidance"], "--top-k", settings["top_k"], "--top-p", settings["top_p"]),
        *("--batch-size", settings["batch_size"]),
    ]
    assert run(sample, *arguments) == 0
    return folder / "samples.npz" if format == "npz" else folder


def reconstructions_of_the_row(output: Path, originals: Path) -> torch.Tensor:
    tokenizer = load_tokenizer("mini-MSVR3P2-256", models(output)["tokenizer"])
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(originals.glob("*.png"))])
    batches = torch.from_numpy(images).permute(0, 3, 1, 2).split(50)
    return torch.cat([to_uint8(tokenizer.decode(tokenizer.encode(to_float(batch)))) for batch in batches])


@pytest.mark.parametrize("format", ["npz", "png"])
def test_our_own_samples_and_reconstructions_give_the_very_values_of_the_table(
    finished: Path, tmp_path: Path, format: str
) -> None:
    samples = samples_of_the_row(finished, tmp_path / "samples", format)
    originals = tmp_path / "originals"
    assert run(leaderboard, "images", originals, "--like", "table2", "--output", finished) == 0
    images = reconstructions_of_the_row(finished, originals)
    files = write_pngs(tmp_path / "reconstructions", images)
    if format == "png":  # pairs in another order
        order = list(range(TESTS))[::-1]
        shuffled = torch.stack([torch.from_numpy(np.array(Image.open(p))) for p in sorted(originals.glob("*.png"))])
        originals = write_pngs(tmp_path / "originals2", shuffled.permute(0, 3, 1, 2), order)
        files = write_pngs(tmp_path / "reconstructions2", images, order)
    assert add(finished, samples, "--reconstructions", files, "--originals", originals, "--author", "Ada") == 0
    ours, theirs = record_of(finished, "imagefolder"), record_of(finished, "added-theirs")
    known, added = comparable(ours), comparable(theirs)
    others = {known[key].protocol.metric for key in known.keys() - added.keys()}
    assert others == {"pFID", "gFID (unguided)", "IS (unguided)"}  # these need a tokenizer, or a generator
    assert added == {key: known[key] for key in added}  # protocols, values, numbers and floors: every bit
    assert next(metric for metric in theirs.metrics if metric.protocol.metric == "gFID").spread is None
    assert {m.protocol.metric for m in theirs.metrics} >= {"gFID", "rFID", "IS", "precision", "PSNR", "class accuracy"}
    assert theirs.added is not None
    assert theirs.run.command.startswith("python -m leaderboard add ")
    assert (theirs.added.author, theirs.cost, theirs.size, theirs.config) == ("Ada", None, None, {})
    for name, path in theirs.pictures.items():
        assert (finished / path).read_bytes() == (finished / ours.pictures[name]).read_bytes()
    lines = list(csv.DictReader((finished / "leaderboard.csv").open()))
    (mine,), (other,) = ([line for line in lines if line["origin"] == kind] for kind in ("measured", "added"))
    metrics = ("proxy-", "PSNR", "SSIM", "class accuracy")
    columns = [n for n in mine if n.startswith(metrics) and "pFID" not in n and "unguided" not in n]
    assert len(columns) > 40
    assert {name: mine[name] for name in columns} == {name: other[name] for name in columns}
    assert run(leaderboard, "validate", *(finished / "records").glob("*.json")) == 0
    report = (finished / "report.html").read_text()
    assert '<span class="added">added</span>' in report
    assert "added by Ada" in report
    assert "(added)" in (finished / "report.md").read_text()


def test_equal_samples_of_another_seed_make_one_row_and_replaced_ones_are_kept(finished: Path, tmp_path: Path) -> None:
    samples = samples_of_the_row(finished, tmp_path / "samples")
    for seed in (0, 1):
        assert add(finished, samples, "--seed", seed) == 0
    lines = [line for line in csv.DictReader((finished / "leaderboard.csv").open()) if line["origin"] == "added"]
    assert [line["seeds"] for line in lines] == ["0 1"]
    with np.load(samples) as arrays:
        np.savez(tmp_path / "other.npz", arr_0=255 - arrays["arr_0"], arr_1=arrays["arr_1"])
    assert add(finished, tmp_path / "other.npz") == 0
    (kept,) = (finished / "records" / "earlier").iterdir()
    first = json.loads(kept.read_text())["added"]["samples_sha256"]
    assert first != record_of_seed(finished, 0).added.samples_sha256
    assert first == record_of_seed(finished, 1).added.samples_sha256


def record_of_seed(output: Path, seed: int) -> Any:
    return next(r for r in read_records(output / "records") if r.added and r.seed == seed)


def test_samples_without_labels_are_measured_except_for_their_classes(finished: Path, tmp_path: Path) -> None:
    with np.load(samples_of_the_row(finished, tmp_path / "samples")) as arrays:
        np.savez(tmp_path / "plain.npz", arr_0=arrays["arr_0"])
    assert add(finished, tmp_path / "plain.npz") == 0
    theirs = record_of(finished, "added-theirs")
    ours = comparable(record_of(finished, "imagefolder"))
    names = {metric.protocol.metric for metric in theirs.metrics}
    assert "gFID" in names
    assert "class accuracy" not in names
    assert all(ours[key] == metric for key, metric in comparable(theirs).items())
    assert "balance is not checked" in theirs.note


def test_what_the_table_would_not_measure_is_refused_in_one_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = np.zeros((NUMBER, 32, 32, 3), np.uint8), np.arange(NUMBER) % 10
    before = sorted((finished / "records").iterdir())

    def refused(reason: str, *arguments: object, **table: str) -> None:
        capsys.readouterr()
        assert add(finished, *arguments, **table) == 2
        _, err = capsys.readouterr()
        assert err.startswith("error: "), err
        assert err.count("\n") == 1
        assert reason in err

    def npz(name: str, **arrays: Any) -> Path:
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    good = npz("good.npz", arr_0=images, arr_1=labels)
    refused("39 images, but table2 at scale mini on digits measures 40 samples; give exactly 40", npz(
        "few.npz", arr_0=images[1:]))  # fmt: skip
    refused("images of 16 x 32 pixels, but table2", npz("narrow.npz", arr_0=images[:, :, :16]))
    refused("label 10 is no class of digits", npz("label.npz", arr_0=images, arr_1=labels + 1))
    refused("between 3 and 5 samples of a class", npz("uneven.npz", arr_0=images, arr_1=np.where(
        labels == 0, np.arange(NUMBER) // 10 == 0, labels)))  # fmt: skip
    refused("labels are float64", npz("float.npz", arr_0=images, arr_1=labels / 1))
    refused("nothing to add")
    refused("--reconstructions and --originals go together", good, "--originals", good)
    refused("is not a web address", good, "--link", "javascript:alert(1)")
    refused("--label is the name of the row", good, label=" ")
    refused("no finished row of ablation (tables there: table2); run `python reproductions/ablation.py", good,
            like="ablation")  # fmt: skip
    refused("'nonsense' is no table of this suite", good, like="nonsense")
    refused("no finished row of table2 at scale full (only mini)", good, "--scale", "full")
    refused("not run at scale mini with that budget; give no --budget", good, "--budget", "steps=5")
    pairs = npz("pairs.npz", arr_0=np.zeros((TESTS, 32, 32, 3), np.uint8))
    refused("image 0 (from 0) is not, pixel by pixel, one of the 60 test images of digits", "--reconstructions", pairs,
            "--originals", pairs)  # fmt: skip
    folder = tmp_path / "data"
    for label in range(2):
        write_pngs(folder / str(label), torch.zeros(60, 3, 32, 32, dtype=torch.uint8))
    refused("not the images that table2 was measured on", good, "--data", folder)
    source.read_splits.cache_clear()
    assert sorted((finished / "records").iterdir()) == before


def test_a_missing_or_other_extractor_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros((NUMBER, 32, 32, 3), np.uint8))
    extractor = finished / next(c.path for c in record_of(finished, "imagefolder").checkpoints if c.role == "extractor")
    content = bytearray(extractor.read_bytes())
    content[-1] ^= 1
    for change, reason in (
        (lambda: extractor.write_bytes(content), "is not the one"),
        (extractor.unlink, "is missing"),
    ):
        change()
        assert add(finished, tmp_path / "samples.npz") == 2
        assert f"the proxy extractor of table2 {reason}" in capsys.readouterr().err


def test_values_of_another_program_never_share_a_column(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table's records as an earlier torch-fidelity would have written them."""
    path = next((finished / "records").glob("table2-imagefolder*.json"))
    document = json.loads(path.read_text())
    document["run"].pop("checksum")
    for metric in document["metrics"]:
        metric["protocol"]["evaluator"] = metric["protocol"]["evaluator"].replace(
            "torch-fidelity", "torch-fidelity 0.1 or"
        )
    path.write_text(json.dumps(document))
    assert add(finished, samples_of_the_row(finished, tmp_path / "samples")) == 2
    err = capsys.readouterr().err
    assert "would not share its column of table2" in err
    assert "torch-fidelity 0.1 or" in err
