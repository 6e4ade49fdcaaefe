"""What FID hides: copies of training images, missing modes, and classes that are never drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imagefolder.data.images import DataSplits, Images, SomeImages, spread_evenly
from imagefolder.evaluation import metrics
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.neighbours import SHOWN, coverage, nearest
from imagefolder.evaluation.protocols import measure_samples, with_nearest
from imagefolder.evaluation.real import real_floors, split_statistics, training_reference
from imagefolder.evaluation.reference import write_reference
from imagefolder.evaluation.results import Result


def measured(samples: Tensor, labels: Tensor, splits: DataSplits, proxy: Extractor) -> Result:
    number, size = len(samples), (splits.image_size, splits.image_size)
    return measure_samples([samples], splits, [proxy], number=number, size=size, labels=labels, title="samples")


def values(result: Result) -> dict[str, float]:
    return {m.protocol.name.removeprefix("proxy-"): m.value for m in result.measurements}


def images_of(images: Images, places: range) -> tuple[Tensor, Tensor]:
    return images.__getitems__([(0, i) for i in places])


@pytest.fixture(scope="module")
def real(splits: DataSplits, proxy: Extractor) -> dict[str, float]:
    """Test images as if they were samples."""
    return values(measured(*images_of(splits.test, range(450)), splits, proxy))


def test_test_images_lie_as_far_from_the_training_images_as_themselves(
    real: dict[str, float], splits: DataSplits, proxy: Extractor
) -> None:
    assert real["training neighbour ratio"] == 1
    assert real["mode coverage"] > 0.9  # 0.97 for the same distribution
    assert 0 < real["worst class accuracy"] <= real["class accuracy"]
    floors = real_floors(splits, [proxy])
    assert floors["proxy-training neighbour ratio"] == 1
    assert floors["proxy-mode coverage"] == real["mode coverage"]
    assert floors["worst class accuracy"] == real["worst class accuracy"]


def test_copies_of_training_images_are_noticed(splits: DataSplits, proxy: Extractor) -> None:
    copies, labels = images_of(splits.train, range(300, 500))
    result = measured(copies, labels, splits, proxy)
    assert values(result)["training neighbour ratio"] < 1e-4
    assert result.neighbours is not None
    assert torch.equal(result.neighbours.indices, torch.arange(300, 500))
    shown = with_nearest(result, copies[:100], splits).nearest
    assert shown is not None
    assert len(shown) == 2 * SHOWN
    assert torch.equal(shown[0::2], shown[1::2])


def test_precision_and_recall_take_so_many_training_images_and_the_neighbours_all(
    splits: DataSplits, proxy: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = images_of(splits.test, range(200))
    whole = measured(images, labels, splits, proxy)
    monkeypatch.setattr(metrics, "FEW", 500)
    part = {m.protocol.name: m for m in measured(images, labels, splits, proxy).measurements}
    precision, ratio = part["proxy-precision"], part["proxy-training neighbour ratio"]
    assert (precision.n_real, ratio.n_real) == (500, len(splits.train))
    assert "against the 500 images of digits/train" in precision.protocol.description
    assert precision.value != values(whole)["precision"]
    assert ratio.value == values(whole)["training neighbour ratio"]
    (samples,) = split_statistics(SomeImages(splits.test, list(range(200))), [proxy], "samples")
    (training,) = split_statistics(spread_evenly(splits.train, 500), [proxy], "training images")
    expected = metrics.precision_recall(samples.features, training.features)
    assert (precision.value, part["proxy-recall"].value) == expected


def test_copies_with_a_little_noise_are_noticed_and_noise_is_far_from_everything(
    splits: DataSplits, proxy: Extractor
) -> None:
    images, labels = images_of(splits.train, range(200))
    noise = torch.randint(-3, 4, images.shape, generator=torch.Generator().manual_seed(0))
    almost = (images + noise).clamp(0, 255).to(torch.uint8)
    assert values(measured(almost, labels, splits, proxy))["training neighbour ratio"] < 0.5
    nothing = torch.randint(0, 256, images.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert values(measured(nothing, labels, splits, proxy))["training neighbour ratio"] > 2


def test_the_picture_shows_the_nearest_samples_first(splits: DataSplits, proxy: Extractor) -> None:
    """One copy among test images."""
    samples, labels = images_of(splits.test, range(60))
    samples[41] = splits.train.__getitems__([(0, 7)])[0][0]
    shown = with_nearest(measured(samples, labels, splits, proxy), samples, splits).nearest
    assert shown is not None
    assert torch.equal(shown[0], samples[41])
    assert torch.equal(shown[1], samples[41])
    assert not torch.equal(shown[2], shown[3])


def test_a_model_that_draws_one_class_is_noticed(real: dict[str, float], splits: DataSplits, proxy: Extractor) -> None:
    """Test images of the class 3 whatever class is asked for."""
    images, labels = images_of(splits.test, range(450))
    threes = images[labels == 3].repeat(10, 1, 1, 1)[:400]
    result = measured(threes, torch.arange(400) % 10, splits, proxy)
    found = values(result)
    assert found["worst class accuracy"] == 0
    assert found["mode coverage"] < 0.3 < real["mode coverage"]
    accuracies = [accuracy or 0 for accuracy in result.class_accuracies]
    assert max(range(10), key=accuracies.__getitem__) == 3
    assert accuracies[3] > 0.5


def test_a_class_without_samples_has_no_accuracy(splits: DataSplits, proxy: Extractor) -> None:
    images, labels = images_of(splits.test, range(450))
    kept = labels != 9
    result = measured(images[kept], labels[kept], splits, proxy)
    assert result.class_accuracies[9] is None
    assert values(result)["worst class accuracy"] == min(a for a in result.class_accuracies if a is not None)


def test_without_images_outside_the_training_set_there_is_no_ratio(splits: DataSplits, proxy: Extractor) -> None:
    samples, labels = images_of(splits.test, range(60))
    result = measured(samples, labels, replace(splits, test=splits.train), proxy)
    assert "training neighbour ratio" not in values(result)
    assert "proxy-training neighbour ratio not measured: test images are copies of training images" in result.notes
    assert with_nearest(result, samples, splits).nearest is None


def test_neighbours_among_some_training_images_are_not_shown(
    splits: DataSplits, proxy: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their indices are not those of the training images."""
    monkeypatch.setattr("imagefolder.evaluation.real.FEATURES_KEPT", 100)
    path = tmp_path / "kept.safetensors"
    write_reference(path, training_reference(splits, proxy), {})
    samples, labels = images_of(splits.test, range(60))
    result = measured(samples, labels, splits, replace(proxy, kept=path))
    (ratio,) = (m for m in result.measurements if m.protocol.name == "proxy-training neighbour ratio")
    assert ratio.n_real == 100
    assert "the 100 images of digits/train" in ratio.protocol.description
    assert result.neighbours is None


def test_coverage_is_that_of_its_authors() -> None:
    """Compared with their formulas on all pairs of points in double precision."""
    draws = torch.Generator().manual_seed(0)
    real, generated = torch.randn(90, 7, generator=draws), 1.5 * torch.randn(90, 7, generator=draws) + 0.5

    def distances(a: Tensor, b: Tensor) -> np.ndarray:
        return np.sqrt(((a.double().numpy()[:, None] - b.double().numpy()[None]) ** 2).sum(-1))

    radii = np.sort(distances(real, real), axis=1)[:, 5]
    expected = (distances(real, generated).min(axis=1) < radii).mean()
    assert 0.2 < expected < 0.9
    assert coverage(generated, real) == pytest.approx(expected)


@pytest.mark.parametrize("numbers", [(300, 300), (300, 700), (700, 300)])
def test_coverage_hardly_depends_on_the_numbers(numbers: tuple[int, int]) -> None:
    draws = torch.Generator().manual_seed(1)
    generated, real = (torch.randn(number, 16, generator=draws) for number in numbers)
    assert coverage(generated, real) == pytest.approx(1 - 2**-5, abs=0.03)


def test_coverage_draws_from_samples_sorted_by_class() -> None:
    """The first 100 of 200 would be one of two modes only."""
    draws = torch.Generator().manual_seed(2)
    modes = torch.tensor([0.0, 50.0]).repeat_interleave(100)[:, None]
    generated, real = (modes + torch.randn(200, 4, generator=draws) for _ in range(2))
    assert coverage(generated, real[::2]) > 0.9
    assert coverage(generated[:100], real) == pytest.approx(0.5, abs=0.1)


def test_distances_of_copies_are_zero_far_from_the_origin() -> None:
    points = 1000 + torch.randn(50, 64, generator=torch.Generator().manual_seed(3))
    found = nearest(points[10:20], points)
    assert torch.equal(found.indices, torch.arange(10, 20))
    assert float(found.distances.max()) < 1e-3  # float32 alone is off by 1 here


def test_some_images_are_spread_over_all(splits: DataSplits) -> None:
    some = spread_evenly(splits.train, 100)
    assert len(some) == 100
    assert torch.equal(some.labels, splits.train.labels[[i * 1347 // 100 for i in range(100)]])
    assert spread_evenly(splits.test, 1000) is splits.test
