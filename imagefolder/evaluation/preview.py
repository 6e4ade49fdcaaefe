"""FID and KID of a few images while a model trains (`imagefolder.training.curve.Preview`): a rough early view.

FID of few images is far too high, by an amount that depends on their number: the values are named after it, and are no
results. Noise and images are the same at every step, so that the values of one training can be compared.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from imagefolder.data.images import DataSplits, samples_to_uint8, spread_evenly, to_float, to_uint8
from imagefolder.data.order import ordered_batches
from imagefolder.distributed import my_part
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.metrics import Kind, frechet, kernel_distance
from imagefolder.evaluation.protocols import labels_of
from imagefolder.evaluation.real import BATCH
from imagefolder.evaluation.reference import Reference, published_reference, reference_of
from imagefolder.evaluation.statistics import Statistics
from imagefolder.generator.graphs import release
from imagefolder.generator.model import Generator
from imagefolder.tokenizer.model import Tokenizer

REAL = 10_000  # training images that samples are compared with, at most

Values = dict[str, float]


def preview_samples(
    splits: DataSplits, extractor: Callable[[], Extractor], *, number: int, seed: int, batch_size: int
) -> Callable[[Generator], Values]:
    """A function that measures class-balanced samples of a generator, drawn with its own settings.

    They are compared with training images (at most 10,000, spread evenly), or with ADM's reference.

    Args:
        extractor: called when it is first needed.
        number: of samples, at least 10.
        batch_size: samples drawn at a time.
    """
    classes = torch.arange(number) * len(splits.classes) // number

    @functools.cache
    def real() -> Reference:
        if extractor().reference == "published":
            return published_reference(extractor())
        images = spread_evenly(splits.train.plain(), REAL)
        statistics = _statistics(extractor(), len(images))
        for batch, _ in ordered_batches(images, BATCH, my_part(len(images))):
            statistics.add(batch)
        return reference_of(f"{splits.name}/train", "training images", statistics.over_processes())

    def measure(generator: Generator) -> Values:
        part, statistics = my_part(number), _statistics(extractor(), number)
        labels = labels_of(classes, splits, generator)
        try:
            for start in range(part.start, part.stop, batch_size):
                indices = list(range(start, min(start + batch_size, part.stop)))
                drawn = generator.sample(labels[indices], seed=seed, indices=indices)
                statistics.add(samples_to_uint8(drawn.images))
        finally:
            release(generator)  # the memory of its graph is the training's
        return _values(statistics.over_processes(), real(), "g", "samples")

    return measure


def preview_reconstructions(
    splits: DataSplits, extractor: Callable[[], Extractor], *, number: int
) -> Callable[[Tokenizer], Values]:
    """A function that measures a tokenizer's reconstructions of test images against the same images.

    Args:
        extractor: called when it is first needed.
        number: of test images, spread evenly over all of them; at least 10.
    """
    test = spread_evenly(splits.test.plain(), number)
    number, part = len(test), my_part(len(test))

    @functools.cache
    def originals() -> list[Tensor]:
        return [images for images, _ in ordered_batches(test, BATCH, part)]

    @functools.cache
    def real() -> Reference:
        statistics = _statistics(extractor(), number)
        for images in originals():
            statistics.add(images)
        return reference_of(f"{splits.name}/test", "test images", statistics.over_processes())

    def measure(tokenizer: Tokenizer) -> Values:
        statistics = _statistics(extractor(), number)
        for images in originals():
            tokens = tokenizer.encode(to_float(images), check=False)
            statistics.add(to_uint8(tokenizer.decode(tokens, check=False)))
        return _values(statistics.over_processes(), real(), "r", "images")

    return measure


def _statistics(extractor: Extractor, number: int) -> Statistics:
    return Statistics(extractor, number, my_part(number).start, keep=True)


def _values(generated: Statistics, real: Reference, kind: Kind, what: str) -> Values:
    """FID and, if the real images are known, KID, named after the number of images; only those that are finite."""
    values = {f"{kind}FID": frechet(generated.pooled.statistics(), real.pooled)}
    if real.features is not None:
        values[f"{kind}KID"] = kernel_distance(generated.features, real.features)[0]
    prefix, number = generated.extractor.prefix, f"{generated.number:,} {what}"
    return {f"{prefix}{name} ({number})": value for name, value in values.items() if math.isfinite(value)}
