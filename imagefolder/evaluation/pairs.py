"""Metrics of pairs: an image and its original. A new one is one function, and one entry in `PAIR_METRICS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import numpy as np
import torch
from torch import Tensor

from imagefolder.data.images import to_float
from imagefolder.distributed import sum_over_processes
from imagefolder.evaluation.extractor import default_device
from imagefolder.evaluation.results import Measurement, Protocol, Result
from imagefolder.weights import FILES, VGG16_FILE, WeightsAbsent

PairFunction = Callable[[Tensor, Tensor], float]
"""Mean over the pairs of two batches, images and originals, uint8 (B, 3, H, W) both."""


def psnr(images: Tensor, originals: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, uint8 (N, 3, H, W) both."""
    error = (images.double() - originals.double()).square().mean((1, 2, 3)).clamp(min=1e-10)
    return float((10 * torch.log10(255**2 / error)).mean())


def ssim(images: Tensor, originals: Tensor) -> float:
    """Mean over images of the structural similarity (7x7 windows, channels averaged), uint8 (N, 3, H, W) both."""
    from skimage.metrics import structural_similarity

    pairs = zip(images.numpy(), originals.numpy(), strict=True)
    return float(np.mean([structural_similarity(a, b, channel_axis=0, data_range=255) for a, b in pairs]))


def lpips() -> PairFunction:
    """LPIPS with VGG16; `WeightsAbsent` without its weights."""
    from imagefolder.tokenizer.losses import Perceptual

    device = default_device()
    network = Perceptual().to(device)
    return lambda images, originals: float(network(to_float(images.to(device)), to_float(originals.to(device))))


@dataclass(frozen=True)
class PairMetric:
    """A metric of pairs of images.

    Attributes:
        text: one sentence, in which `{pairs}` are the pairs.
        open: returns the function; raises `WeightsAbsent` if it needs weights that this machine lacks.
        evaluator: program and version that computes it.
        higher: whether a higher value is better.
        network: name of the network it needs; its weights are the file `weights` of `imagefolder.weights.FILES`.
    """

    name: str
    text: str
    open: Callable[[], PairFunction]
    evaluator: str
    higher: bool
    version: int = 1
    network: str | None = None
    weights: str | None = None


_LPIPS = f"lpips {metadata.version('lpips')}"
PAIR_METRICS = [
    PairMetric("PSNR", "dB, mean over {pairs}", lambda: psnr, "imagefolder", higher=True),
    PairMetric("SSIM", "mean over {pairs}; 7x7 windows", lambda: ssim, "scikit-image", higher=True),
    PairMetric("LPIPS", "mean over {pairs}", lpips, _LPIPS, higher=False, network="vgg16", weights=VGG16_FILE),
]
"""In the order in which they are recorded."""


class Pairs:
    """All pair metrics that this machine has the weights for, averaged over the pairs of all processes."""

    def __init__(self) -> None:
        self.functions: list[tuple[PairMetric, PairFunction]] = []
        self.notes: list[str] = []
        for metric in PAIR_METRICS:
            try:
                self.functions.append((metric, metric.open()))
            except WeightsAbsent as error:
                self.notes.append(f"{metric.name} not measured: {error}")
        self.sums = torch.zeros(len(self.functions) + 1, dtype=torch.float64)  # the last one counts the pairs

    @torch.no_grad()
    def add(self, images: Tensor, originals: Tensor) -> None:
        """Add pairs, uint8 (B, 3, H, W) both."""
        values = [function(images, originals) for _, function in self.functions]
        self.sums += len(images) * torch.tensor([*values, 1.0], dtype=torch.float64)

    def result(self, pairs: str, reference: str) -> Result:
        """The means as measurements, in all processes, and notes on the metrics not measured.

        Args:
            pairs: what they are, in words.
            reference: name of the originals.
        """
        *sums, number = sum_over_processes(self.sums.to(default_device())).tolist()
        result, n = Result([], notes=self.notes), int(number)
        for (metric, _), total in zip(self.functions, sums, strict=True):
            text, sha256 = metric.text.format(pairs=pairs), metric.weights and FILES[metric.weights].sha256
            protocol = Protocol(
                metric.name, metric.version, text, reference, metric.evaluator, metric.network, sha256, metric.higher
            )
            result.measurements.append(Measurement(protocol, total / n, n, n))
        return result
