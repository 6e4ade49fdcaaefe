"""Protocols: which images are compared with which, in which order and format. A value belongs to its protocol."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch_fidelity
from torch import Tensor

from imagefolder.config import SamplingConfig
from imagefolder.data.images import DataSplits, Images, samples_to_uint8, to_float, to_uint8
from imagefolder.data.order import ordered_batches
from imagefolder.evaluation.extractor import NAME
from imagefolder.evaluation.metrics import classified_as, fidelity, psnr, ssim
from imagefolder.generator.model import Generator
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.quantizers import usage_and_perplexity
from imagefolder.training.progress import Phase

TORCH_FIDELITY = f"torch-fidelity {torch_fidelity.__version__}"


@dataclass(frozen=True)
class Extractor:
    """The proxy extractor of a data set: weight file, hash, and the metrics between its real test and train images."""

    path: Path
    sha256: str
    floors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """See `leaderboard.record.Protocol`, which has the same fields."""

    name: str
    version: int
    description: str
    reference: str
    evaluator: str
    extractor: str | None
    extractor_sha256: str | None
    higher_is_better: bool


@dataclass(frozen=True)
class Measurement:
    """One value under one protocol, with the number of images on both sides."""

    protocol: Protocol
    value: float
    n_real: int
    n_generated: int
    spread: float | None = None
    floor: float | None = None


@dataclass(frozen=True)
class Usage:
    """Codebook statistics of one branch at one scale over the test images."""

    branch: int
    scale: int
    position: int
    tokens: int
    used: float
    perplexity: float


@dataclass
class Result:
    """What an evaluation measured, the images to show, and for sampling its speed."""

    measurements: list[Measurement]
    picture: Tensor
    usage: list[Usage] = field(default_factory=list)
    samples_per_second: float = 0.0


def real_floors(splits: DataSplits, extractor: Path) -> dict[str, float]:
    """The generation metrics of the real test images against the real training images: what no model should beat."""
    test, train = all_images(splits.test), all_images(splits.train)
    values = fidelity(test, train, extractor, ("fid", "isc", "prc"))
    return {
        "proxy-gFID": values["frechet_inception_distance"],
        "proxy-IS": values["inception_score_mean"],
        "proxy-precision": values["precision"],
        "proxy-recall": values["recall"],
        "class accuracy": classified_as(test, splits.test.labels, extractor),
    }


def evaluate_reconstruction(tokenizer: Tokenizer, splits: DataSplits, extractor: Extractor, title: str) -> Result:
    """Test originals against their reconstructions, both 8-bit and cropped alike."""
    parts, tokens, n = [], [], len(splits.test)
    with Phase(title, n) as phase:
        for batch, _ in ordered_batches(splits.test, 50):
            tokens.append(tokenizer.encode(to_float(batch)))
            parts.append(to_uint8(tokenizer.decode(tokens[-1])).cpu())
            phase.update(sum(map(len, parts)))
    images, originals = torch.cat(parts), all_images(splits.test)
    reference = f"{splits.name}/test"
    fid = fidelity(images, originals, extractor.path, ("fid",))["frechet_inception_distance"]
    what = "test images against their reconstructions, both 8-bit, same crop"
    measured = [
        (proxy_protocol("proxy-rFID", f"Frechet distance of {what}", reference, extractor, False), fid),
        (_pixel("PSNR", f"dB, mean over {what}", reference, "imagefolder"), psnr(images, originals)),
        (_pixel("SSIM", f"mean over {what}; 7x7 windows", reference, "scikit-image"), ssim(images, originals)),
    ]
    return Result(
        measurements=[Measurement(protocol, value, n, n) for protocol, value in measured],
        picture=torch.stack([originals[:40], images[:40]], dim=1).flatten(0, 1),
        usage=codebook_usage(torch.cat(tokens).cpu(), tokenizer),
    )


def evaluate_generation(
    generator: Generator,
    splits: DataSplits,
    sampling: SamplingConfig,
    samples: int,
    seed: int,
    extractor: Extractor,
    title: str,
) -> Result:
    """Class-balanced samples against all training images."""
    classes = len(splits.classes)
    labels = torch.arange(samples) % classes
    parts, seconds, timed = [], 0.0, 0
    with Phase(title, samples) as phase:
        for start in range(0, samples, sampling.batch_size):
            indices = list(range(start, min(start + sampling.batch_size, samples)))
            clock = time.monotonic()
            out = generator.sample(
                labels[indices], sampling.guidance, sampling.top_k, sampling.top_p, seed=seed, indices=indices
            )
            parts.append(samples_to_uint8(out.images).cpu())  # the copy waits for the device, so the time is whole
            if start > 0 or samples <= sampling.batch_size:  # the first batch also pays for warming up
                seconds += time.monotonic() - clock
                timed += len(indices)
            phase.update(indices[-1] + 1)
    images, train = torch.cat(parts), all_images(splits.train)
    values = fidelity(images, train, extractor.path, ("fid", "isc", "prc"))
    reference, n_real = f"{splits.name}/train", len(splits.train)
    what = "class-balanced samples against all training images, both 8-bit"

    def measure(name: str, text: str, key: str | float, higher: bool, spread: float | None = None) -> Measurement:
        value = values[key] if isinstance(key, str) else key
        protocol = proxy_protocol(name, text, reference, extractor, higher)
        return Measurement(protocol, value, n_real, samples, spread, extractor.floors.get(name))

    right = classified_as(images, labels, extractor.path)
    return Result(
        measurements=[
            measure("proxy-gFID", f"Frechet distance of {what}", "frechet_inception_distance", False),
            measure(
                "proxy-IS",
                "Inception score formula on the extractor's classes, 10 splits of the shuffled samples",
                "inception_score_mean",
                True,
                values["inception_score_std"],
            ),
            measure("proxy-precision", f"k = 3, {what}", "precision", True),
            measure("proxy-recall", f"k = 3, {what}", "recall", True),
            measure("class accuracy", "share of samples the extractor assigns to their class", right, True),
        ],
        picture=images[:100],
        samples_per_second=timed / seconds,
    )


def codebook_usage(tokens: Tensor, tokenizer: Tokenizer) -> list[Usage]:
    """Usage and perplexity per branch and scale of int64 tokens (N, P, L)."""
    rows = []
    scales = tokenizer.config.scales
    for branch in range(tokens.shape[1]):
        parts = tokens[:, branch].split([side * side for side in scales], dim=1)
        for position, part in enumerate(parts):
            used, perplexity = usage_and_perplexity(part, tokenizer.config.codebook_size)
            rows.append(Usage(branch, scales[position], position, part.numel(), used, perplexity))
    return rows


def all_images(images: Images) -> Tensor:
    """A whole split in order, without augmentation: uint8 (N, 3, H, W)."""
    return torch.cat([batch for batch, _ in ordered_batches(images.plain(), 100)])


def proxy_protocol(name: str, description: str, reference: str, extractor: Extractor, higher: bool) -> Protocol:
    """Protocol of a metric on the proxy extractor's features."""
    return Protocol(name, 1, description, reference, TORCH_FIDELITY, NAME, extractor.sha256, higher)


def _pixel(name: str, description: str, reference: str, evaluator: str) -> Protocol:
    return Protocol(name, 1, description, reference, evaluator, None, None, True)
