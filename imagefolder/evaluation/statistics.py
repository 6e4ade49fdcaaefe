"""Statistics of a set of images that metrics need, accumulated batch by batch so that the set never is in memory.

All sums are float64 and merge exactly, over batches and over processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from imagefolder.distributed import gather_objects, my_part, sum_over_processes
from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import Extractor
from imagefolder.progress import Phase

IS_SPLITS, IS_SEED = 10, 2020  # torch-fidelity's

MeanCovariance = dict[str, np.ndarray]
"""`mu` float64 (D,) and `sigma` float64 (D, D), as torch-fidelity takes them."""


class Moments:
    """Mean and covariance of features (B, D), added batch by batch around the running mean (Chan et al.)."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Add features (B, D)."""
        if not len(features):
            return
        features = features.to(torch.float64)
        mean = features.mean(0)
        centred = features - mean
        self._join(len(features), mean, centred.T @ centred)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total, shift = self.count + count, mean - self.mean
        self.scatter += scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total

    def over_processes(self) -> None:
        """Merge the parts of all processes, in all of them."""
        total = sum_over_processes(torch.tensor(float(self.count), dtype=torch.float64, device=self.mean.device))
        mean = sum_over_processes(self.mean * self.count) / total
        shift = self.mean - mean
        self.scatter = sum_over_processes(self.scatter + torch.outer(shift, shift) * self.count)
        self.count, self.mean = int(total), mean

    def statistics(self) -> MeanCovariance:
        """Mean and covariance (n - 1); `InputError` if a feature was not finite."""
        sigma = self.scatter / (self.count - 1)
        if not bool(torch.isfinite(sigma).all()):
            raise InputError("features of the images are not finite: the extractor's weights are broken")
        return {"mu": self.mean.cpu().numpy(), "sigma": sigma.cpu().numpy()}


class InceptionScore:
    """Sums of the Inception score per split.

    The split of an image depends only on its index and the number of images, by torch-fidelity's shuffle: images sorted
    by class score the same as shuffled ones.
    """

    def __init__(self, number: int, classes: int, device: torch.device) -> None:
        order = np.random.RandomState(IS_SEED).permutation(number)
        sizes = [(i + 1) * number // IS_SPLITS - i * number // IS_SPLITS for i in range(IS_SPLITS)]
        splits = np.empty(number, dtype=np.int64)
        splits[order] = np.repeat(np.arange(IS_SPLITS), sizes)
        self.splits = torch.from_numpy(splits).to(device)
        self.sizes = torch.tensor(sizes, dtype=torch.float64, device=device)
        self.probabilities = torch.zeros(IS_SPLITS, classes, dtype=torch.float64, device=device)
        self.negative_entropy = torch.zeros(IS_SPLITS, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, first: int) -> None:
        """Add the logits (B, C) of the images first, first + 1, ..."""
        logits = logits.to(torch.float64)
        splits = self.splits[first : first + len(logits)]
        p = logits.softmax(-1)
        self.probabilities.index_add_(0, splits, p)
        self.negative_entropy.index_add_(0, splits, (p * logits.log_softmax(-1)).sum(-1))

    def over_processes(self) -> None:
        """Merge the parts of all processes, in all of them."""
        sum_over_processes(self.probabilities)
        sum_over_processes(self.negative_entropy)

    def value(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits."""
        q = self.probabilities / self.sizes[:, None]
        divergence = self.negative_entropy / self.sizes - torch.xlogy(q, q).sum(-1)
        scores = divergence.exp().cpu().numpy()
        return float(scores.mean()), float(scores.std())


class Statistics:
    """Statistics of a set of images through one extractor, or of the part of the set that starts at index `first`.

    Args:
        number: size of the whole set, at least 10 (the splits of the Inception score).
        keep: keep the features themselves as well, for precision, recall and KID: 4 D bytes per image.
    """

    def __init__(self, extractor: Extractor, number: int, first: int = 0, keep: bool = False) -> None:
        if number < IS_SPLITS:
            raise InputError(f"{number} images are too few to measure; at least {IS_SPLITS} are needed")
        pooled, classes, spatial = extractor.widths
        self.extractor, self.number, self.first, self.keep = extractor, number, first, keep
        self.pooled = Moments(pooled, extractor.device)
        self.spatial = Moments(spatial, extractor.device)
        self.score = InceptionScore(number, classes, extractor.device)
        self._features: list[Tensor] = []
        self._classes: list[Tensor] = []

    def add(self, images: Tensor) -> None:
        """Add the next images, uint8 (B, 3, H, W)."""
        seen = self.extractor(images)
        at = self.first + self.pooled.count
        if at + len(images) > self.number:
            raise InputError(f"more images than the {self.number} expected")
        self.score.add(seen.logits, at)
        self.pooled.add(seen.pooled)
        self.spatial.add(seen.spatial)
        if self.keep:
            self._features.append(seen.pooled.cpu())
        if seen.logits.shape[1]:
            self._classes.append(seen.logits.argmax(-1).cpu())

    def over_processes(self) -> Statistics:
        """Merge the parts of all processes, in all of them; `InputError` if images of the set are missing."""
        for part in (self.pooled, self.spatial, self.score):
            part.over_processes()
        for name in ("_features", "_classes"):
            setattr(self, name, [part for parts in gather_objects(getattr(self, name)) for part in parts])
        if self.pooled.count != self.number:
            raise InputError(f"{self.pooled.count} images were measured, not the {self.number} expected")
        return self

    @property
    def features(self) -> Tensor:
        """The features kept, in the order of the images: float32 (N, D)."""
        return torch.cat(self._features)

    @property
    def classes(self) -> Tensor:
        """The most likely class of each image, int64 (N,)."""
        return torch.cat(self._classes)


def measure(
    batches: Iterable[Tensor], extractors: Sequence[Extractor], number: int, title: str, keep: bool = False
) -> list[Statistics]:
    """Statistics of a set of `number` images over all processes, one per extractor, in one pass over the images.

    Args:
        batches: this process's part of the set.
        keep: also keep the features themselves (see `Statistics`).
    """
    part, done = my_part(number), 0
    seen = [Statistics(extractor, number, part.start, keep) for extractor in extractors]
    with Phase(title, len(part)) as phase:
        for images in batches:
            for statistics in seen:
                statistics.add(images)
            done += len(images)
            phase.update(done)
    return [statistics.over_processes() for statistics in seen]
