"""Metrics on 8-bit images: torch-fidelity for sets of images, scikit-image for pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch_fidelity
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.utils.data import Dataset

from imagefolder.evaluation.extractor import NAME, load_proxy

IS_SPLITS = 10


class _Tensors(Dataset):
    """torch-fidelity takes data sets of uint8 tensors."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def fidelity(generated: Tensor, real: Tensor, extractor: Path, metrics: tuple[str, ...]) -> dict[str, float]:
    """torch-fidelity's numbers with the proxy extractor.

    Args:
        generated: uint8 (N, 3, H, W).
        real: uint8 (M, 3, H, W).
        extractor: its weight file.
        metrics: of "fid", "isc", "prc".

    Returns:
        torch-fidelity's dictionary (frechet_inception_distance, inception_score_mean, precision, ...).
    """
    return torch_fidelity.calculate_metrics(
        input1=_Tensors(generated),
        input2=_Tensors(real),
        cuda=torch.cuda.is_available(),
        feature_extractor=NAME,
        feature_extractor_weights_path=str(extractor),
        cache=False,  # its cache knows extractors by name, not by weights
        verbose=False,
        save_cpu_ram=True,
        isc_splits=IS_SPLITS,
        **{metric: True for metric in metrics},
    )


def classified_as(images: Tensor, labels: Tensor, extractor: Path) -> float:
    """Share of uint8 images (N, 3, H, W) that the extractor's classifier assigns to their label, 0..1."""
    net = load_proxy(extractor)
    with torch.no_grad():
        predicted = torch.cat([net(batch.float() / 127.5 - 1)[1].argmax(-1) for batch in images.split(500)])
    return float((predicted == labels).float().mean())


def psnr(images: Tensor, originals: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, uint8 (N, 3, H, W) both."""
    error = (images.double() - originals.double()).square().mean((1, 2, 3)).clamp(min=1e-10)
    return float((10 * torch.log10(255**2 / error)).mean())


def ssim(images: Tensor, originals: Tensor) -> float:
    """Mean over images of the structural similarity (7x7 windows, channels averaged), uint8 (N, 3, H, W) both."""
    pairs = zip(images.numpy(), originals.numpy(), strict=True)
    return float(np.mean([structural_similarity(a, b, channel_axis=0, data_range=255) for a, b in pairs]))
