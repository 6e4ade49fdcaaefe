"""All stages on a folder of images, with every term of the objective."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reproductions.scales import SCALES, Scale


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Discs and bars of varying position and colour on noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :50]
    for name in ("bars", "discs"):
        (tmp_path / "shapes" / name).mkdir(parents=True)
        for i in range(30):
            inside = (x - 10 - i) ** 2 + (y - 20) ** 2 < 90 if name == "discs" else abs(x - 10 - i) < 4
            pixels = rng.integers(0, 60, (40, 50, 3)) + inside[..., None] * rng.integers(60, 190, 3)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "shapes" / name / f"{i}.png")
    return tmp_path / "shapes"


@pytest.fixture
def tiny_small(monkeypatch: pytest.MonkeyPatch, shrink: Callable[..., Scale]) -> None:
    """Scale small with the models of scale mini and almost no training, but with its discriminator."""
    models = ("tokenizer", "generator", "single_scale", "raster", "var_scales")
    mini = {name: getattr(SCALES["mini"], name) for name in models}
    scale = shrink(SCALES["small"], threads=1, **mini)
    assert scale.loss.adversarial > 0
    monkeypatch.setitem(SCALES, "small", scale)


@pytest.mark.usefixtures("tiny_small")
def test_image_folder_from_files_to_records(
    tmp_path: Path,
    shapes: Path,
    table: Callable[..., int],
    records: Callable[[Path], dict[str, dict[str, Any]]],
    executed: list[str],
) -> None:
    output = tmp_path / "out"
    assert table(output, "imagefolder", "vq", data=str(shapes), scale="small") == 0
    found = records(output)
    assert set(found) == {"imagefolder", "vq"}
    for record in found.values():
        assert record["status"] == "finished", record["reason"]
        assert record["scale"] == "small"
        dataset = record["dataset"]
        assert (dataset["name"], dataset["n_train"], dataset["n_test"], dataset["classes"]) == ("shapes", 48, 12, 2)
        assert {m["protocol"]["reference"] for m in record["metrics"]} == {"shapes/train", "shapes/test"}
    (curve,) = output.glob("small-shapes-*/seed0/tokenizers/mini-MSVR3P2-256-*/curve.jsonl")
    assert {"adversarial", "adaptive_weight", "discriminator", "semantic"} <= set(last_point(curve))
    assert (output / "report.html").exists()

    executed.clear()
    assert table(output, "imagefolder", "vq", data=str(shapes), scale="small") == 0
    assert executed == []


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_small")
def test_changed_images_are_a_new_data_set(
    tmp_path: Path, shapes: Path, table: Callable[..., int], executed: list[str]
) -> None:
    assert table(tmp_path / "out", "vq", data=str(shapes), scale="small") == 0
    executed.clear()
    Image.new("RGB", (40, 40), (200, 10, 10)).save(shapes / "bars" / "0.png")
    assert table(tmp_path / "out", "vq", data=str(shapes), scale="small") == 0
    assert executed[0].startswith("extractor")
    assert len(list((tmp_path / "out").glob("small-shapes-*"))) == 2


def last_point(curve: Path) -> dict[str, float]:
    return json.loads(curve.read_text().splitlines()[-1])
