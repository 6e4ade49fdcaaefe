"""Scale full: the whole pipeline at 256 px on random weights of the released shapes, and missing weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch_fidelity import feature_extractor_inceptionv3 as published

import reproductions.timing_stage as timing_stage
from imagefolder import weights
from imagefolder.environment import peak_memory_mib, reset_peak_memory
from imagefolder.evaluation import protocols, real
from imagefolder.files import file_sha256
from imagefolder.weights import DINO
from imagefolder.zoo import TOKENIZERS
from reproductions import table2
from reproductions.command import run_table
from reproductions.options import Options
from reproductions.recipe import Recipe, Table
from reproductions.scales import SCALES, Scale

Records = Callable[[Path], dict[str, dict[str, Any]]]
IMAGES = 10


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Noise in two classes, with ten test images."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 4), ("val", IMAGES // 2)):
        for name in ("one", "two"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                Image.fromarray(rng.integers(0, 256, (280, 300, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def run(output: Path, *rows: str, recipes: Callable[..., list] = table2.rows, **options: Any) -> int:
    return run_table(Table("table2", "Table 2", recipes), Options(rows=rows, scale="full", output=output, **options))


@pytest.mark.usefixtures("no_weights")
def test_without_weights_rows_are_not_run_and_name_the_missing_files(
    tmp_path: Path, images: Path, records: Records, executed: list[str]
) -> None:
    assert run(tmp_path / "out", "imagefolder", "vq", data=str(images)) == 0
    assert executed == []
    found = records(tmp_path / "out")
    assert {record["status"] for record in found.values()} == {"not run"}
    reason = found["imagefolder"]["reason"]
    assert reason.startswith("weights absent: ")
    for name in (
        weights.INCEPTION,
        weights.ADM_REFERENCE,
        weights.VGG16_FILE,
        DINO,
        TOKENIZERS["MSVR10P2-4096"].backbone,
    ):
        assert name in reason
    assert weights.FILES[weights.INCEPTION].sha256 in reason
    assert "95,628,359" in reason
    assert "not run: weights absent" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.usefixtures("no_weights")
def test_given_weights_need_only_the_weights_of_the_metrics(
    tmp_path: Path, images: Path, records: Records, executed: list[str]
) -> None:
    (tmp_path / "best_ckpt.pt").touch()
    assert run(tmp_path / "out", data=str(images), tokenizer_weights=str(tmp_path / "best_ckpt.pt")) == 0
    (record,) = records(tmp_path / "out").values()
    assert record["row"] == "imagefolder-given"
    assert weights.INCEPTION in record["reason"]
    assert weights.VGG16_FILE not in record["reason"]
    assert weights.ADM_REFERENCE not in record["reason"]  # no generator, no samples


def write_random_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write every file that the scale needs, with random content that this test accepts."""
    folder.mkdir()
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(folder))
    for name in (DINO, TOKENIZERS["MSVR10P2-4096"].backbone):
        save_file(timm.create_model(name, pretrained=False, num_classes=0).state_dict(), folder / f"{name}.safetensors")
    torch.save(torchvision.models.vgg16().state_dict(), folder / weights.VGG16_FILE)
    monkeypatch.setitem(
        weights.FILES,
        weights.VGG16_FILE,
        replace(weights.FILES[weights.VGG16_FILE], sha256=file_sha256(folder / weights.VGG16_FILE)),
    )

    class Blank(published.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:
            """Keep the initial weights."""

    with monkeypatch.context() as patch:
        patch.setattr(published, "load_state_dict_from_url", lambda *_, **__: {})
        inception = Blank("blank", ["2048"])
    for module in inception.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)  # otherwise all images would have the same features
    torch.save(inception.state_dict(), folder / weights.INCEPTION)
    rng = np.random.default_rng(1)
    statistics = {}
    for suffix, width in (("", 2048), ("_s", 2023)):
        statistics[f"mu{suffix}"] = rng.random(width)
        statistics[f"sigma{suffix}"] = np.diag(rng.random(width))
    pictures = rng.integers(0, 256, (IMAGES, 256, 256, 3), np.uint8)
    np.savez(folder / weights.ADM_REFERENCE, arr_0=pictures, **statistics)
    for name in (weights.INCEPTION, weights.ADM_REFERENCE, weights.VGG16_FILE):
        monkeypatch.setitem(weights.FILES, name, replace(weights.FILES[name], sha256=file_sha256(folder / name)))


def without_perturbation(scale: Scale, classes: int) -> list[Recipe]:
    """The rows of table 2 without pFID, which takes fifteen reconstructions of all images."""
    return [replace(recipe, measures=("reconstruction", "generation")) for recipe in table2.rows(scale, classes)]


@pytest.mark.slow
@pytest.mark.skipif(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 20 * 2**30, reason="needs 20 GiB")
def test_whole_path_with_random_weights_in_24_gib(
    tmp_path: Path, images: Path, records: Records, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One training step of each model, including the discriminator, then an evaluation on ten images."""
    full: Scale = SCALES["full"]
    short = {"steps": 1, "batch_size": 2}
    scale = replace(
        full,
        tokenizer_training=replace(full.tokenizer_training, **short),
        generator_training=replace(full.generator_training, **short),
        loss=replace(full.loss, adversarial_start=0.0),
        views=1,
    )
    monkeypatch.setitem(SCALES, "full", scale)
    for module in (protocols, real):
        monkeypatch.setattr(module, "IMAGENET_CLASSES", 2)
    monkeypatch.setattr(timing_stage, "LONGEST", 0.0)  # one round
    write_random_weights(tmp_path / "weights", monkeypatch)
    torch.set_num_threads(os.cpu_count())
    reset_peak_memory()
    options = {"data": images, "num_samples": IMAGES, "micro_batch": 1, "activation_checkpointing": True}
    assert run(tmp_path / "out", "imagefolder", recipes=without_perturbation, **options) == 0
    print(f"peak memory {peak_memory_mib():.0f} MiB")
    assert peak_memory_mib() < 24 * 1024
    record = records(tmp_path / "out")["imagefolder"]
    assert record["status"] == "finished", record["reason"]
    values = {metric["protocol"]["name"]: metric for metric in record["metrics"]}
    assert {"rFID", "gFID", "sFID", "IS", "precision", "recall", "PSNR", "SSIM", "LPIPS"} <= values.keys()
    assert {metric["n_generated"] for metric in values.values()} == {IMAGES}
    assert values["rFID"]["value"] > 1e-6
    assert "rFID of the test images" in record["checkpoints"][0]["selection"]
    (curve,) = (tmp_path / "out").glob("full-images-*/seed0/tokenizers/*/curve.jsonl")
    assert {"adversarial", "discriminator", "perceptual", "semantic", "evaluation"} <= set(last_point(curve))

    # The new tokenizer, evaluated as given weights: another row, the same numbers
    (tokenizer,) = (tmp_path / "out" / c["path"] for c in record["checkpoints"] if c["role"] == "tokenizer")
    given = {"tokenizer_weights": str(tokenizer.parent), "data": images, "num_samples": IMAGES}
    assert run(tmp_path / "out", recipes=without_perturbation, **given) == 0
    again = records(tmp_path / "out")["imagefolder-given"]
    assert again["metrics"] == [m for m in record["metrics"] if m["protocol"]["reference"] == "images/test"]
    assert "tokenizer_training" not in again["config"]


def last_point(curve: Path) -> dict[str, float]:
    return json.loads(curve.read_text().splitlines()[-1])
