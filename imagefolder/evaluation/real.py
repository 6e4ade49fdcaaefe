"""Real images of a data set, as samples are compared with them: references, and the values of test images themselves.

All functions may run in several processes: each measures its part of the images, and all get the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from imagefolder.data.images import DataSplits, Images, spread_evenly
from imagefolder.data.order import ordered_batches
from imagefolder.distributed import my_part
from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.metrics import measure_all, metrics_of
from imagefolder.evaluation.neighbours import HELD_OUT
from imagefolder.evaluation.reference import (
    IMAGENET_CLASSES,
    Reference,
    published_reference,
    read_reference,
    reference_of,
)
from imagefolder.evaluation.statistics import Statistics, measure

BATCH = 50
FEATURES_KEPT = 10_000  # of training images in a file: what precision, recall and KID compare with


def real_floors(splits: DataSplits, extractors: Sequence[Extractor]) -> dict[str, float]:
    """Generation metrics of the real test images against the real training images: what no model should beat.

    Returns:
        Values by full name, for `imagefolder.evaluation.spaces.extractors_for`.
    """
    return floors_against(_training_references(splits, extractors), splits, extractors)


def floors_against(
    references: Sequence[Reference], splits: DataSplits, extractors: Sequence[Extractor]
) -> dict[str, float]:
    """`real_floors`, where the references of the training images are known, one per extractor."""
    measured = split_statistics(splits.test, extractors, "real test images: features")
    references = _with_held_out(references, splits, extractors)
    result = measure_all("test images", measured, references, "g", splits.test.labels)
    return {m.protocol.name: m.value for m in result.measurements}


def sample_references(splits: DataSplits, extractors: Sequence[Extractor]) -> list[Reference]:
    """The reference of each extractor; the training images are read once for all of them."""
    training = [extractor for extractor in extractors if extractor.reference == "training"]
    measured = iter(_training_references(splits, training) if training else [])
    references = [next(measured) if e.reference == "training" else _imagenet_reference(splits, e) for e in extractors]
    return _with_held_out(references, splits, extractors)


def training_reference(splits: DataSplits, extractor: Extractor) -> Reference:
    """All training images, with the features of `FEATURES_KEPT` at most of them, spread evenly."""
    whole, title = len(splits.train) <= FEATURES_KEPT, f"real training images: {extractor.name}"
    (statistics,) = split_statistics(splits.train, [extractor], title, keep=whole)
    reference = _training_reference(splits, statistics)
    if whole:
        return reference
    (some,) = split_statistics(spread_evenly(splits.train, FEATURES_KEPT), [extractor], title)
    return replace(reference, features=some.features)


def split_statistics(
    images: Images, extractors: Sequence[Extractor], title: str, keep: bool = True
) -> list[Statistics]:
    """Statistics of a split without augmentation; with the features themselves if `keep`."""
    plain = images.plain()
    batches = (batch for batch, _ in ordered_batches(plain, BATCH, my_part(len(plain))))
    return measure(batches, extractors, len(plain), title, keep)


def _training_references(splits: DataSplits, extractors: Sequence[Extractor]) -> list[Reference]:
    anew = [extractor for extractor in extractors if extractor.kept is None]
    measured = iter(split_statistics(splits.train, anew, "real training images: features") if anew else [])
    return [
        _training_reference(splits, next(measured)) if e.kept is None else read_reference(e.kept)[0] for e in extractors
    ]


def _training_reference(splits: DataSplits, statistics: Statistics) -> Reference:
    size = (splits.image_size, splits.image_size)
    return reference_of(f"{splits.name}/train", "all training images", statistics, size)


def _with_held_out(
    references: Sequence[Reference], splits: DataSplits, extractors: Sequence[Extractor]
) -> list[Reference]:
    """References with the features of test images, for the extractors that have a use for them."""
    using = [e for e in extractors if any(metric.needs == "held-out" for metric in metrics_of(e, "g", number=0))]
    if not using:
        return list(references)
    measured = split_statistics(spread_evenly(splits.test, HELD_OUT), using, "real test images: features")
    features = {id(statistics.extractor): statistics.features for statistics in measured}
    return [
        replace(reference, held_out=features.get(id(extractor)))
        for reference, extractor in zip(references, extractors, strict=True)
    ]


def _imagenet_reference(splits: DataSplits, extractor: Extractor) -> Reference:
    if len(splits.classes) != IMAGENET_CLASSES:
        raise InputError(
            f"{splits.name} has {len(splits.classes)} classes: its samples cannot be compared with ImageNet's "
            "reference; use a proxy extractor"
        )
    return published_reference(extractor)
