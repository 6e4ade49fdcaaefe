"""Protocols: which images are compared with which, in which order and format.

All functions may run in several processes: each measures its part of the images, and all get the results.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import torch
from torch import Tensor

from imagefolder.config import UNGUIDED, SamplingConfig
from imagefolder.data.images import DataSplits, Images, samples_to_uint8, to_float, to_uint8
from imagefolder.data.order import ordered_batches
from imagefolder.distributed import gather_objects, my_part, sum_over_processes
from imagefolder.evaluation.extractor import Extractor, default_device
from imagefolder.evaluation.files import measure_files, open_images
from imagefolder.evaluation.metrics import frechet, measure_all, metrics_of, needs_features
from imagefolder.evaluation.neighbours import beside_nearest
from imagefolder.evaluation.pairs import Pairs
from imagefolder.evaluation.ratio import frechet_ratio
from imagefolder.evaluation.real import BATCH, sample_references
from imagefolder.evaluation.reference import IMAGENET_CLASSES, Reference, read_references, reference_of
from imagefolder.evaluation.results import Measurement, Result, Usage
from imagefolder.evaluation.statistics import Statistics, measure
from imagefolder.generator.model import Generator
from imagefolder.generator.sampling import arguments_of
from imagefolder.progress import Phase
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.quantizers import usage_and_perplexity

UNGUIDED_METRICS = {"gFID", "IS"}
UNGUIDED_SUFFIX = " (unguided)"
RECONSTRUCTIONS_SHOWN, SAMPLES_SHOWN = 40, 100


def reconstruction_distance(tokenizer: Tokenizer, splits: DataSplits, extractor: Extractor, title: str) -> float:
    """Only the rFID of `evaluate_reconstruction`, by which the best tokenizer is chosen during training."""
    test = splits.test.plain()
    generated, real = (Statistics(extractor, len(test), my_part(len(test)).start) for _ in range(2))
    for originals, images, _ in _reconstructions(tokenizer, test, title):
        generated.add(images)
        real.add(originals)
    return frechet(*(side.over_processes().pooled.statistics() for side in (generated, real)))


def evaluate_reconstruction(
    tokenizer: Tokenizer, splits: DataSplits, extractors: Sequence[Extractor], title: str
) -> Result:
    """`measure_reconstructions` of a tokenizer's, with the usage of its codebooks."""
    tokens: list[Tensor] = []

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for originals, images, codes in _reconstructions(tokenizer, splits.test.plain(), title):
            tokens.append(codes.int().cpu())
            yield originals, images

    result = measure_reconstructions(pairs(), splits, extractors)
    return replace(result, usage=codebook_usage(_gathered(tokens), tokenizer))


def measure_reconstructions(
    pairs_in_batches: Iterable[tuple[Tensor, Tensor]], splits: DataSplits, extractors: Sequence[Extractor]
) -> Result:
    """Test images against their reconstructions, both 8-bit and with the same crop.

    The reference of rFID is the test images, never the training images.

    Args:
        pairs_in_batches: this process's part of the test images, in their order, with the reconstructions:
            uint8 (B, 3, H, W) both.
    """
    n, name = len(splits.test), f"{splits.name}/test"
    start = my_part(n).start
    extractors = [extractor for extractor in extractors if metrics_of(extractor, "r", n)]
    keep = needs_features(extractors, "r", n)
    sides = [[Statistics(extractor, n, start, keep) for _ in range(2)] for extractor in extractors]
    pairs, shown, done = Pairs(), [], 0
    for originals, images in pairs_in_batches:
        for generated, real in sides:
            generated.add(images)
            real.add(originals)
        pairs.add(images, originals)
        if (missing := RECONSTRUCTIONS_SHOWN - start - done) > 0:
            shown.append(torch.stack([originals[:missing], images[:missing]], dim=1).flatten(0, 1))
        done += len(images)
    conditions, measured = "both 8-bit, same crop", [generated.over_processes() for generated, _ in sides]
    references = [reference_of(name, "their reconstructions", real.over_processes()) for _, real in sides]
    result = measure_all("test images", measured, references, "r", conditions=conditions)
    result += pairs.result(f"test images against their reconstructions, {conditions}", name)
    return replace(result, picture=_gathered(shown))


def evaluate_generation(
    generator: Generator,
    splits: DataSplits,
    extractors: Sequence[Extractor],
    *,
    sampling: SamplingConfig,
    samples: int,
    seed: int,
    title: str,
    unguided: bool = False,
    sampling_seeds: int = 1,
) -> Result:
    """`measure_samples` of a generator's, all classes in turn, so that any number is as balanced as possible.

    Args:
        unguided: whether to measure samples drawn as the model predicts (`UNGUIDED`) as well.
        sampling_seeds: number of sets of samples whose gFIDs make its spread; the first one, drawn with `seed`,
            gives the values.
    """
    side = generator.tokenizer.config.image_size
    classes = torch.arange(samples) % len(splits.classes)
    labels, part = labels_of(classes, splits, generator), my_part(samples)
    seeds, plain = seeds_of_sampling(seed, sampling_seeds), replace(sampling, **UNGUIDED)
    first, *further = (_Sampler(generator, labels, sampling, each) for each in seeds)
    without = [_Sampler(generator, labels, plain, each) for each in seeds] if unguided else []
    result = measure_samples(
        first.batches(part),
        splits,
        extractors,
        number=samples,
        size=(side, side),
        labels=classes,
        title=title,
        further=[each.batches(part) for each in further],
        unguided=[each.batches(part) for each in without],
    )
    shown = _gathered(first.shown)
    result = replace(result, picture=shown, samples_per_second=first.over_processes())
    return with_nearest(result, shown, splits)


def with_nearest(result: Result, samples: Tensor, splits: DataSplits) -> Result:
    """A result with a picture of the samples nearest to a training image, if it is known which one that is.

    Args:
        samples: uint8 (N, 3, H, W), the first ones that were measured.
    """
    if result.neighbours is None:
        return result
    return replace(result, nearest=beside_nearest(samples, result.neighbours, splits.train))


def seeds_of_sampling(seed: int, number: int) -> list[int]:
    """Seeds of several sets of samples of one model, no two of which belong to models of different (64-bit) seeds."""
    return [seed + i * 2**64 for i in range(number)]


def measure_samples(
    batches: Iterable[Tensor],
    splits: DataSplits,
    extractors: Sequence[Extractor],
    *,
    number: int,
    size: tuple[int, int],
    labels: Tensor | None,
    title: str,
    further: Sequence[Iterable[Tensor]] = (),
    unguided: Sequence[Iterable[Tensor]] = (),
) -> Result:
    """Samples, each extractor comparing them with its reference: all training images, or ADM's reference of ImageNet.

    Args:
        batches: this process's part of the samples, uint8 (B, 3, H, W).
        number: of samples in all processes, in this and every further set.
        size: height and width of the samples.
        labels: int64 (number,), the classes that they should show; None if that is not known.
        further: the same samples drawn with other seeds. The standard deviation of gFID over all sets is its spread, in
            the first feature space only.
        unguided: samples with the same labels drawn by `UNGUIDED`; the first set gives the values, all the spread.
    """
    extractors = [extractor for extractor in extractors if metrics_of(extractor, "g", number)]
    references = sample_references(splits, extractors)
    for reference in references:
        reference.check_size(size, "samples")
    measured = measure(batches, extractors, number, title, keep=True)
    result = measure_all("class-balanced samples", measured, references, "g", labels)
    result += frechet_ratio(result)
    del measured  # holds the features of all samples
    result = _with_spread(result, further, extractors, references, number, title)
    if not unguided:
        return result
    pairs = zip(map(_only_unguided, extractors), references, strict=True)
    pairs = [(extractor, reference) for extractor, reference in pairs if metrics_of(extractor, "g", number)]
    if not pairs:
        return result
    extractors, references = [extractor for extractor, _ in pairs], [reference for _, reference in pairs]
    title, (first, *others) = f"{title} without guidance", unguided
    measured = measure(first, extractors, number, title, keep=True)
    plain = measure_all("class-balanced samples", measured, references, "g", labels)
    plain = _with_spread(plain, others, extractors, references, number, title)
    return _beside(result, [_as_unguided(measurement) for measurement in plain.measurements])


def evaluate_files(samples: Path, reference: Path, extractors: Sequence[Extractor]) -> tuple[Result, str]:
    """Sample files of any tool against reference files, and the sha256 over the samples' pixels.

    Args:
        samples: a folder of PNGs, or an npz with `arr_0` uint8 (N, H, W, 3).
        reference: the same, or an npz of statistics such as ADM's.

    Raises:
        InputError: files are not lossless 8-bit images of one size, or differ in size from the reference.
    """
    images = open_images(samples)
    references = read_references(reference, extractors)
    for real in references:
        real.check_size(images.size, f"{samples}: samples")
    measured, sha256 = measure_files(images, extractors, f"{samples.name}: samples", keep=True)
    kind = "g" if any(real.published for real in references) else ""
    return measure_all("samples in files", measured, references, kind), sha256


def _reconstructions(tokenizer: Tokenizer, images: Images, title: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This process's part of some images, batch by batch: originals and reconstructions uint8 (B, 3, H, W), tokens."""
    part, done = my_part(len(images)), 0
    with Phase(title, len(part)) as phase:
        for originals, _ in ordered_batches(images, BATCH, part):
            tokens = tokenizer.encode(to_float(originals), check=False)
            yield originals, to_uint8(tokenizer.decode(tokens, check=False)).cpu(), tokens
            done += len(originals)
            phase.update(done)


def _with_spread(
    result: Result,
    further: Sequence[Iterable[Tensor]],
    extractors: Sequence[Extractor],
    references: Sequence[Reference],
    number: int,
    title: str,
) -> Result:
    """A result whose first gFID has the standard deviation over its samples and further sets of them as its spread."""
    names = [f"{extractor.prefix}gFID" for extractor in extractors[:1]]
    first = next((m for m in result.measurements if m.protocol.name in names), None)
    if not further or first is None:
        return result
    extractor, reference = extractors[0], references[0]
    distances = [first.value]
    for i, batches in enumerate(further, 2):
        (statistics,) = measure(batches, [extractor], number, f"{title}, set {i} of {len(further) + 1}")
        distances.append(frechet(statistics.pooled.statistics(), reference.pooled))
    spread = replace(first, spread=stdev(distances))
    return replace(result, measurements=[spread if m is first else m for m in result.measurements])


def _only_unguided(extractor: Extractor) -> Extractor:
    known = UNGUIDED_METRICS if extractor.metrics is None else UNGUIDED_METRICS & extractor.metrics
    return replace(extractor, metrics=frozenset(known))


def _as_unguided(measurement: Measurement) -> Measurement:
    """A value of unguided samples under a name of its own, and a protocol that says how they were drawn."""
    protocol, drawn = measurement.protocol, "sampled with guidance 0, top-k 0, top-p 0 and temperature 1"
    name, text = protocol.name + UNGUIDED_SUFFIX, f"{protocol.description}, {drawn}"
    return replace(measurement, protocol=replace(protocol, name=name, description=text))


def _beside(result: Result, unguided: Sequence[Measurement]) -> Result:
    """A result with the values of unguided samples, each after that of the others."""
    measurements = list[Measurement]()
    for measurement in result.measurements:
        counterpart = measurement.protocol.name + UNGUIDED_SUFFIX
        measurements += [measurement, *(m for m in unguided if m.protocol.name == counterpart)]
    return replace(result, measurements=measurements)


def codebook_usage(tokens: Tensor, tokenizer: Tokenizer) -> list[Usage]:
    """Usage and perplexity per branch and scale of integer tokens (N, P, L)."""
    rows = []
    scales = tokenizer.config.scales
    for branch in range(tokens.shape[1]):
        parts = tokens[:, branch].split([side * side for side in scales], dim=1)
        for position, part in enumerate(parts):
            used, perplexity = usage_and_perplexity(part, tokenizer.config.codebook_size)
            rows.append(Usage(branch, scales[position], position, part.numel(), used, perplexity))
    return rows


class _Sampler:
    """Draws the samples of this process batch by batch; keeps the first ones to show, and the sampling time."""

    def __init__(self, generator: Generator, labels: Tensor, sampling: SamplingConfig, seed: int) -> None:
        self.generator, self.labels, self.sampling, self.seed = generator, labels, sampling, seed
        self.shown: list[Tensor] = []
        self.timed: list[tuple[int, float]] = []  # images and seconds of every batch

    def batches(self, part: range) -> Iterator[Tensor]:
        """uint8 (B, 3, H, W)."""
        settings, step = arguments_of(self.sampling), self.sampling.batch_size
        for start in range(part.start, part.stop, step):
            indices = list(range(start, min(start + step, part.stop)))
            clock = time.monotonic()
            out = self.generator.sample(self.labels[indices], **settings, seed=self.seed, indices=indices)
            images = samples_to_uint8(out.images).cpu()  # the copy waits for the device, so all its work is timed
            self.timed.append((len(indices), time.monotonic() - clock))
            if start < SAMPLES_SHOWN:
                self.shown.append(images[: SAMPLES_SHOWN - start])
            yield images

    def over_processes(self) -> float:
        """Samples per second of all processes together."""
        # The first batch includes the warm-up, the second the capture of a CUDA graph
        images, seconds = map(sum, zip(*(self.timed[2:] or self.timed[-1:] or [(0, 1.0)]), strict=True))
        rate = images / seconds
        return float(sum_over_processes(torch.tensor(rate, dtype=torch.float64, device=default_device())))


def labels_of(classes: Tensor, splits: DataSplits, generator: Generator) -> Tensor:
    """The labels of a data set's classes in the generator: ImageNet's if it was trained on all of ImageNet."""
    if splits.imagenet_labels is None or generator.config.num_classes != IMAGENET_CLASSES:
        return classes
    return torch.tensor(splits.imagenet_labels)[classes]


def _gathered(parts: list[Tensor]) -> Tensor:
    """The tensors of all processes concatenated in rank order."""
    return torch.cat([part for each in gather_objects(parts) for part in each])
