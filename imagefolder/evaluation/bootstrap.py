"""Bootstrap intervals over images: how far a Frechet distance would move with other images of the same model.

A set resampled with replacement holds 63 % distinct images, and a Frechet distance rises the fewer images there are:
distances of resampled sets lie above the value, often by more than they spread, so their percentiles are no interval
for it. What is resampled here is the first-order term of the distance, the mean of what each image adds to it (its
influence), which has no such bias; close to the distance between real images, where the whole distance of resampled
sets spreads several times too far, it stays right. It also needs two eigenvalue decompositions in all instead of one
for every resampled set.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from imagefolder.evaluation.statistics import MeanCovariance

LEVEL = 0.95
RESAMPLED, SEED = 1000, 2020  # sets, drawn by a generator of their own: no other random number moves
DRAWN = 5 * 10**6  # indices of images in memory at a time
FEWEST = 10  # images of a class that are resampled among themselves
ROWS = 10_000  # images whose features are in memory as float64 at a time
RANK = 1e-12  # of the largest variance: features do not vary in directions with less


def frechet_interval(
    value: float,
    images: Tensor,
    own: MeanCovariance,
    reference: MeanCovariance,
    *,
    originals: Tensor | None = None,
    labels: Tensor | None = None,
) -> tuple[float, float]:
    """The 95 % interval (basic bootstrap) for the mean Frechet distance of sets of as many images.

    Args:
        value: the distance.
        images: features of the measured images, float32 (N, D), and `own`, their mean and covariance.
        reference: mean and covariance of what they are compared with, which stays as it is.
        originals: instead, the features (N, D) that `reference` is of, each belonging to one image: pairs are
            resampled together.
        labels: int64 (N,) of images whose number in each class is given, as in class-balanced samples: each class is
            resampled by itself, if none has fewer than 10 images.
    """
    means = _resampled_means(_influence(images, own, reference, originals), labels)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return max(0.0, value - float(high)), value - float(low)


def _influence(images: Tensor, own: MeanCovariance, reference: MeanCovariance, originals: Tensor | None) -> np.ndarray:
    """Derivative of the distance by the weight of each image, or of each pair: float64 (N,) with mean 0.

    With the covariances S = R R' and T, and M = R' T R, the distance is |m - n|^2 + tr S + tr T - 2 tr M^1/2. Its
    derivatives by S and T are 1 - Q M^1/2 Q', where Q' R = 1, and 1 - R M^-1/2 R'.
    """
    shift = own["mu"] - reference["mu"]
    variances, axes = _spectrum(own["sigma"])
    root, inverse = axes * np.sqrt(variances), axes / np.sqrt(variances)
    values, vectors = _spectrum(root.T @ reference["sigma"] @ root)
    change = _change(images, own["mu"], 2 * shift, inverse @ vectors, np.sqrt(values))
    if originals is not None:
        change += _change(originals, reference["mu"], -2 * shift, root @ vectors, 1 / np.sqrt(values))
    return change - change.mean()


def _spectrum(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positive eigenvalues (r,) and their eigenvectors (D, r) of a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    kept = values > RANK * values.max(initial=0)  # none, if all images are equal
    return values[kept], vectors[:, kept]


def _change(features: Tensor, mean: np.ndarray, slope: np.ndarray, axes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """x' slope + x' x - sum of `weights` (r,) times (x' `axes`)^2, for the features around their mean."""
    parts = []
    for part in features.split(ROWS):
        x = part.double().numpy() - mean
        parts.append(x @ slope + (x**2).sum(1) - (x @ axes) ** 2 @ weights)
    return np.concatenate(parts)


def _resampled_means(values: np.ndarray, labels: Tensor | None) -> np.ndarray:
    """Means (`RESAMPLED`,) of sets drawn with replacement from values (N,), within each class if there are labels."""
    groups = [values] if labels is None else [values[labels.numpy() == label] for label in labels.unique().tolist()]
    if min(map(len, groups)) < FEWEST:
        groups = [values]
    generator, sums = np.random.default_rng(SEED), np.zeros(RESAMPLED)
    for group in groups:
        sets = max(1, DRAWN // len(group))
        for start in range(0, RESAMPLED, sets):
            part = sums[start : start + sets]
            part += group[generator.integers(len(group), size=(len(part), len(group)))].sum(1)
    return sums / len(values)
