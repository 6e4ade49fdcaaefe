"""Metrics: torch-fidelity's formulas on statistics of image sets, and on pairs of images; all images 8-bit."""

from __future__ import annotations

import numpy as np
import torch
import torch_fidelity
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from imagefolder.data.images import to_float
from imagefolder.distributed import sum_over_processes
from imagefolder.evaluation.extractor import Extractor, default_device
from imagefolder.evaluation.statistics import IS_SPLITS, MeanCovariance
from imagefolder.files import find_weights
from imagefolder.tokenizer.losses import Perceptual
from imagefolder.weights import VGG16_FILE

NEIGHBOURS = 3
KID_SUBSET = 1000
DISTANCES = 5 * 10**7  # in a matrix of precision and recall: 200 MB, of which a few are held at a time


def frechet(first: MeanCovariance, second: MeanCovariance) -> float:
    """Frechet distance (FID, sFID)."""
    return fid_statistics_to_metric(first, second, verbose=False)["frechet_inception_distance"]


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Improved precision and recall (k = 3) of features (N, D) and (M, D), in bounded memory."""
    rows = max(1, min(1000, DISTANCES // max(len(generated), len(real))))
    values = prc_features_to_metric(
        generated, real, prc_neighborhood=NEIGHBOURS, prc_batch_size=rows, save_cpu_ram=True, verbose=False
    )
    return values["precision"], values["recall"]


def kernel_distance(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """KID of features (N, D) and (M, D), unbiased: mean and standard deviation over 100 subsets of at most 1000."""
    subset = min(KID_SUBSET, len(generated), len(real))
    values = kid_features_to_metric(generated, real, kid_subset_size=subset, verbose=False)
    return values["kernel_inception_distance_mean"], values["kernel_inception_distance_std"]


class _Tensors(Dataset):
    """torch-fidelity takes data sets of uint8 tensors."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def fidelity(
    generated: Tensor | str, real: Tensor | str, extractor: Extractor, metrics: tuple[str, ...]
) -> dict[str, float]:
    """torch-fidelity's own program on whole sets of images: what the streamed values can be checked against.

    Args:
        generated: uint8 (N, 3, H, W), or a folder of images.
        real: the same.
        extractor: one of torch-fidelity's kind.
        metrics: of "fid", "isc", "prc", "kid".

    Returns:
        torch-fidelity's dictionary (frechet_inception_distance, inception_score_mean, precision, ...).
    """
    return torch_fidelity.calculate_metrics(
        input1=_Tensors(generated) if isinstance(generated, Tensor) else generated,
        input2=_Tensors(real) if isinstance(real, Tensor) else real,
        samples_find_deep=True,
        cuda=torch.cuda.is_available(),
        feature_extractor=extractor.name,
        feature_extractor_weights_path=str(extractor.path),
        cache=False,  # its cache knows extractors by name, not by weights
        verbose=False,
        save_cpu_ram=True,
        isc_splits=IS_SPLITS,
        **{metric: True for metric in metrics},
    )


class Pairs:
    """PSNR, SSIM and, where VGG16 is at hand, LPIPS of pairs of images, averaged over the pairs of all processes."""

    def __init__(self) -> None:
        self.lpips = None if find_weights(VGG16_FILE) is None else Perceptual().to(default_device())
        self.sums = dict.fromkeys(("PSNR", "SSIM") if self.lpips is None else ("PSNR", "SSIM", "LPIPS"), 0.0)
        self.count = 0

    @torch.no_grad()
    def add(self, images: Tensor, originals: Tensor) -> None:
        """Further pairs, uint8 (B, 3, H, W) both."""
        self.sums["PSNR"] += psnr(images, originals) * len(images)
        self.sums["SSIM"] += ssim(images, originals) * len(images)
        if self.lpips is not None:
            device = default_device()
            value = self.lpips(to_float(images.to(device)), to_float(originals.to(device)))
            self.sums["LPIPS"] += float(value) * len(images)
        self.count += len(images)

    def over_processes(self) -> dict[str, float]:
        """The means, in all processes."""
        numbers = torch.tensor([*self.sums.values(), self.count], dtype=torch.float64, device=default_device())
        *sums, count = sum_over_processes(numbers).tolist()
        return {name: value / count for name, value in zip(self.sums, sums, strict=True)}


def psnr(images: Tensor, originals: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, uint8 (N, 3, H, W) both."""
    error = (images.double() - originals.double()).square().mean((1, 2, 3)).clamp(min=1e-10)
    return float((10 * torch.log10(255**2 / error)).mean())


def ssim(images: Tensor, originals: Tensor) -> float:
    """Mean over images of the structural similarity (7x7 windows, channels averaged), uint8 (N, 3, H, W) both."""
    pairs = zip(images.numpy(), originals.numpy(), strict=True)
    return float(np.mean([structural_similarity(a, b, channel_axis=0, data_range=255) for a, b in pairs]))
