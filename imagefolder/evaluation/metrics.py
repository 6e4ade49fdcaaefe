"""Metrics of a set of images against a reference: torch-fidelity's formulas on statistics of features.

A new metric is one function of `Sets`, and one entry in `SET_METRICS`. Metrics of pairs are in
`imagefolder.evaluation.pairs`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from typing import Literal

import torch
from torch import Tensor

from imagefolder.evaluation.bootstrap import frechet_interval
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.neighbours import COVERAGE_NEIGHBOURS, Neighbours, coverage, nearest
from imagefolder.evaluation.reference import Reference
from imagefolder.evaluation.results import Measurement, Result, feature_protocol
from imagefolder.evaluation.statistics import MeanCovariance, Statistics

NEIGHBOURS = 3
KID_SUBSET = 1000
SCIKIT_LEARN = f"scikit-learn {metadata.version('scikit-learn')}"
COPIED = 1e-5  # of the length of features: the distance of one image to itself, measured in batches of other sizes
DISTANCES = 5 * 10**7  # in one matrix for precision and recall: 200 MB, a few of which are in memory at a time
FEW = 10_000  # images; with fewer, FID is dominated by its bias, and KID is measured as well

Kind = Literal["r", "g", ""]
"""Reconstructions, generated samples, or any images in files: the letter in the names rFID, gFID and FID."""
Need = Literal["pooled", "spatial", "logits", "features", "some features", "held-out", "labels"]
"""Mean and covariance of pooled or spatial features, logits, the features of all images or of at most `FEW` real ones,
those of all images and of test images, or logits and labels."""
Value = float | tuple[float, float]
"""A value, or a mean and its standard deviation, e.g. over splits."""


def frechet(first: MeanCovariance, second: MeanCovariance) -> float:
    """Frechet distance (FID, sFID)."""
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    return fid_statistics_to_metric(first, second, verbose=False)["frechet_inception_distance"]


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Improved precision and recall (k = 3) of features (N, D) and (M, D), in bounded memory."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    rows = max(1, min(1000, DISTANCES // max(len(generated), len(real))))
    values = prc_features_to_metric(
        generated, real, prc_neighborhood=NEIGHBOURS, prc_batch_size=rows, save_cpu_ram=True, verbose=False
    )
    return values["precision"], values["recall"]


def kernel_distance(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """KID of features (N, D) and (M, D), unbiased: mean and standard deviation over 100 subsets of at most 1000."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    subset = min(KID_SUBSET, len(generated), len(real))
    values = kid_features_to_metric(generated, real, kid_subset_size=subset, verbose=False)
    return values["kernel_inception_distance_mean"], values["kernel_inception_distance_std"]


@dataclass(frozen=True)
class Sets:
    """Images and what they are compared with, through one extractor; `labels` int64 (N,) are those of the images."""

    generated: Statistics
    reference: Reference
    labels: Tensor | None = None

    @cached_property
    def features(self) -> tuple[Tensor, Tensor]:
        """Of the images, float32 (N, D), and of those of the reference, (M, D)."""
        assert self.reference.features is not None
        return self.generated.features, self.reference.features

    @cached_property
    def precision_recall(self) -> tuple[float, float]:
        """Both come from the same distances, to at most `FEW` real images, spread evenly: 60,000 take 30 times as
        long as 10,000."""
        generated, real = self.features
        number = min(len(real), FEW)
        return precision_recall(generated, real[torch.arange(number) * len(real) // number])

    @cached_property
    def neighbours(self) -> Neighbours:
        """The nearest real image of each image."""
        return nearest(*self.features)

    @cached_property
    def held_out_distance(self) -> float:
        """The median distance of test images to their nearest training images; 0 if they are the same but for rounding,
        or if there are none."""
        held_out, (_, real) = self.reference.held_out, self.features
        distance = 0.0 if held_out is None else float(nearest(held_out, real).distances.median())
        return distance if distance > COPIED * float(real.norm(dim=1).median()) else 0.0

    @cached_property
    def class_accuracies(self) -> list[float | None]:
        """The share of each class's images that the extractor assigns to it; None for a class without images."""
        assert self.labels is not None
        number = max(int(self.labels.max()) + 1, self.generated.extractor.widths.logits)
        images = torch.bincount(self.labels, minlength=number).tolist()
        right = torch.bincount(self.labels[self.generated.classes == self.labels], minlength=number).tolist()
        return [r / n if n else None for r, n in zip(right, images, strict=True)]

    def n_real(self, need: Need) -> int | None:
        """Number of real images behind a metric with this need; None if it cannot be measured."""
        if need == "held-out" and (self.reference.held_out is None or self.reference.features is None):
            return None
        if need in ("features", "some features", "held-out"):
            if self.reference.features is None:
                return None
            return min(len(self.reference.features), FEW if need == "some features" else sys.maxsize)
        if (need == "spatial" and self.reference.spatial is None) or (need == "labels" and self.labels is None):
            return None
        return 0 if need in ("logits", "labels") else self.reference.number


@dataclass(frozen=True)
class SetMetric:
    """A metric of a set of images.

    Attributes:
        name: with `{prefix}` for the extractor's and `{kind}` for "r", "g" or nothing.
        text: one sentence; `{sets}` are the images and what they are compared with, `{classes}` whose the logits are,
            `{held_out}` how many test images there are.
        value: computes it.
        higher: whether a higher value is better.
        reconstructions: whether it is measured for reconstructions as well as for samples.
        below: it is measured only for fewer images than this.
        evaluator: program and version that computes it; None: the extractor's.
        resampled: whether it is the Frechet distance, which gets a bootstrap interval over images.
    """

    name: str
    text: str
    needs: Need
    value: Callable[[Sets], Value]
    higher: bool
    version: int = 1
    reconstructions: bool = False
    below: int | None = None
    evaluator: str | None = None
    resampled: bool = False


def _fid(sets: Sets) -> float:
    return frechet(sets.generated.pooled.statistics(), sets.reference.pooled)


def _sfid(sets: Sets) -> float:
    assert sets.reference.spatial is not None
    return frechet(sets.generated.spatial.statistics(), sets.reference.spatial)


def _interval(sets: Sets, value: float, kind: Kind) -> tuple[float, float] | None:
    """The bootstrap interval of a Frechet distance, if the features of all images were kept.

    Only reconstructions have images of their own in the reference, with which they are resampled.
    """
    generated, reference = sets.generated, sets.reference
    if not generated.keep or (kind == "r" and reference.features is None):
        return None
    own, originals = generated.pooled.statistics(), reference.features if kind == "r" else None
    labels = sets.labels if kind == "g" else None
    return frechet_interval(value, generated.features, own, reference.pooled, originals=originals, labels=labels)


def _class_accuracy(sets: Sets) -> float:
    return float((sets.generated.classes == sets.labels).float().mean())


def _neighbour_ratio(sets: Sets) -> float:
    return float(sets.neighbours.distances.median()) / sets.held_out_distance


def _worst_class_accuracy(sets: Sets) -> float:
    return min(accuracy for accuracy in sets.class_accuracies if accuracy is not None)


_IS = "Inception score formula on {classes} classes, 10 splits of the shuffled samples"
_NEAR = f"k = {NEIGHBOURS}, {{sets}}"
_RIGHT = "share of samples the extractor assigns to their class"
_RATIO = (
    "median distance to the nearest real image, over that of {held_out} test images, {sets}; 1: as far as test images, "
    "towards 0: copies, above 1: unlike any image"
)
_COVERAGE = f"Naeem et al. 2020, k = {COVERAGE_NEIGHBOURS}, equally many on both sides drawn by a fixed seed, {{sets}}"
SET_METRICS = [
    SetMetric(
        "{prefix}{kind}FID", "Frechet distance of {sets}", "pooled", _fid,
        higher=False, reconstructions=True, resampled=True,
    ),
    SetMetric("{prefix}sFID", "Frechet distance in spatial features of {sets}", "spatial", _sfid, higher=False),
    SetMetric("{prefix}IS", _IS, "logits", lambda sets: sets.generated.score.value(), higher=True),
    SetMetric("{prefix}precision", _NEAR, "some features", lambda sets: sets.precision_recall[0], higher=True),
    SetMetric("{prefix}recall", _NEAR, "some features", lambda sets: sets.precision_recall[1], higher=True),
    SetMetric(
        "{prefix}{kind}KID", "kernel distance of {sets}", "features", lambda sets: kernel_distance(*sets.features),
        higher=False, reconstructions=True, below=FEW,
    ),
    SetMetric("class accuracy", _RIGHT, "labels", _class_accuracy, higher=True),
    SetMetric("worst class accuracy", f"{_RIGHT}, lowest of all classes", "labels", _worst_class_accuracy, higher=True),
    SetMetric(
        "{prefix}training neighbour ratio", _RATIO, "held-out", _neighbour_ratio, higher=True, evaluator=SCIKIT_LEARN
    ),
    SetMetric(
        "{prefix}mode coverage", _COVERAGE, "features", lambda sets: coverage(*sets.features),
        higher=True, evaluator=SCIKIT_LEARN,
    ),
]  # fmt: skip
"""In the order in which they are recorded."""


def metrics_of(extractor: Extractor, kind: Kind, number: int) -> list[SetMetric]:
    """The metrics that are measured with an extractor for a number of images of a kind."""
    outputs = {"spatial": extractor.widths.spatial, "logits": extractor.widths.logits, "labels": extractor.of_data}
    return [
        metric
        for metric in SET_METRICS
        if (metric.reconstructions or kind != "r")
        and (metric.below is None or number < metric.below)
        and extractor.measures(metric.name.format(prefix="", kind=kind))
        and outputs.get(metric.needs, True)
    ]


def needs_features(extractors: Sequence[Extractor], kind: Kind, number: int) -> bool:
    """Whether the features of all images are kept: for these metrics, or for the intervals of few images."""
    metrics = [metric for extractor in extractors for metric in metrics_of(extractor, kind, number)]
    return any("features" in metric.needs or (metric.resampled and number <= FEW) for metric in metrics)


def measure_all(
    images: str,
    measured: Sequence[Statistics],
    references: Sequence[Reference],
    kind: Kind,
    labels: Tensor | None = None,
    conditions: str = "both 8-bit",
) -> Result:
    """All metrics that extractors, references and the number of images allow, and notes on those they do not.

    Args:
        images: what the images are, in words.
        measured: their statistics, one per extractor.
        references: what they are compared with, one per extractor.
        labels: int64 (N,), the classes that the images should show.
        conditions: how both sides are stored and cropped, in words.
    """
    result = Result([])
    for generated, reference in zip(measured, references, strict=True):
        extractor, number, sets = generated.extractor, generated.number, Sets(generated, reference, labels)
        without_images = []
        for metric in metrics_of(extractor, kind, number):
            name, n_real = metric.name.format(prefix=extractor.prefix, kind=kind), sets.n_real(metric.needs)
            if n_real is None:
                without_images += [name] * ("features" in metric.needs)
                continue
            part = n_real not in (0, reference.number)
            if metric.needs == "labels":
                if extractor.widths.logits < 2:
                    result.notes.append(f"{name} not measured: with one class, every sample is right")
                    continue
                result.class_accuracies = sets.class_accuracies
            if metric.needs == "held-out":
                if not sets.held_out_distance:
                    result.notes.append(f"{name} not measured: test images are copies of training images")
                    continue
                if extractor.reference == "training" and not part and result.neighbours is None:
                    result.neighbours = sets.neighbours
            real = f"the {n_real:,} images of {reference.name}" if part else reference.what
            text = metric.text.format(
                sets=f"{images} against {real}, {conditions}",
                classes=extractor.classes,
                held_out=0 if reference.held_out is None else f"{len(reference.held_out):,}",
            )
            protocol = feature_protocol(name, text, reference.name, extractor, metric.higher, metric.version)
            if metric.evaluator is not None:
                protocol = replace(protocol, evaluator=metric.evaluator)
            found = metric.value(sets)
            value, spread = found if isinstance(found, tuple) else (found, None)
            interval = _interval(sets, value, kind) if metric.resampled else None
            floor = extractor.floors.get(name)
            result.measurements.append(Measurement(protocol, value, n_real, number, spread, floor, interval))
        if without_images:
            result.notes.append(f"{', '.join(without_images)} not measured: {reference.name} holds no images")
    return result
