"""Protocols: which images are compared with which, in which order and format. A value belongs to its protocol.

All functions may run in several processes: each does its part of the images, and all get the results.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from imagefolder.config import SamplingConfig
from imagefolder.data.images import DataSplits, Images, samples_to_uint8, to_float, to_uint8
from imagefolder.data.order import ordered_batches
from imagefolder.distributed import gather_objects, my_part, sum_over_processes
from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import Extractor, clean_extractor, default_device, proxy_extractor
from imagefolder.evaluation.files import measure_files, open_images
from imagefolder.evaluation.generation import FEW, generation_metrics
from imagefolder.evaluation.metrics import Pairs, frechet, kernel_distance
from imagefolder.evaluation.reference import Reference, published_reference, read_reference, reference_of
from imagefolder.evaluation.results import Measurement, Protocol, Result, Usage, feature_protocol
from imagefolder.evaluation.statistics import Statistics, measure
from imagefolder.generator.model import Generator
from imagefolder.progress import Phase
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.quantizers import usage_and_perplexity
from imagefolder.weights import FILES, VGG16_FILE, WeightsAbsent

BATCH = 50
RECONSTRUCTIONS_SHOWN, SAMPLES_SHOWN = 40, 100
IMAGENET_CLASSES = 1000


def real_floors(splits: DataSplits, path: Path) -> dict[str, float]:
    """Generation metrics of the real test images against the real training images: what no model should beat.

    `path`: weight file of the data set's proxy extractor.
    """
    extractor = proxy_extractor(path)
    statistics = split_statistics(splits.test, extractor, "real test images: features")
    reference = _training_reference(splits, extractor)
    result = generation_metrics(statistics, reference, "gFID", "test images", splits.test.labels)
    return {m.protocol.name: m.value for m in result.measurements}


def reconstruction_distance(tokenizer: Tokenizer, splits: DataSplits, extractor: Extractor, title: str) -> float:
    """rFID alone, as in `evaluate_reconstruction`: what the best tokenizer is chosen by while it trains."""
    test = splits.test.plain()
    n, part = len(test), my_part(len(test))
    generated, real = (Statistics(extractor, n, part.start) for _ in range(2))
    with Phase(title, len(part)) as phase:
        for originals, _ in ordered_batches(test, BATCH, part):
            generated.add(to_uint8(tokenizer.reconstruct(to_float(originals))).cpu())
            real.add(originals)
            phase.update(real.pooled.count)
    return frechet(*(side.over_processes().pooled.statistics() for side in (generated, real)))


def evaluate_reconstruction(tokenizer: Tokenizer, splits: DataSplits, extractor: Extractor, title: str) -> Result:
    """Test originals against their reconstructions, both 8-bit and cropped alike.

    The reference of rFID is these originals, never the training images. With the published Inception, clean-fid's
    value is measured beside it if its weights are there; LPIPS if VGG16's are.
    """
    test, (extractors, notes) = splits.test.plain(), _with_clean(extractor)
    n, part = len(test), my_part(len(test))
    sides = [[Statistics(e, n, part.start, keep=n < FEW and e is extractor) for _ in range(2)] for e in extractors]
    pairs, tokens, shown, done = Pairs(), [], [], 0
    with Phase(title, len(part)) as phase:
        for originals, _ in ordered_batches(test, BATCH, part):
            codes = tokenizer.encode(to_float(originals))
            images = to_uint8(tokenizer.decode(codes)).cpu()
            for generated, real in sides:
                generated.add(images)
                real.add(originals)
            pairs.add(images, originals)
            tokens.append(codes.int().cpu())
            if (missing := RECONSTRUCTIONS_SHOWN - part.start - done) > 0:
                shown.append(torch.stack([originals[:missing], images[:missing]], dim=1).flatten(0, 1))
            done += len(images)
            phase.update(done)
    reference, what = f"{splits.name}/test", "test images against their reconstructions, both 8-bit, same crop"
    measured = []
    for e, (generated, real) in zip(extractors, sides, strict=True):
        protocol = feature_protocol(f"{e.prefix}rFID", f"Frechet distance of {what}", reference, e, False)
        distance = frechet(*(side.over_processes().pooled.statistics() for side in (generated, real)))
        measured.append(Measurement(protocol, distance, n, n))
        if generated.keep:
            protocol = feature_protocol(f"{e.prefix}rKID", f"kernel distance of {what}", reference, e, False)
            mean, spread = kernel_distance(generated.features, real.features)
            measured.append(Measurement(protocol, mean, n, n, spread))
    values = pairs.over_processes()
    measured += [Measurement(_pixel_protocol(name, what, reference), value, n, n) for name, value in values.items()]
    if "LPIPS" not in values:
        notes.append(f"LPIPS not measured: {WeightsAbsent(VGG16_FILE)}")
    return Result(measured, _gathered(shown), codebook_usage(_gathered(tokens), tokenizer), notes=notes)


def evaluate_generation(
    generator: Generator,
    splits: DataSplits,
    sampling: SamplingConfig,
    samples: int,
    seed: int,
    extractor: Extractor,
    title: str,
) -> Result:
    """Class-balanced samples, classes in turns, so that any number of them is as balanced as it can be.

    They are compared with all training images through a proxy extractor; through the published Inception with ADM's
    reference of ImageNet.
    """
    reference = _training_reference(splits, extractor) if extractor.is_proxy else _imagenet_reference(splits, extractor)
    side = generator.tokenizer.config.image_size
    reference.check_size((side, side), "samples")
    classes = torch.arange(samples) % len(splits.classes)
    sampler = _Sampler(generator, _labels(classes, splits, generator), sampling, seed)
    statistics = measure(sampler.batches(my_part(samples)), extractor, samples, title, keep=True)
    result = generation_metrics(statistics, reference, "gFID", "class-balanced samples", classes)
    result.picture, result.samples_per_second = _gathered(sampler.shown), sampler.over_processes()
    return result


def evaluate_files(samples: Path, reference: Path, extractor: Extractor) -> tuple[Result, str]:
    """Samples of any tool, in files, against a reference in files; also the sha256 over the samples' pixels.

    Args:
        samples: a folder of PNGs, or an npz with `arr_0` uint8 (N, H, W, 3).
        reference: the same, or an npz of statistics such as ADM's.

    Raises:
        InputError: files that are no lossless 8-bit images of one size, or of another size than the reference.
    """
    images = open_images(samples)
    real = read_reference(reference, extractor)
    real.check_size(images.size, f"{samples}: samples")
    statistics, sha256 = measure_files(images, extractor, f"{samples.name}: samples", keep=True)
    return generation_metrics(statistics, real, "gFID" if real.published else "FID", "samples in files"), sha256


def split_statistics(images: Images, extractor: Extractor, title: str) -> Statistics:
    """Statistics of a split without augmentation, features kept."""
    plain = images.plain()
    batches = (batch for batch, _ in ordered_batches(plain, BATCH, my_part(len(plain))))
    return measure(batches, extractor, len(plain), title, keep=True)


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


def _with_clean(extractor: Extractor) -> tuple[list[Extractor], list[str]]:
    """The extractors of reconstructions, clean-fid's beside the published one, and a note where that is absent."""
    if extractor.is_proxy:
        return [extractor], []
    try:
        return [extractor, clean_extractor()], []
    except WeightsAbsent as error:
        return [extractor], [f"clean-rFID not measured: {error}"]


class _Sampler:
    """Samples of this process, batch by batch; keeps the first ones to show, and the time sampling took."""

    def __init__(self, generator: Generator, labels: Tensor, sampling: SamplingConfig, seed: int) -> None:
        self.generator, self.labels, self.sampling, self.seed = generator, labels, sampling, seed
        self.shown: list[Tensor] = []
        self.seconds, self.timed = 0.0, 0

    def batches(self, part: range) -> Iterator[Tensor]:
        """uint8 (B, 3, H, W)."""
        settings, step = self.sampling, self.sampling.batch_size
        for start in range(part.start, part.stop, step):
            indices = list(range(start, min(start + step, part.stop)))
            clock = time.monotonic()
            out = self.generator.sample(
                self.labels[indices], settings.guidance, settings.top_k, settings.top_p, self.seed, indices
            )
            images = samples_to_uint8(out.images).cpu()  # the copy waits for the device, so the time is whole
            if start > part.start or len(part) <= step:  # the first batch also pays for warming up
                self.seconds += time.monotonic() - clock
                self.timed += len(indices)
            if start < SAMPLES_SHOWN:
                self.shown.append(images[: SAMPLES_SHOWN - start])
            yield images

    def over_processes(self) -> float:
        """Samples per second of all processes together."""
        rate = self.timed / self.seconds if self.timed else 0.0
        return float(sum_over_processes(torch.tensor(rate, dtype=torch.float64, device=default_device())))


def _labels(classes: Tensor, splits: DataSplits, generator: Generator) -> Tensor:
    """The generator's numbers of a data set's classes: those of ImageNet for a generator of all of it."""
    if splits.imagenet_labels is None or generator.config.num_classes != IMAGENET_CLASSES:
        return classes
    return torch.tensor(splits.imagenet_labels)[classes]


def _training_reference(splits: DataSplits, extractor: Extractor) -> Reference:
    statistics = split_statistics(splits.train, extractor, "real training images: features")
    size = (splits.image_size, splits.image_size)
    return reference_of(f"{splits.name}/train", "all training images", statistics, size)


def _imagenet_reference(splits: DataSplits, extractor: Extractor) -> Reference:
    if len(splits.classes) != IMAGENET_CLASSES:
        raise InputError(
            f"{splits.name} has {len(splits.classes)} classes: its samples cannot be compared with ImageNet's "
            "reference; use a proxy extractor"
        )
    return published_reference(extractor)


def _pixel_protocol(name: str, what: str, reference: str) -> Protocol:
    if name == "PSNR":
        return Protocol(name, 1, f"dB, mean over {what}", reference, "imagefolder", None, None, True)
    if name == "SSIM":
        return Protocol(name, 1, f"mean over {what}; 7x7 windows", reference, "scikit-image", None, None, True)
    evaluator = f"lpips {metadata.version('lpips')}"
    return Protocol(name, 1, f"mean over {what}", reference, evaluator, "vgg16", FILES[VGG16_FILE].sha256, False)


def _gathered(parts: list[Tensor]) -> Tensor:
    """The tensors of all processes, in their order, as one."""
    return torch.cat([part for each in gather_objects(parts) for part in each])
