"""pFID and linear probing on tokenizers small enough to compute the expected values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import imagefolder
from imagefolder.data.images import ArrayImages, DataSplits, to_float, to_uint8
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.fidelity import fidelity
from imagefolder.evaluation.perturbation import depths_for, evaluate_perturbation, perturb_tokens
from imagefolder.evaluation.probe import (
    branch_features,
    extract_features,
    probe_accuracy,
    train_probe,
)


@pytest.fixture(scope="module")
def tokenizer() -> imagefolder.Tokenizer:
    torch.manual_seed(0)
    return imagefolder.load_tokenizer("mini-MSVR3P2-256")


def test_depths_are_scaled_with_the_codebook():
    assert depths_for(16384) == (200, 280, 360)
    assert depths_for(4096) == (50, 70, 90)
    assert depths_for(16) == (2, 2, 2)


def test_perturbation_of_an_image_does_not_depend_on_its_batch(tokenizer):
    images = torch.rand(6, 3, 32, 32) * 2 - 1
    near = tokenizer.neighbours(images, 10)
    tokens = tokenizer.encode(images)
    assert torch.equal(near[..., 0], tokens)
    together = perturb_tokens(near, 0.5, 8, 3, list(range(6)))
    alone = [perturb_tokens(near[i : i + 1], 0.5, 8, 3, [i]) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))
    share = float((together != tokens).float().mean())
    assert 0.3 < share < 0.57  # half of them, of which an eighth draws the nearest code again
    assert bool((near[..., :8] == together[..., None]).any(-1).all())
    assert not torch.equal(together, perturb_tokens(near, 0.5, 8, 4, list(range(6))))
    assert torch.equal(perturb_tokens(near, 1.0, 1, 3, list(range(6))), tokens)


def test_pfid_is_the_mean_over_fifteen_settings(tokenizer, splits: DataSplits, proxy: Extractor):
    test = ArrayImages(splits.test.images[:80], splits.test.labels[:80])
    few = replace(splits, test=test)
    (measured,) = evaluate_perturbation(tokenizer, few, [proxy], seed=0, title="perturbing").measurements
    assert (measured.protocol.name, measured.protocol.version) == ("proxy-pFID", 2)
    assert (measured.n_real, measured.n_generated) == (80, 80)
    larger = imagefolder.load_tokenizer("mini-MSVR3P2-256", codebook_size=512)
    # In proportion to the codebook, so that tokenizers with others share a column
    other = evaluate_perturbation(larger, few, [proxy], seed=0, title="perturbing")
    assert other.measurements[0].protocol == measured.protocol
    near = tokenizer.neighbours(to_float(test.images), 6)
    distances = []
    for share in (0.5, 0.6, 0.7, 0.8, 0.9):
        for depth in (3, 4, 6):
            images = tokenizer.decode(perturb_tokens(near, share, depth, 0, list(range(80))))
            values = fidelity(to_uint8(images), test.images, proxy, ("fid",))
            distances.append(values["frechet_inception_distance"])
    assert measured.value == pytest.approx(sum(distances) / 15, rel=1e-4)


def test_features_are_averages_of_the_chosen_branch_before_or_after_quantization(tokenizer):
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = tokenizer.latents(images)
        f_hat = tokenizer.quantizer.decode(tokenizer.quantizer.encode(latents))
    torch.testing.assert_close(branch_features(tokenizer, images, "continuous"), latents[:, 1].mean((2, 3)))
    torch.testing.assert_close(branch_features(tokenizer, images, "quantized"), f_hat[:, 16:].mean((2, 3)))
    torch.testing.assert_close(branch_features(tokenizer, images, "quantized", 0), f_hat[:, :16].mean((2, 3)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert branch_features(tokenizer, images, "quantized").dtype == torch.float32
    with pytest.raises(imagefolder.InputError, match="middle"):
        branch_features(tokenizer, images, "middle")


def test_features_are_in_order_and_without_augmentation(tokenizer, splits: DataSplits):
    few = ArrayImages(splits.test.images[:130], splits.test.labels[:130])
    features, labels = extract_features(tokenizer, few, "quantized", "extracting")
    assert torch.equal(labels, few.labels)
    torch.testing.assert_close(features[100:], branch_features(tokenizer, to_float(few.images[100:]), "quantized"))


def test_a_probe_separates_only_what_is_separable():
    torch.manual_seed(0)
    labels = torch.randint(4, (4000,))
    centres = 3 * torch.randn(4, 16)
    features = centres[labels] + torch.randn(4000, 16)
    before = torch.get_rng_state()
    probe = train_probe(features[:3000], labels[:3000], 4, seed=0, epochs=200)
    assert torch.equal(torch.get_rng_state(), before)
    shuffled = train_probe(features[:3000], labels[torch.randperm(3000)], 4, seed=0, epochs=200)
    assert probe_accuracy(probe, features[3000:], labels[3000:]) > 0.9
    assert probe_accuracy(shuffled, features[3000:], labels[3000:]) < 0.7
    again = train_probe(features[:3000], labels[:3000], 4, seed=0, epochs=200)
    assert torch.equal(probe.linear.weight, again.linear.weight)
    assert {name for name, _ in probe.named_parameters()} == {"linear.weight", "linear.bias"}
