"""Image folders: layouts, splits, crops and identity."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagefolder.data.folder import FolderImages, center_crop, image_folder, open_rgb, random_crop
from imagefolder.data.order import ordered_batches, training_batches
from imagefolder.evaluation.protocols import all_images

CLASSES = {"cats": 10, "dogs": 12, "owls": 2}
Draw = Callable[..., Path]


def names(images: FolderImages) -> set[str]:
    return {f"{sample.path.parent.name}/{sample.path.name}" for sample in images.samples}


def test_a_fifth_of_every_class_is_the_test_split(tmp_path: Path, classes_at: Draw) -> None:
    splits = image_folder(classes_at(tmp_path / "animals", CLASSES), 8)
    assert splits.name == "animals"
    assert splits.classes == ["cats", "dogs", "owls"]
    assert Counter(s.label for s in splits.test.samples) == {0: 2, 1: 2, 2: 1}
    assert Counter(s.label for s in splits.train.samples) == {0: 8, 1: 10, 2: 1}
    assert not names(splits.train) & names(splits.test)


def test_the_split_depends_on_file_names_alone(tmp_path: Path, classes_at: Draw) -> None:
    first = image_folder(classes_at(tmp_path / "a", CLASSES), 8)
    other = image_folder(classes_at(tmp_path / "b", CLASSES, seed=99), 8)
    assert names(first.test) == names(other.test)
    for name in names(first.test):
        assert (tmp_path / "a" / name).is_file()
    assert names(first.test) != {"cats/000.png", "cats/001.png", "dogs/000.png", "dogs/001.png", "owls/000.png"}


def test_adding_one_image_moves_few_others(tmp_path: Path, classes_at: Draw, image_at: Draw) -> None:
    root = classes_at(tmp_path, CLASSES)
    before = names(image_folder(root, 8).test)
    image_at(root / "cats" / "new.png", 7)
    after = names(image_folder(root, 8).test)
    assert len(before ^ after) <= 2


def test_train_and_val_folders_are_the_splits(tmp_path: Path, classes_at: Draw) -> None:
    classes_at(tmp_path / "train", {"a": 3, "b": 4})
    classes_at(tmp_path / "val", {"a": 2, "b": 1}, seed=50)
    splits = image_folder(tmp_path, 8)
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert splits.test.labels.tolist() == [0, 0, 1]
    assert {s.path.parent.parent.name for s in splits.test.samples} == {"val"}


def test_nested_and_upper_case_files_are_found_and_others_ignored(
    tmp_path: Path, classes_at: Draw, image_at: Draw
) -> None:
    root = classes_at(tmp_path, {"a": 2})
    image_at(root / "a" / "deep" / "x.PNG", 1)
    (root / "a" / "notes.txt").write_text("not an image")
    (root / ".cache").mkdir()
    splits = image_folder(root, 8)
    assert splits.classes == ["a"]
    assert len(splits.train) + len(splits.test) == 3


def adm_crop(image: Image.Image, size: int) -> np.ndarray:
    """Written anew from the description of ADM's centre crop."""
    width, height = image.size
    while min(width, height) >= 2 * size:
        width, height = width // 2, height // 2
        image = image.resize((width, height), resample=Image.BOX)
    factor = size / min(width, height)
    image = image.resize((round(width * factor), round(height * factor)), resample=Image.BICUBIC)
    left, top = (image.size[0] - size) // 2, (image.size[1] - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("size", [(16, 16), (31, 17), (64, 33), (97, 151), (9, 40), (200, 32)])
def test_centre_crop_is_adms(tmp_path: Path, image_at: Draw, size: tuple[int, int]) -> None:
    image = open_rgb(image_at(tmp_path / "x.png", 0, size))
    assert np.array_equal(center_crop(image, 16), adm_crop(image, 16))


def test_test_images_are_centre_crops_in_order(tmp_path: Path, classes_at: Draw) -> None:
    images = image_folder(classes_at(tmp_path, CLASSES), 8).test
    (batch, labels), (again, _) = (next(iter(ordered_batches(images, 100))) for _ in range(2))
    assert batch.dtype == torch.uint8
    assert batch.shape == (5, 3, 8, 8)
    assert labels.tolist() == [0, 0, 1, 1, 2]
    assert torch.equal(batch, again)
    for image, sample in zip(batch, images.samples, strict=True):
        expected = adm_crop(Image.open(sample.path).convert("RGB"), 8)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


@pytest.fixture
def augmented(tmp_path: Path, classes_at: Draw) -> FolderImages:
    return image_folder(classes_at(tmp_path, {"a": 25}), 12).train


def test_augmentation_is_a_function_of_epoch_and_index(augmented: FolderImages) -> None:
    keys = [(0, 3), (1, 3), (0, 4)]
    images, _ = augmented.__getitems__(keys)
    for key, image in zip(keys, images, strict=True):
        assert torch.equal(augmented.__getitems__([key])[0][0], image)


def test_augmentation_differs_between_epochs(augmented: FolderImages) -> None:
    views = {augmented.__getitems__([(epoch, 3)])[0].numpy().tobytes() for epoch in range(20)}
    assert len(views) > 8


def test_augmentation_flips_half_of_the_images(tmp_path: Path, image_at: Draw) -> None:
    """A dark-to-bright ramp keeps its direction under any crop, so only flips turn it around."""
    ramp = np.broadcast_to(np.linspace(0, 255, 30, dtype=np.uint8)[None, :, None], (30, 30, 3))
    for i in range(2):
        image_at(tmp_path / "a" / f"{i}.png", i)
        Image.fromarray(ramp).save(tmp_path / "a" / f"{i}.png")
    train = image_folder(tmp_path, 24).train
    images, _ = train.__getitems__([(epoch, 0) for epoch in range(200)])
    flipped = (images[:, 0, 0, 0] > images[:, 0, 0, -1]).double().mean()
    assert 0.35 < float(flipped) < 0.65


def test_random_crop_reaches_every_corner_of_the_enlarged_image() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (18, 18, 3), dtype=np.uint8))
    whole = np.asarray(image)  # 16 x 1.125 = 18: nothing is resized
    places = set()
    for seed in range(200):
        crop = random_crop(image, 16, 1.125, random.Random(seed))
        places |= {(y, x) for y in range(3) for x in range(3) if np.array_equal(crop, whole[y : y + 16, x : x + 16])}
    assert places == {(y, x) for y in range(3) for x in range(3)}


def test_worker_processes_do_not_change_the_batches(augmented: FolderImages) -> None:
    batches = list(training_batches(augmented, 4, 0, 3, 6))
    augmented.workers = 0  # hides the class attribute
    for (images, labels), (own, own_labels) in zip(batches, training_batches(augmented, 4, 0, 3, 6), strict=True):
        assert torch.equal(images, own)
        assert torch.equal(labels, own_labels)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, image_at: Draw, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    image = open_rgb(image_at(tmp_path / f"x.{suffix}", 0, (20, 16), mode))
    assert image.mode == "RGB"
    assert center_crop(image, 8).shape == (8, 8, 3)
    if mode in ("L", "LA", "1"):
        pixels = np.asarray(image)
        assert np.array_equal(pixels[..., 0], pixels[..., 2])
    if mode == "RGBA":
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(tmp_path / "x.png"))[..., :3])


def test_identity_changes_with_the_content_of_any_file(tmp_path: Path, classes_at: Draw, image_at: Draw) -> None:
    root = classes_at(tmp_path, CLASSES)
    before = image_folder(root, 8)
    times = (root / "owls").stat().st_mtime, (root / "owls" / "000.png").stat().st_mtime
    assert image_folder(root, 8).sha256 == before.sha256
    image_at(root / "owls" / "000.png", 12345)
    os.utime(root / "owls" / "000.png", times)
    assert image_folder(root, 8).sha256 != before.sha256


def test_identity_changes_with_the_class_of_a_file(tmp_path: Path, classes_at: Draw) -> None:
    root = classes_at(tmp_path, CLASSES)
    before = image_folder(root, 8).sha256
    (root / "cats" / "005.png").rename(root / "dogs" / "05.png")
    assert image_folder(root, 8).sha256 != before
    assert image_folder(root, 16).sha256 != image_folder(root, 8).sha256


def test_training_images_used_as_reference_are_not_augmented(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    train = image_folder(tmp_path, 32).train
    expected = np.stack([center_crop(open_rgb(sample.path), 32) for sample in train.samples]).transpose(0, 3, 1, 2)
    assert np.array_equal(all_images(train).numpy(), expected)


def test_16_bit_images_are_scaled_not_clipped(tmp_path):
    values = (np.arange(24 * 30).reshape(24, 30) * 90 % 65536).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.abs(np.asarray(open_rgb(tmp_path / "deep.png"))[..., 0] - values / 257.0).max() <= 1
