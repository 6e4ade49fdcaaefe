"""The comparison of evaluators: which agree, and how much each mistake moves the numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from imagefolder.data.digits import digits
from imagefolder.data.images import ArrayImages, DataSplits
from imagefolder.errors import InputError
from imagefolder.evaluation.protocols import evaluate_files
from imagefolder.evaluation.proxy import proxy_extractor
from imagefolder.files import file_sha256
from reproductions import evaluator_variants
from reproductions.evaluator_variants import Variant, cropped, halved, jpeg
from reproductions.evaluators import compare, difference

Variants = dict[str, dict[str, dict]]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of the script on a few digits, with a briefly trained proxy extractor."""
    whole = digits(32)

    def few(image_size: int = 32) -> DataSplits:
        def first(images: ArrayImages, number: int) -> ArrayImages:
            return ArrayImages(images.images[:number], images.labels[:number])

        return replace(whole, train=first(whole.train, 300), test=first(whole.test, 150))

    output = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(evaluator_variants, "digits", few)
        patch.setattr(evaluator_variants, "STEPS", 200)
        compare(output=output)
    return output


@pytest.fixture(scope="module")
def rows(output: Path) -> Variants:
    """By group and variant."""
    grouped: Variants = {}
    for row in json.loads((output / "evaluators.json").read_text())["rows"]:
        grouped.setdefault(row["group"], {})[row["variant"]] = row
    return grouped


def values(group: dict[str, dict]) -> list[float]:
    return [row["value"] for row in group.values()]


def test_the_document_is_complete_with_n_and_hashes(output: Path, rows: Variants) -> None:
    assert {group: len(variants) for group, variants in rows.items()} == {
        "program": 3, "resize filter": 3, "reference": 3, "format": 4, "IS splits": 4,
    }  # fmt: skip
    document = json.loads((output / "evaluators.json").read_text())
    sha256 = file_sha256(output / "evaluators-extractor.safetensors")
    assert document["extractor_sha256"] == sha256
    assert document["run"]["packages"]["torch-fidelity"]
    text = (output / "evaluators.md").read_text()
    assert sha256 in text
    assert document["clean_fid"] in text
    for row in document["rows"]:
        assert row["n"] == 150
        assert row["n_real"] == {"training images": 300}.get(row["variant"], 0 if row["group"] == "IS splits" else 150)
        assert row["metric"] == ("proxy-IS" if row["group"] == "IS splits" else "proxy-FID")
        assert f"| {row['variant']} | {row['metric']} | {row['value']:.6g} |" in text


def test_programs_agree_on_the_same_images(rows: Variants) -> None:
    ours, *others = values(rows["program"])
    assert ours > 1e-2
    assert others == pytest.approx([ours, ours], rel=1e-5)


def test_resize_filters_disagree(rows: Variants) -> None:
    tensorflow, clean, pytorch = values(rows["resize filter"])
    assert abs(clean / tensorflow - 1) > 1e-3
    assert abs(pytorch / tensorflow - 1) > 1e-3


def test_wrong_references_cost_more_than_a_reconstruction(rows: Variants) -> None:
    right, training, other_crop = values(rows["reference"])
    assert training > 1.2 * right
    assert other_crop > 3 * right


def test_lossy_files_and_rounding_change_the_number(rows: Variants) -> None:
    lossless, fine, coarse, rounded = values(rows["format"])
    assert abs(coarse - lossless) > 1e-3
    assert len({lossless, fine, coarse, rounded}) == 4


def test_class_sorted_images_lower_the_score_of_ordered_splits(rows: Variants) -> None:
    ours, torch_fidelity, ordered, class_sorted = values(rows["IS splits"])
    assert torch_fidelity == pytest.approx(ours, rel=1e-9)
    assert ordered != ours
    assert class_sorted < 0.6 * ours


def test_differences_are_from_the_first_row_of_the_group(rows: Variants) -> None:
    for group in rows.values():
        first, *rest = group.values()
        assert first["difference"] == 0
        for row in rest:
            assert row["difference"] == pytest.approx(row["value"] - first["value"])
    absent = Variant("x", "none", "FID", None, 1, 1, "why")
    assert difference(absent, [Variant("x", "first", "FID", 1.0, 1, 1), absent]) is None


def write(folder: Path, images: Tensor) -> Path:
    folder.mkdir()
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


def test_your_own_images(output: Path, tmp_path: Path) -> None:
    images = digits(32).test.images
    samples, reference = write(tmp_path / "samples", images[:20]), write(tmp_path / "reference", images[20:45])
    extractor = output / "evaluators-extractor.safetensors"
    runs = tmp_path / "runs"
    compare(images=samples, reference=reference, extractor=str(extractor), output=runs)
    rows = json.loads((runs / "evaluators.json").read_text())["rows"]
    assert {row["variant"]: row["reason"] for row in rows if row["value"] is None} == {
        "training images": "give the training images with --training",
        "rounded instead of truncated": "8-bit files hold no fractions",
    }
    result, _ = evaluate_files(samples, reference, [proxy_extractor(extractor)])
    assert rows[0]["value"] == pytest.approx(result.measurements[0].value, rel=1e-9)
    assert (rows[0]["n"], rows[0]["n_real"]) == (20, 25)
    other = write(tmp_path / "small", images[20:45, :, ::2, ::2])
    with pytest.raises(InputError, match="differ in image size"):
        compare(images=samples, reference=other, extractor=str(extractor), output=runs)


def test_incomplete_options_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--images and --reference go together"):
        compare(images=tmp_path)
    with pytest.raises(InputError, match="choose with --extractor"):
        compare(images=tmp_path, reference=tmp_path)


def test_transforms() -> None:
    images = digits(32).test.images[:8]
    assert cropped(images).shape == images.shape
    moved = (cropped(images).int() - images.int()).abs().float().mean()
    assert moved > 5
    losses = [(jpeg(quality)(images).int() - images.int()).abs().float().mean() for quality in (95, 75)]
    assert 0 < losses[0] < losses[1] < moved
    constant = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    torch.testing.assert_close(halved(constant), constant / 255)
