"""Where samples lie among the images: how near to training images (memorisation), and how much of them they reach.

Distances are Euclidean, between features. scikit-learn searches in blocks, so that no matrix of all distances is in
memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from imagefolder.data.images import Images

HELD_OUT = 2_000  # test images at most, whose median distance to the training images is known well enough from these
COVERAGE_NEIGHBOURS = 5  # Naeem et al.'s k
COVERED = 10_000  # images on each side at most: time grows with the square
SEED = 0  # of the images drawn, if there are more
SHOWN = 20


class Neighbours(NamedTuple):
    """Distance of every image to its nearest training image, float64 (N,), and that one's index, int64 (N,)."""

    distances: Tensor
    indices: Tensor


def nearest(features: Tensor, real: Tensor) -> Neighbours:
    """The nearest of `real` features (M, D) to each of some features (N, D)."""
    indices = _searched(features, real, 1)[1][:, 0]
    # Again from the differences, which do not cancel as the products of a search do
    return Neighbours((features.double() - real[indices].double()).norm(dim=1), indices)


def coverage(generated: Tensor, real: Tensor) -> float:
    """Coverage (Naeem et al. 2020, arXiv:2002.09797, k = 5) of features (N, D) and (M, D), 0..1.

    The share of real images whose ball, which reaches to its k-th neighbour among the real images, holds a sample. As
    published, there are equally many on both sides: 10,000 or the smaller of N and M, drawn with a fixed seed. Then
    it is about 1 - 2**-k = 0.97 for samples of the same distribution, whatever their number.
    """
    number = min(len(generated), len(real), COVERED)
    generated, real = _drawn(generated, number), _drawn(real, number)
    neighbours = min(COVERAGE_NEIGHBOURS, number - 1)
    radii = _searched(real, real, neighbours + 1)[0][:, -1]  # the nearest is the image itself
    return float((nearest(real, generated).distances < radii).float().mean())


def beside_nearest(samples: Tensor, found: Neighbours, train: Images) -> Tensor:
    """The `SHOWN` of some samples that are nearest to a training image, nearest first, each followed by that image.

    Args:
        samples: uint8 (N, 3, H, W), the first ones that `found` is about.
        train: the training images that its indices count.

    Returns:
        uint8 (2 * SHOWN, 3, H, W), or fewer if there are fewer samples.
    """
    order = found.distances[: len(samples)].argsort(stable=True)[:SHOWN]
    images, _ = train.plain().__getitems__([(0, int(i)) for i in found.indices[order]])
    return torch.stack([samples[order], images], dim=1).flatten(0, 1)


def _searched(features: Tensor, real: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Distances to the `number` nearest real features, ascending, and their indices: (N, number) both."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=number, algorithm="brute").fit(real.numpy())
    distances, indices = search.kneighbors(features.numpy())
    return torch.from_numpy(distances), torch.from_numpy(indices)


def _drawn(features: Tensor, number: int) -> Tensor:
    """Some of the features, as they are if that is all of them."""
    if number == len(features):
        return features
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(SEED))[:number]]
