"""Terms of the tokenizer's objective against values computed by hand."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from imagefolder import weights
from imagefolder.errors import InputError
from imagefolder.files import file_sha256
from imagefolder.tokenizer.discriminator import PatchDiscriminator
from imagefolder.tokenizer.losses import (
    LeCam,
    Perceptual,
    adaptive_weight,
    discriminator_loss,
    semantic_loss,
)
from imagefolder.weights import VGG16_FILE


def test_semantic_loss_by_hand() -> None:
    """Logits [[1, 2], [0, 2]]: -ln softmax of the diagonal over rows and over columns, averaged."""
    projected, pooled = torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    rows = (math.log(1 + math.e) + math.log(1 + math.exp(-2))) / 2
    columns = (math.log(1 + math.exp(-1)) + math.log(2)) / 2
    assert float(semantic_loss(projected, pooled)) == pytest.approx((rows + columns) / 2, rel=1e-6)


def test_semantic_loss_prefers_matching_pairs_and_uses_its_scale() -> None:
    features = torch.eye(4) * 3
    matched, swapped = semantic_loss(features, features), semantic_loss(features, features.roll(1, 0))
    assert matched < swapped
    assert semantic_loss(features, features, logit_scale=2.0) < matched


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert float(discriminator_loss("hinge", real, fake)) == pytest.approx((0.25 + 0.5) / 2)


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    layer = torch.tensor([1.0, -2.0], requires_grad=True)
    weight = adaptive_weight((3 * layer).sum(), (layer**2).sum(), layer)
    assert float(weight) == pytest.approx(math.sqrt(18) / (math.sqrt(4 + 16) + 1e-4), rel=1e-6)
    assert not weight.requires_grad
    assert layer.grad is None


def test_adaptive_weight_is_clamped_where_the_adversarial_gradient_vanishes() -> None:
    layer = torch.ones(2, requires_grad=True)
    assert float(adaptive_weight(1e3 * layer.sum(), 0 * layer.sum(), layer)) == 1e4


def test_lecam_follows_the_running_means_of_the_other_side() -> None:
    lecam = LeCam(decay=0.9)
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0])
    lecam.update(real.mean(), fake.mean())  # means become 0.2 and -0.15
    value = lecam(real, fake)
    assert (float(lecam.real), float(lecam.fake)) == pytest.approx((0.2, -0.15))
    assert float(value) == pytest.approx((1.15**2 + 3.15**2) / 2 + (1.2**2 + 2.2**2) / 2, rel=1e-6)
    lecam.update(real.mean(), fake.mean())
    assert (float(lecam.real), float(lecam.fake)) == pytest.approx((0.9 * 0.2 + 0.1 * 2, -0.9 * 0.15 - 0.1 * 1.5))
    assert set(lecam.state_dict()) == {"real", "fake"}


def test_lecam_ignores_logits_on_the_right_side_of_the_means() -> None:
    lecam = LeCam()
    lecam.real.fill_(-5.0)
    lecam.fake.fill_(5.0)
    assert float(lecam(torch.tensor([1.0]), torch.tensor([2.0]))) == 0


@pytest.mark.parametrize(("side", "logits"), [(32, 2), (64, 6), (256, 30)])
def test_patch_discriminator_gives_one_logit_per_patch(side: int, logits: int) -> None:
    with torch.no_grad():
        assert PatchDiscriminator(width=8)(torch.zeros(2, 3, side, side)).shape == (2, 1, logits, logits)


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("IMAGEFOLDER_WEIGHTS", raising=False)
    return tmp_path


def test_perceptual_without_weights_names_file_hash_and_location(no_weights: Path) -> None:
    with pytest.raises(InputError) as caught:
        Perceptual()
    text = str(caught.value)
    assert VGG16_FILE == "vgg16-397923af.pth"
    for part in (VGG16_FILE, weights.FILES[VGG16_FILE].sha256, str(no_weights / "torch"), "IMAGEFOLDER_WEIGHTS"):
        assert part in text
    assert "\n" not in text


def test_perceptual_rejects_another_file_in_place_of_the_weights(
    no_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = no_weights / VGG16_FILE
    path.write_bytes(b"not these")
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(no_weights))
    with pytest.raises(InputError) as caught:
        Perceptual()
    for part in (str(path), hashlib.sha256(b"not these").hexdigest(), weights.FILES[VGG16_FILE].sha256):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")  # lpips calls it the old way
def test_perceptual_with_weights(no_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import vgg16  # after imagefolder, which repairs torchvision

    torch.manual_seed(0)
    state = vgg16(weights=None).state_dict()
    features = {name: value for name, value in state.items() if name.startswith("features.")}
    torch.save(features | {"classifier.0.bias": state["classifier.0.bias"]}, no_weights / VGG16_FILE)
    monkeypatch.setitem(
        weights.FILES, VGG16_FILE, replace(weights.FILES[VGG16_FILE], sha256=file_sha256(no_weights / VGG16_FILE))
    )
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(no_weights))
    perceptual = Perceptual()
    loaded = dict(perceptual.net.net.named_parameters())
    assert torch.equal(loaded["slice1.0.weight"], state["features.0.weight"])
    assert torch.equal(loaded["slice5.28.bias"], state["features.28.bias"])
    assert not any(parameter.requires_grad for parameter in perceptual.parameters())
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    other = images.flip(0).clone().requires_grad_()
    assert float(perceptual(images, images)) == 0
    distance = perceptual(other, images)
    assert distance.shape == ()
    assert float(distance.detach()) > 0
    distance.backward()
    assert other.grad.abs().sum() > 0
