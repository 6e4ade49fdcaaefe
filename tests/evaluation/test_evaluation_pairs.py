"""Metrics of pairs of images, and codebook statistics, against values worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchvision.models import vgg

from imagefolder import InputError, weights
from imagefolder.config import TokenizerConfig
from imagefolder.evaluation.pairs import Pairs, lpips, psnr, ssim
from imagefolder.evaluation.protocols import codebook_usage
from imagefolder.files import file_sha256
from imagefolder.tokenizer.model import Tokenizer


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    originals = torch.randint(0, 256, (4, 3, 16, 16), generator=generator)
    noise = torch.randint(-9, 10, originals.shape, generator=generator) * torch.arange(1, 5)[:, None, None, None]
    return (originals + noise).clamp(0, 255).to(torch.uint8), originals.to(torch.uint8)


def test_psnr_of_a_constant_difference() -> None:
    originals = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    images = originals.clone()
    images[0] += 1  # 48.13 dB
    images[1] -= 10  # 28.13 dB; 8-bit subtraction must not wrap around
    assert psnr(images[:1], originals[:1]) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(images, originals) == pytest.approx((48.1308 + 28.1308) / 2, abs=1e-4)


def test_psnr_is_the_mean_of_scikit_images_over_images(pair: tuple[Tensor, Tensor]) -> None:
    values = [peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=255) for a, b in zip(*pair, strict=True)]
    assert np.ptp(values) > 5
    assert psnr(*pair) == pytest.approx(np.mean(values), rel=1e-9)


def test_equal_images_have_a_finite_psnr_and_full_similarity(pair: tuple[Tensor, Tensor]) -> None:
    _, originals = pair
    assert 100 < psnr(originals, originals) < math.inf
    assert ssim(originals, originals) == 1.0


def test_ssim_of_constant_images_is_the_luminance_term() -> None:
    a, b = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8), torch.full((1, 3, 16, 16), 150, dtype=torch.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    assert ssim(a, b) == pytest.approx(expected, rel=1e-6)


def test_ssim_is_the_mean_over_images_and_channels(pair: tuple[Tensor, Tensor]) -> None:
    by_channel = [
        structural_similarity(a.numpy(), b.numpy(), win_size=7, data_range=255)
        for x, y in zip(*pair, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    assert ssim(*pair) == pytest.approx(np.mean(by_channel), rel=1e-6)


def test_sets_of_different_length_are_rejected(pair: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="zip"):
        ssim(pair[0], pair[1][:2])
    with pytest.raises(RuntimeError):
        psnr(pair[0], pair[1][:3])


def test_codebook_usage_counts_codes_per_branch_and_scale() -> None:
    config = TokenizerConfig(
        image_size=16, patch_size=8, backbone="vit_tiny_patch16_224", width=32, depth=1, heads=2, branches=2,
        scales=(1, 2), codebook_size=8, code_dim=4, dropout_start=1,
    )  # fmt: skip
    tokens = torch.zeros(4, 2, 5, dtype=torch.int64)
    tokens[:, 0, 0] = torch.tensor([0, 0, 1, 1])  # two codes, equally often
    tokens[:, 0, 1:] = torch.arange(16).view(4, 4) % 8  # all codes, equally often
    tokens[:, 1, 0] = 5  # one code
    tokens[0, 1, 1:] = 7  # a quarter of one code, the rest of another
    rows = codebook_usage(tokens, Tokenizer(config))
    assert [(r.branch, r.position, r.scale, r.tokens) for r in rows] == [
        (0, 0, 1, 4), (0, 1, 2, 16), (1, 0, 1, 4), (1, 1, 2, 16),
    ]  # fmt: skip
    assert [r.used for r in rows] == [2 / 8, 1.0, 1 / 8, 2 / 8]
    quarter = math.exp(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert [r.perplexity for r in rows] == pytest.approx([2.0, 8.0, 1.0, quarter])


def test_pairs_are_averaged_over_batches_of_any_size(pair: tuple[Tensor, Tensor]) -> None:
    pairs = Pairs()
    for images, originals in zip(*(x.split([1, 3]) for x in pair), strict=True):
        pairs.add(images, originals)
    result = pairs.result("pairs", "originals")
    assert {m.protocol.name: m.value for m in result.measurements} == pytest.approx(
        {"PSNR": psnr(*pair), "SSIM": ssim(*pair)}, rel=1e-12
    )
    assert {(m.n_real, m.n_generated) for m in result.measurements} == {(4, 4)}
    assert [note.split(":")[0] for note in result.notes] == ["LPIPS not measured"]


def test_lpips_is_measured_if_vgg16_is_present(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = vgg.make_layers(vgg.cfgs["D"])
    path = tmp_path / weights.VGG16_FILE
    torch.save({f"features.{name}": w for name, w in layers.state_dict().items()}, path)
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match="replace it by the published file"):
        Pairs()
    monkeypatch.setitem(
        weights.FILES, weights.VGG16_FILE, replace(weights.FILES[weights.VGG16_FILE], sha256=file_sha256(path))
    )
    images, originals = torch.randint(0, 256, (2, 5, 3, 32, 32), dtype=torch.uint8)
    pairs = Pairs()
    for part in (slice(0, 2), slice(2, 5)):
        pairs.add(images[part], originals[part])
    expected = lpips()(images, originals)  # all at once
    measured = {m.protocol.name: m for m in pairs.result("pairs", "originals").measurements}["LPIPS"]
    assert measured.value == pytest.approx(expected, rel=1e-4)
    assert (measured.protocol.extractor, measured.protocol.extractor_sha256) == ("vgg16", file_sha256(path))
    assert expected > 1e-4
