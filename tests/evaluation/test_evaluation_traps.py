"""Mistakes that give plausible but wrong numbers: each has an effect, and the protocols do not make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric

import imagefolder
from imagefolder.data.folder import read_data
from imagefolder.data.images import ArrayImages, DataSplits, samples_to_uint8, to_float, to_uint8
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.fidelity import fidelity
from imagefolder.evaluation.inception import inception_extractor
from imagefolder.evaluation.protocols import evaluate_files, evaluate_reconstruction
from imagefolder.evaluation.results import Result
from imagefolder.tokenizer.model import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return imagefolder.load_tokenizer("mini-MSVR3P2-256")


def values(result: Result) -> dict[str, float]:
    return {m.protocol.name: m.value for m in result.measurements}


def fid(images: Tensor, real: Tensor, proxy: Extractor) -> float:
    return fidelity(images, real, proxy, ("fid",))["frechet_inception_distance"]


def test_rfid_does_not_depend_on_the_training_images(tokenizer: Tokenizer, few: DataSplits, proxy: Extractor) -> None:
    result = evaluate_reconstruction(tokenizer, few, [proxy], "reconstructing")
    other = replace(few, train=ArrayImages(255 - few.train.images, few.train.labels))
    again = evaluate_reconstruction(tokenizer, other, [proxy], "reconstructing")
    assert values(again) == values(result)
    assert {m.protocol.reference for m in result.measurements} == {"digits/test"}
    images = to_uint8(tokenizer.reconstruct(to_float(few.test.images)))
    assert values(result)["proxy-rFID"] == pytest.approx(fid(images, few.test.images, proxy), rel=1e-5)
    for wrong in (few.train, other.train):  # so the reference would have mattered
        assert fid(images, wrong.images, proxy) != pytest.approx(values(result)["proxy-rFID"], rel=1e-3)


def test_originals_are_cropped_like_the_input(tmp_path: Path, tokenizer: Tokenizer, proxy: Extractor) -> None:
    """With a test split that augments, both sides are still its centre crops."""
    random = np.random.default_rng(0)
    for split, name in ((s, n) for s in ("train", "val") for n in "ab"):
        folder = tmp_path / split / name
        folder.mkdir(parents=True)
        for index in range(12):
            smooth = random.integers(0, 255, (5, 4, 3), np.uint8)
            Image.fromarray(smooth).resize((50, 60)).save(folder / f"{index}.png")
    splits = read_data(tmp_path, 32)
    plain, _ = splits.test.plain().__getitems__([(0, i) for i in range(24)])
    augmented = splits.test.augmented("generator", 0)
    other, _ = augmented.__getitems__([(0, i) for i in range(24)])
    result = evaluate_reconstruction(tokenizer, replace(splits, test=augmented), [proxy], "reconstructing")
    assert torch.equal(result.picture[0::2], plain)
    assert not torch.equal(other, plain)
    images = to_uint8(tokenizer.reconstruct(to_float(plain)))
    right = values(result)["proxy-rFID"]
    assert right == pytest.approx(fid(images, plain, proxy), rel=1e-4)
    assert abs(fid(images, other, proxy) / right - 1) > 0.01


def test_class_sorted_samples_have_the_inception_score_of_shuffled_ones(
    tmp_path: Path, splits: DataSplits, proxy: Extractor
) -> None:
    images, labels = splits.train.images[:300], splits.train.labels[:300]
    by_class = images[labels.argsort(stable=True)]
    np.savez(tmp_path / "turns.npz", arr_0=images.permute(0, 2, 3, 1).numpy())
    np.savez(tmp_path / "sorted.npz", arr_0=by_class.permute(0, 2, 3, 1).numpy())
    turns, ordered = (
        values(evaluate_files(tmp_path / name, tmp_path / "turns.npz", [proxy])[0])
        for name in ("turns.npz", "sorted.npz")
    )
    assert ordered["proxy-IS"] == pytest.approx(turns["proxy-IS"], rel=0.1)
    naive = isc_features_to_metric(proxy(by_class).logits, 10, shuffle=False)["inception_score_mean"]
    assert naive < 0.5 * turns["proxy-IS"]


def test_samples_are_truncated_as_published_and_rounding_would_change_the_values(
    splits: DataSplits, proxy: Extractor
) -> None:
    noise = torch.rand(200, 3, 32, 32, generator=torch.Generator().manual_seed(0)) / 255
    images = (splits.test.images[:200].float() / 255 + noise).clamp(0, 1)  # fractions, as samples have them
    truncated = samples_to_uint8(images)
    assert torch.equal(truncated.float(), (255 * images).floor())
    rounded = (255 * images).round().to(torch.uint8)
    bias = (truncated.float() - rounded.float())[images < 1].mean()
    assert -0.6 < bias < -0.4  # half a grey level darker
    real = splits.train.images[:400]
    assert fid(truncated, real, proxy) != fid(rounded, real, proxy)


def test_reconstructions_are_rounded_by_adding_a_half_and_truncating() -> None:
    values_ = torch.linspace(-1, 1, 10_001)
    expected = (127.5 * values_ + 128).floor().clamp(max=255)
    assert torch.equal(to_uint8(values_).float(), expected)
    assert not torch.equal(expected, (127.5 * values_ + 127.5).floor())
    grey = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(grey)), grey)  # an 8-bit image survives the way there and back


def test_inception_resizes_its_input_and_another_filter_would_change_the_values(
    random_inception: Path, accept: Callable[[Path], None], splits: DataSplits
) -> None:
    accept(random_inception)
    inception = inception_extractor()
    images = splits.test.images[:3]
    resized = [
        np.asarray(Image.fromarray(image).resize((299, 299), Image.Resampling.BICUBIC))
        for image in images.permute(0, 2, 3, 1).numpy()
    ]
    other = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        published = inception.network.net(images)[0]
    torch.testing.assert_close(inception(images).pooled, published)
    apart = (inception(other).pooled - published).norm() / published.norm()
    assert apart > 0.01
