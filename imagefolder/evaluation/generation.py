"""Metrics of samples: how the statistics of generated images compare with a reference."""

from __future__ import annotations

from torch import Tensor

from imagefolder.evaluation.metrics import NEIGHBOURS, frechet, kernel_distance, precision_recall
from imagefolder.evaluation.reference import Reference
from imagefolder.evaluation.results import Measurement, Result, feature_protocol
from imagefolder.evaluation.statistics import Statistics

FEW = 10_000  # below it FID mostly shows how few images there are, and KID stands beside it


def generation_metrics(
    statistics: Statistics, reference: Reference, distance: str, samples: str, labels: Tensor | None = None
) -> Result:
    """FID, sFID, IS, precision, recall, for few samples KID, and for proxies the share of samples of the right class.

    Args:
        statistics: of the samples, features kept.
        distance: name of the Frechet distance, "gFID" or "FID".
        samples: what the samples are, in words.
        labels: int64 (N,), the classes they should be of.
    """
    extractor, n = statistics.extractor, statistics.number
    result = Result([])

    def add(name: str, text: str, value: float, n_real: int, higher: bool, spread: float | None = None) -> None:
        protocol = feature_protocol(name, text, reference.name, extractor, higher)
        result.measurements.append(Measurement(protocol, value, n_real, n, spread, extractor.floors.get(name)))

    kind, what = extractor.prefix, f"{samples} against {reference.what}, both 8-bit"
    value = frechet(statistics.pooled.statistics(), reference.pooled)
    add(f"{kind}{distance}", f"Frechet distance of {what}", value, reference.number, False)
    if reference.spatial is not None:
        value = frechet(statistics.spatial.statistics(), reference.spatial)
        add(f"{kind}sFID", f"Frechet distance in spatial features of {what}", value, reference.number, False)
    classes = "the extractor's" if extractor.is_proxy else "Inception's 1008"
    text = f"Inception score formula on {classes} classes, 10 splits of the shuffled samples"
    mean, spread = statistics.score.value()
    add(f"{kind}IS", text, mean, 0, True, spread)
    if reference.features is None:
        result.notes.append(f"precision, recall and KID not measured: {reference.name} holds no images")
    else:
        n_real = len(reference.features)
        if n_real != reference.number:
            what = f"{samples} against the {n_real:,} images of {reference.name}, both 8-bit"
        precision, recall = precision_recall(statistics.features, reference.features)
        add(f"{kind}precision", f"k = {NEIGHBOURS}, {what}", precision, n_real, True)
        add(f"{kind}recall", f"k = {NEIGHBOURS}, {what}", recall, n_real, True)
        if n < FEW:
            mean, spread = kernel_distance(statistics.features, reference.features)
            add(f"{kind}{distance.replace('FID', 'KID')}", f"kernel distance of {what}", mean, n_real, False, spread)
    if labels is not None and extractor.is_proxy and extractor.widths[1] < 2:
        result.notes.append("class accuracy not measured: with one class, every sample is right")
    elif labels is not None and extractor.is_proxy:
        right = float((statistics.classes == labels).float().mean())
        add("class accuracy", "share of samples the extractor assigns to their class", right, 0, True)
    return result
