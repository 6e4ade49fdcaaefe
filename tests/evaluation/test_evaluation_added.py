"""Images of others at scale full: the published network and reference, here with random content."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image

import imagefolder.evaluation.real as real
from imagefolder import weights
from imagefolder.data.images import DataSplits
from imagefolder.environment import describe
from imagefolder.evaluation.protocols import measure_reconstructions, measure_samples
from imagefolder.evaluation.spaces import extractors_for
from leaderboard.__main__ import command
from leaderboard.record import Cost, Metric, Record, Run
from leaderboard.store import read_records, write_record
from reproductions.options import Options
from reproductions.plan import data_source
from reproductions.scales import SCALES
from reproductions.source import describe as described
from reproductions.source import read_splits

NUMBER = 10


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3 * NUMBER, 256, 256, 3), np.uint8)


@pytest.fixture
def data(tmp_path: Path, noise: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of two classes, in place of ImageNet's thousand."""
    monkeypatch.setattr(real, "IMAGENET_CLASSES", 2)
    for i, image in enumerate(noise[: 2 * NUMBER]):
        folder = tmp_path / "images" / ("train" if i < NUMBER else "val") / str(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def published(tmp_path: Path, random_inception: Path, accept: Callable[[Path], None], noise: np.ndarray) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    rng = np.random.default_rng(1)
    statistics = {}
    for suffix, width in (("", 2048), ("_s", 2023)):
        statistics |= {f"mu{suffix}": rng.random(width), f"sigma{suffix}": np.diag(rng.random(width))}
    np.savez(folder / weights.ADM_REFERENCE, arr_0=noise[:NUMBER], **statistics)
    shutil.copy(random_inception, folder)
    for name in (weights.ADM_REFERENCE, weights.INCEPTION):
        accept(folder / name)
    return folder


def write_table(output: Path, splits: DataSplits, samples: torch.Tensor, reconstructions: torch.Tensor) -> Record:
    """A record of table 2, as an evaluation of these images writes it."""
    extractors = extractors_for(None)
    result = measure_samples(
        [samples], splits, extractors, number=NUMBER, size=(256, 256), labels=torch.arange(NUMBER) % 2, title="samples"
    )
    originals, _ = splits.test.plain().__getitems__([(0, i) for i in range(NUMBER)])
    result += measure_reconstructions([(originals, reconstructions)], splits, extractors)
    record = Record(
        table="table2", row="imagefolder", label="Ours", note="Noise.", scale="full", seed=0, status="finished",
        config={}, config_sha256="0" * 64, dataset=described(splits),
        metrics=[Metric.of(value) for value in result.measurements],
        cost=Cost(evaluation_seconds=1.0, sample_batch=NUMBER, tokenizer_shared=False, peak_memory_mib=1.0),
        run=Run(started="2026-01-02T03:04:05Z", finished="2026-01-02T03:04:06Z", command="", **describe()),
    )  # fmt: skip
    write_record(output / "records", record)
    return record


@pytest.mark.slow
def test_images_of_others_are_measured_by_the_published_protocols(
    tmp_path: Path, data: Path, published: Path, noise: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    output, samples, mine = tmp_path / "runs", noise[NUMBER // 2 :][:NUMBER], noise[2 * NUMBER :]
    splits = read_splits(data_source(SCALES["full"], Options(data=str(data), output=output)))
    as_tensors = [torch.from_numpy(images).permute(0, 3, 1, 2).contiguous() for images in (samples, mine)]
    ours = write_table(output, splits, *as_tensors)
    np.savez(tmp_path / "samples.npz", arr_0=samples, arr_1=np.arange(NUMBER) % 2)
    np.savez(tmp_path / "mine.npz", arr_0=mine)
    table = ("--like", "table2", "--data", data, "--output", output)
    assert run(command, "images", tmp_path / "originals", *table) == 0
    pairs = ("--reconstructions", tmp_path / "mine.npz", "--originals", tmp_path / "originals")
    assert run(command, "add", tmp_path / "samples.npz", *table, *pairs, "--label", "Theirs") == 0
    (theirs,) = [record for record in read_records(output / "records") if record.added]
    assert theirs.metrics == ours.metrics
    assert {"gFID", "sFID", "IS", "precision", "rFID", "PSNR"} <= {m.protocol.name for m in theirs.metrics}
    assert theirs.checkpoints == []
    capsys.readouterr()
    (published / weights.ADM_REFERENCE).unlink()
    assert run(command, "add", tmp_path / "samples.npz", *table, "--label", "Theirs") == 2
    err = capsys.readouterr().err
    assert weights.ADM_REFERENCE in err
    assert err.count("\n") == 1
