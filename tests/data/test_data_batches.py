"""The order of training images, and the conversions between 8-bit and float images."""

from __future__ import annotations

import math

import pytest
import torch

from imagefolder.data.images import ArrayImages, samples_to_uint8, to_float, to_uint8
from imagefolder.data.order import BatchOrder, ordered_batches, training_batches

SIZE, BATCH, STEPS = 23, 5, 40


def keys(start: int = 0, stop: int = STEPS, seed: int = 3) -> list[list[tuple[int, int]]]:
    return list(BatchOrder(SIZE, BATCH, seed=seed, start=start, stop=stop))


@pytest.mark.parametrize("start", [1, 4, 5, 17, 39])
def test_order_from_the_middle_equals_order_from_the_start(start: int) -> None:
    assert keys(start) == keys()[start:]


def test_every_epoch_is_a_permutation() -> None:
    flat = [key for batch in keys() for key in batch]
    for epoch in range(BATCH * STEPS // SIZE):
        assert [e for e, _ in flat[epoch * SIZE : (epoch + 1) * SIZE]] == [epoch] * SIZE
        assert sorted(i for _, i in flat[epoch * SIZE : (epoch + 1) * SIZE]) == list(range(SIZE))


def test_epochs_and_seeds_differ() -> None:
    flat = [i for batch in keys() for _, i in batch]
    assert flat[:SIZE] != flat[SIZE : 2 * SIZE]
    assert keys() == keys()
    assert keys(seed=4) != keys()


def test_batches_are_full_and_span_epochs() -> None:
    batches = keys()
    assert {len(batch) for batch in batches} == {BATCH}
    assert {epoch for epoch, _ in batches[SIZE // BATCH]} == {0, 1}


def test_batch_larger_than_the_data_spans_many_epochs() -> None:
    (batch,) = BatchOrder(3, 8, seed=0, start=0, stop=1)
    assert [epoch for epoch, _ in batch] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_order_has_the_length_of_its_steps() -> None:
    assert len(BatchOrder(SIZE, BATCH, seed=0, start=7, stop=40)) == 33


@pytest.fixture
def numbered() -> ArrayImages:
    images = torch.arange(SIZE, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous()
    return ArrayImages(images, torch.arange(SIZE))


def test_training_batches_follow_the_order(numbered: ArrayImages) -> None:
    for (images, labels), batch in zip(training_batches(numbered, BATCH, 3, 2, 9), keys(2, 9), strict=True):
        assert labels.tolist() == [i for _, i in batch]
        assert images[:, 0, 0, 0].tolist() == labels.tolist()


def test_ordered_batches_yield_everything_once(numbered: ArrayImages) -> None:
    labels = [labels.tolist() for _, labels in ordered_batches(numbered, BATCH)]
    assert [i for batch in labels for i in batch] == list(range(SIZE))
    assert len(labels[-1]) == SIZE % BATCH


def test_fingerprint_covers_pixels_and_labels(numbered: ArrayImages) -> None:
    pixels, labels = numbered.images.clone(), numbered.labels.clone()
    pixels[4, 1, 0, 1] += 1
    labels[4] = 0
    prints = {
        numbered.fingerprint(),
        ArrayImages(pixels, numbered.labels).fingerprint(),
        ArrayImages(numbered.images, labels).fingerprint(),
    }
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-1.0, 0),  # 127.5 * -1 + 128 = 0.5
        (-1.1, 0),  # clamped
        (-127 / 127.5, 1),
        (-127.01 / 127.5, 0),  # 0.99 is truncated, not rounded
        (0.0, 128),
        (-0.001, 127),
        (0.99, 254),  # 254.225
        (1.0, 255),  # 255.5 is clamped
        (3.0, 255),
    ],
)
def test_to_uint8_truncates_after_shifting(value: float, expected: int) -> None:
    assert to_uint8(torch.tensor([value], dtype=torch.float64)).tolist() == [expected]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(-0.2, 0), (0.0, 0), (0.999 / 255, 0), (1.001 / 255, 1), (0.5, 127), (254.99 / 255, 254), (1.0, 255), (1.4, 255)],
)
def test_samples_to_uint8_truncates(value: float, expected: int) -> None:
    result = samples_to_uint8(torch.tensor([value], dtype=torch.float64))
    assert result.dtype == torch.uint8
    assert result.tolist() == [expected] == [max(0, min(255, math.floor(255 * value)))]


def test_8_bit_images_survive_the_round_trip_to_float() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    floats = to_float(every)
    assert floats.dtype == torch.float32
    assert (float(floats[0]), float(floats[-1])) == (-1.0, 1.0)
    assert torch.equal(to_uint8(floats), every)
