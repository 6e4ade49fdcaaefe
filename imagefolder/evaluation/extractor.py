"""The interface of feature extractors: a frozen network, what can be measured with it, and how the metrics are named.

A new feature space is one module that makes an `Extractor`, and one line in `imagefolder.evaluation.spaces`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from imagefolder.errors import InputError
from imagefolder.numerics import without_tf32

TORCH_FIDELITY = f"torch-fidelity {metadata.version('torch-fidelity')}"


class Widths(NamedTuple):
    """Widths of an extractor's outputs; 0: it does not have this output."""

    pooled: int
    logits: int = 0
    spatial: int = 0


class Activations(NamedTuple):
    """Outputs for B images, float32; of width 0 for outputs that the extractor does not have.

    `pooled` (B, D) for Frechet distances, KID, precision and recall; `logits` (B, C) for the Inception score and the
    class accuracy; `spatial` (B, S) for sFID.
    """

    pooled: Tensor
    logits: Tensor
    spatial: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Extractor:
    """A frozen network that metrics are computed with, called with uint8 (B, 3, H, W).

    Attributes:
        name: of the network, e.g. "proxy-cnn".
        network: returns pooled features, then logits and spatial features if it has them.
        prefix: of the names of metrics, e.g. "proxy-"; "" for the published ones.
        path, sha256: of the weight file, if there is one.
        evaluator: program and version that a value is attributed to.
        metrics: the only metrics to measure, by name without prefix; None: all that the outputs allow.
        reference: what samples are compared with: the training images of the data, or ADM's reference of ImageNet.
            Stored statistics such as ADM's fit only "published" extractors.
        classes: whose classes the logits are for, in words.
        of_data: whether they are the classes of the data, so that the labels of samples can be checked.
        floors: values of metrics between real images, by full name.
        kept: file with statistics of the training images (`imagefolder.evaluation.reference.write_reference`), for
            samples of the data that they were measured on; None: they are measured every time.
    """

    name: str
    network: Callable[[Tensor], tuple[Tensor, ...]]
    widths: Widths
    device: torch.device
    prefix: str
    path: Path | None = None
    sha256: str | None = None
    evaluator: str = TORCH_FIDELITY
    metrics: frozenset[str] | None = None
    reference: Literal["training", "published"] = "training"
    classes: str = "the extractor's"
    of_data: bool = False
    floors: dict[str, float] = field(default_factory=dict)
    kept: Path | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Activations:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"images to measure must be uint8 (B, 3, H, W), not {images.dtype} {tuple(images.shape)}")
        with without_tf32(self.device):  # the same features on every GPU
            outputs = self.network(images.to(self.device))
        missing = (outputs[0].new_zeros(len(images), 0),) * (3 - len(outputs))
        return Activations(*outputs, *missing)

    def measures(self, metric: str) -> bool:
        """Whether a metric, named without prefix, is to be measured with this extractor."""
        return self.metrics is None or metric in self.metrics


def resized(images: Tensor, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images for a network of ImageNet: resized to a square with antialiasing (bicubic, not rounded) and normalised.

    Args:
        images: uint8 (B, 3, H, W).
        mean: of each colour in [0, 1]; `std` likewise.

    Returns:
        float32 (B, 3, side, side).
    """
    pixels = F.interpolate(images.float(), size=(side, side), mode="bicubic", antialias=True).clamp(0, 255) / 255
    shift, scale = (pixels.new_tensor(values)[:, None, None] for values in (mean, std))
    return (pixels - shift) / scale


def default_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
