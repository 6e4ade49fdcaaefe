"""Views of stored images: evaluation's centre crop, and the augmentations of the two trainings."""

from __future__ import annotations

import math
import os
import pickle
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagefolder.data.digits import digits
from imagefolder.data.folder import read_data
from imagefolder.data.order import ordered_batches, training_batches
from imagefolder.data.stored import StoredImages
from imagefolder.data.transforms import center_crop, enlarged_crop, open_rgb, random_crop
from imagefolder.errors import InputError

Draw = Callable[..., Path]
Paths = Callable[[StoredImages], list[Path]]
TRAININGS = pytest.mark.parametrize("training", ["tokenizer", "generator"])


def opened(path: Path) -> Image.Image:
    return open_rgb(path.read_bytes(), str(path))


def adm_resize(image: Image.Image, shorter: int) -> Image.Image:
    """An independent implementation of ADM's resizing."""
    width, height = image.size
    while min(width, height) >= 2 * shorter:
        width, height = width // 2, height // 2
        image = image.resize((width, height), resample=Image.BOX)
    factor = shorter / min(width, height)
    return image.resize((round(width * factor), round(height * factor)), resample=Image.BICUBIC)


def adm_crop(image: Image.Image, size: int) -> np.ndarray:
    image = adm_resize(image, size)
    left, top = (image.size[0] - size) // 2, (image.size[1] - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("size", [(16, 16), (31, 17), (64, 33), (97, 151), (9, 40), (200, 32)])
def test_centre_crop_is_adms(tmp_path: Path, image_at: Draw, size: tuple[int, int]) -> None:
    image = opened(image_at(tmp_path / "x.png", 0, size))
    assert np.array_equal(center_crop(image, 16), adm_crop(image, 16))


@pytest.mark.parametrize("shape", [(36, 47), (50, 36), (90, 80), (12, 14)])  # 36: halved for 16..18, not for 19 and 20
def test_random_crop_is_adms(tmp_path: Path, image_at: Draw, shape: tuple[int, int]) -> None:
    """Squares of every permitted size are drawn, and nothing else: shorter side 16 to ceil(16 / 0.8) = 20."""
    image = opened(image_at(tmp_path / "x.png", 0, shape))
    places: dict[bytes, set[tuple[int, int, int]]] = {}
    for shorter in range(16, 21):
        whole = np.asarray(adm_resize(image, shorter))
        for top in range(whole.shape[0] - 15):
            for left in range(whole.shape[1] - 15):
                square = whole[top : top + 16, left : left + 16]
                places.setdefault(square.tobytes(), set()).add((shorter, top, left))
    drawn = Counter(random_crop(image, 16, random.Random(seed)).tobytes() for seed in range(400))
    assert set(drawn) <= set(places)
    sizes = Counter({side: 0 for side in range(16, 21)})
    for square, number in drawn.items():
        sizes[next(iter(places[square]))[0]] += number
    assert all(50 <= number <= 110 for number in sizes.values()), sizes  # 80 expected
    corners = [places[square] for square in drawn if any(place[0] == 20 for place in places[square])]
    assert len(corners) > 20


def test_random_crop_at_256_is_at_most_320() -> None:
    """The published bounds: crops hold between 0.8 and all of the shorter side."""
    assert math.ceil(256 / 0.8) == 320
    ramp = np.broadcast_to(np.linspace(0, 255, 640)[None, :, None], (640, 640, 3)).astype(np.uint8)
    spans = []
    for seed in range(60):
        row = random_crop(Image.fromarray(ramp), 256, random.Random(seed))[0, :, 0].astype(float)
        spans.append((row[-1] - row[0]) / 255)
    assert 0.78 < min(spans) < 0.83
    assert 0.97 < max(spans) <= 1


def test_enlarged_crop_reaches_every_corner_of_the_enlarged_image() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (18, 18, 3), dtype=np.uint8))
    whole = np.asarray(image)  # 16 x 1.125 = 18: nothing is resized
    places = set()
    for seed in range(200):
        crop = enlarged_crop(image, 16, random.Random(seed))
        places |= {(y, x) for y in range(3) for x in range(3) if np.array_equal(crop, whole[y : y + 16, x : x + 16])}
    assert places == {(y, x) for y in range(3) for x in range(3)}


@pytest.mark.parametrize("longer", [60, 62])  # 24, and 24.8, which is truncated and not rounded
def test_enlarged_crop_is_resized_by_lanczos(tmp_path: Path, image_at: Draw, longer: int) -> None:
    image = opened(image_at(tmp_path / "x.png", 0, (45, longer)))
    whole = np.asarray(image.resize((18, 24), Image.LANCZOS))
    crop = enlarged_crop(image, 16, random.Random(0))
    found = [whole[y : y + 16, x : x + 16] for y in range(9) for x in range(3)]
    assert any(np.array_equal(crop, square) for square in found)


@pytest.fixture
def train(tmp_path: Path, classes_at: Draw) -> StoredImages:
    return read_data(classes_at(tmp_path, {"a": 25}), 12).train


def test_splits_are_centre_crops_in_order(tmp_path: Path, classes_at: Draw, paths: Paths) -> None:
    splits = read_data(classes_at(tmp_path, {"cats": 10, "dogs": 12, "owls": 2}), 8)
    for images in (splits.train, splits.test):
        (batch, labels), (again, _) = (next(iter(ordered_batches(images, 100))) for _ in range(2))
        assert batch.dtype == torch.uint8
        assert batch.shape == (len(images), 3, 8, 8)
        assert torch.equal(labels, images.labels)
        assert torch.equal(batch, again)
        for image, path in zip(batch, paths(images), strict=True):
            expected = adm_crop(Image.open(path).convert("RGB"), 8)
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


@TRAININGS
def test_plain_images_of_augmented_ones_are_centre_crops(train: StoredImages, paths: Paths, training: str) -> None:
    augmented = train.augmented(training, 0)
    expected = np.stack([adm_crop(opened(path), 12) for path in paths(train)]).transpose(0, 3, 1, 2)
    ((batch, _),) = ordered_batches(augmented.plain(), 100)
    assert np.array_equal(batch.numpy(), expected)
    assert augmented.fingerprint() == train.fingerprint()
    assert augmented.transform != train.transform == augmented.plain().transform


@TRAININGS
def test_augmentation_is_a_function_of_epoch_and_index(train: StoredImages, training: str) -> None:
    keys = [(0, 3), (1, 3), (0, 4)]
    images, _ = train.augmented(training, 0).__getitems__(keys)
    for key, image in zip(keys, images, strict=True):
        assert torch.equal(train.augmented(training, 0).__getitems__([key])[0][0], image)


@TRAININGS
def test_augmentation_differs_between_epochs(train: StoredImages, training: str) -> None:
    views = {train.augmented(training, 0).__getitems__([(epoch, 3)])[0].numpy().tobytes() for epoch in range(20)}
    assert len(views) > 8


@pytest.mark.parametrize(("training", "low", "high"), [("tokenizer", 0.35, 0.65), ("generator", 0, 0)])
def test_half_of_the_tokenizers_images_are_flipped(
    tmp_path: Path, image_at: Draw, training: str, low: float, high: float
) -> None:
    """A dark-to-bright ramp keeps its direction under any crop; only flips reverse it."""
    ramp = np.broadcast_to(np.linspace(0, 255, 30, dtype=np.uint8)[None, :, None], (30, 30, 3))
    for i in range(2):
        image_at(tmp_path / "a" / f"{i}.png", i)
        Image.fromarray(ramp).save(tmp_path / "a" / f"{i}.png")
    train = read_data(tmp_path, 24).train.augmented(training, 0)
    images, _ = train.__getitems__([(epoch, 0) for epoch in range(200)])
    flipped = (images[:, 0, 0, 0] > images[:, 0, 0, -1]).double().mean()
    assert low <= float(flipped) <= high


@TRAININGS
def test_runs_with_other_seeds_see_other_views(train: StoredImages, training: str) -> None:
    keys = [(0, index) for index in range(len(train))]
    views = [train.augmented(training, seed).__getitems__(keys)[0] for seed in (0, 1, 1)]
    assert not torch.equal(views[0], views[1])
    assert torch.equal(views[1], views[2])
    assert train.augmented(training, 0).transform != train.augmented(training, 1).transform


@TRAININGS
def test_images_in_memory_are_never_augmented(training: str) -> None:
    train = digits(32).train
    assert train.augmented(training, 0) is train.plain() is train


def test_worker_processes_do_not_change_the_batches(train: StoredImages) -> None:
    images = train.augmented("tokenizer", 0)
    assert images.workers == min(len(os.sched_getaffinity(0)), 16)
    batches = list(training_batches(images, 4, 0, 3, 6))
    images.workers = 0
    for (pixels, labels), (own, own_labels) in zip(batches, training_batches(images, 4, 0, 3, 6), strict=True):
        assert torch.equal(pixels, own)
        assert torch.equal(labels, own_labels)


def test_images_can_be_pickled(train: StoredImages) -> None:
    images = train.augmented("generator", 0)
    other = pickle.loads(pickle.dumps(images))
    keys = [(3, 1), (0, 7)]
    assert torch.equal(other.__getitems__(keys)[0], images.__getitems__(keys)[0])


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, image_at: Draw, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    image = opened(image_at(tmp_path / f"x.{suffix}", 0, (20, 16), mode))
    assert image.mode == "RGB"
    assert center_crop(image, 8).shape == (8, 8, 3)
    if mode in ("L", "LA", "1"):
        pixels = np.asarray(image)
        assert np.array_equal(pixels[..., 0], pixels[..., 2])
    if mode == "RGBA":
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(tmp_path / "x.png"))[..., :3])


def test_16_bit_images_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = (np.arange(24 * 30).reshape(24, 30) * 90 % 65536).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.abs(np.asarray(opened(tmp_path / "deep.png"))[..., 0] - values / 257.0).max() <= 1


def test_open_rgb_names_the_image() -> None:
    with pytest.raises(InputError, match=r"train/0\.tar: x\.png"):
        open_rgb(b"no image", "train/0.tar: x.png")
