"""Metrics of sets of images against independent computations on the extractor's features."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imagefolder.data.images import DataSplits, to_float
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.fidelity import fidelity
from imagefolder.evaluation.proxy import load_proxy, proxy_extractor


def statistics(images: Tensor, extractor: Path) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        features = load_proxy(extractor)(to_float(images))[0].double().numpy()
    return features.mean(0), np.cov(features, rowvar=False)


def frechet(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), the roots by symmetric eigenvalues, in float64."""
    (mean1, cov1), (mean2, cov2) = first, second
    values, vectors = np.linalg.eigh(cov1)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    inner = np.linalg.eigvalsh(root @ cov2 @ root).clip(min=0)
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.sqrt(inner).sum())


def test_fid_is_the_frechet_distance_of_the_features(two_sets: tuple[Tensor, Tensor], proxy: Extractor) -> None:
    generated, real = two_sets
    value = fidelity(generated, real, proxy, ("fid",))["frechet_inception_distance"]
    expected = frechet(statistics(generated, proxy.path), statistics(real, proxy.path))
    assert value > 1e-3
    assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fid_agrees_with_clean_fid(two_sets: tuple[Tensor, Tensor], proxy: Extractor) -> None:
    from cleanfid.fid import frechet_distance  # after imagefolder, which repairs torchvision

    generated, real = two_sets
    value = fidelity(generated, real, proxy, ("fid",))["frechet_inception_distance"]
    assert value == pytest.approx(
        frechet_distance(*statistics(generated, proxy.path), *statistics(real, proxy.path)), rel=1e-6
    )


def test_equal_sets_have_no_distance_and_full_precision_and_recall(splits: DataSplits, proxy: Extractor) -> None:
    images, _ = splits.test.__getitems__([(0, i) for i in range(150)])
    values = fidelity(images, images.flip(0), proxy, ("fid", "prc"))
    assert abs(values["frechet_inception_distance"]) < 1e-4
    assert (values["precision"], values["recall"]) == (1.0, 1.0)


def manifolds(features: np.ndarray, others: np.ndarray, k: int = 3) -> float:
    """Share of `others` within the distance of some of `features` to its k-th neighbour (precision and recall)."""
    own = np.linalg.norm(features[:, None] - features[None], axis=-1)
    radii = np.sort(own, axis=1)[:, k]  # column 0 is the point itself
    return float((np.linalg.norm(others[:, None] - features[None], axis=-1) <= radii).any(1).mean())


def test_precision_counts_samples_and_recall_counts_real_images(splits: DataSplits, proxy: Extractor) -> None:
    images, labels = splits.train.__getitems__([(0, i) for i in range(400)])
    real, narrow = images, images[labels < 3]  # what is generated is real, but covers a part of it
    values = fidelity(narrow, real, proxy, ("prc",))
    with torch.no_grad():
        own, theirs = (load_proxy(proxy.path)(to_float(x))[0].double().numpy() for x in (narrow, real))
    assert values["precision"] == 1.0 == manifolds(theirs, own)
    assert values["recall"] == pytest.approx(manifolds(own, theirs), abs=0.02)
    assert values["recall"] < 0.8


def test_inception_score_does_not_depend_on_the_order_of_classes(splits: DataSplits, proxy: Extractor) -> None:
    """Were the ten splits cut from class-sorted samples, each would hold one class and the score collapse to 1."""
    images, _ = splits.train.__getitems__([(0, i) for i in range(500)])
    net = load_proxy(proxy.path)
    with torch.no_grad():
        probabilities = net(to_float(images))[1].double().softmax(-1)
    ordered = images[probabilities.argmax(-1).argsort(stable=True)]
    shuffled = images[torch.randperm(500, generator=torch.Generator().manual_seed(1))]
    first, second = (fidelity(x, x[:4], proxy, ("isc",)) for x in (ordered, shuffled))
    spread = max(first["inception_score_std"], second["inception_score_std"])
    assert abs(first["inception_score_mean"] - second["inception_score_mean"]) < spread

    def score(p: Tensor) -> float:
        return float((p * (p.log() - p.mean(0, keepdim=True).log())).sum(-1).mean().exp())

    whole = score(probabilities)
    assert first["inception_score_mean"] == pytest.approx(whole, rel=0.1)
    sorted_splits = probabilities[probabilities.argmax(-1).argsort(stable=True)].chunk(10)
    assert np.mean([score(part) for part in sorted_splits]) < 0.8 * whole  # so order would have mattered


def test_other_weights_give_other_numbers_in_the_same_process(
    tmp_path: Path, two_sets: tuple[Tensor, Tensor], extractor_at: Callable[[Path, int], Path]
) -> None:
    metrics = ("fid", "isc", "prc")
    first = fidelity(*two_sets, proxy_extractor(extractor_at(tmp_path / "a.safetensors", 1)), metrics)
    second = fidelity(*two_sets, proxy_extractor(extractor_at(tmp_path / "b.safetensors", 2)), metrics)
    for name in ("frechet_inception_distance", "inception_score_mean"):
        assert abs(first[name] / second[name] - 1) > 1e-3
    shutil.copy(tmp_path / "b.safetensors", tmp_path / "a.safetensors")  # the same name, other weights
    assert fidelity(*two_sets, proxy_extractor(tmp_path / "a.safetensors"), metrics) == second


def test_real_side_is_measured_again_in_every_call(two_sets: tuple[Tensor, Tensor], proxy: Extractor) -> None:
    generated, real = two_sets
    whole, half = (fidelity(generated, x, proxy, ("fid",)) for x in (real, real[:100]))
    assert whole != half
