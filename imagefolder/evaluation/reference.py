"""What samples are compared with: images, or statistics stored by others, such as ADM's reference batch of ImageNet."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from torch import Tensor

from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.files import NpzImages, measure_files, npy_header, open_images
from imagefolder.evaluation.statistics import MeanCovariance, Statistics
from imagefolder.files import checked_sha256, find_weights, reading
from imagefolder.weights import ADM_REFERENCE, ADM_STATISTICS, require, verify

IMAGENET_IMAGES = 1_281_167
MOST_STATISTICS = 2**25  # values of one stored array; Inception's covariance has 2**22


@dataclass(frozen=True)
class Reference:
    """One real side.

    Of `number` images (0: not known), in words `what`, the mean and covariance are `pooled`, and `spatial` where known.
    `features` float32 (M, D), where there are images, are for precision, recall and KID. `size`: height and width of
    the images, where known. `published`: whether this is what published numbers of samples are against.
    """

    name: str
    what: str
    number: int
    pooled: MeanCovariance
    spatial: MeanCovariance | None
    features: Tensor | None
    size: tuple[int, int] | None
    published: bool = False

    def check_size(self, size: tuple[int, int], what: str) -> None:
        """`InputError` if images of another size are to be compared with it: cropping differs, so would the value."""
        if self.size not in (None, size):
            raise InputError(
                f"{what} have {size[1]} x {size[0]} pixels, the reference {self.name} {self.size[1]} x {self.size[0]}; "
                "crop and resize both alike first"
            )


def reference_of(name: str, what: str, statistics: Statistics, size: tuple[int, int]) -> Reference:
    """A reference of images measured here, their features kept."""
    spatial = statistics.spatial.statistics() if statistics.extractor.widths[2] else None
    pooled, features = statistics.pooled.statistics(), statistics.features
    return Reference(name, what, statistics.number, pooled, spatial, features, size)


def published_reference(extractor: Extractor) -> Reference:
    """ImageNet at 256 pixels as ADM's evaluation suite has it; mean and covariance alone where that is all there is.

    Raises:
        WeightsAbsent: neither file is there.
        InputError: its content is wrong.
    """
    if find_weights(ADM_REFERENCE) is None and (path := find_weights(ADM_STATISTICS)) is not None:
        return _stored(path, extractor)
    return _stored(require(ADM_REFERENCE), extractor)


def read_reference(path: Path, extractor: Extractor) -> Reference:
    """The reference a path leads to: a folder of PNGs, an npz of images, or an npz of statistics.

    Raises:
        InputError: it is none of these, or its statistics are another extractor's.
    """
    if path.is_file() and _has_statistics(path):
        return _stored(path, extractor)
    images = open_images(path)
    statistics, sha256 = measure_files(images, extractor, f"{path.name}: reference", keep=True)
    return reference_of(f"{path.name}:{sha256[:8]}", f"the images of {path.name}", statistics, images.size)


def _has_statistics(path: Path) -> bool:
    with reading(path, "an npz"), zipfile.ZipFile(path) as archive:
        return "mu.npy" in archive.namelist()


def _stored(path: Path, extractor: Extractor) -> Reference:
    """A reference with stored statistics, which rest on the published Inception."""
    if extractor.is_proxy:
        raise InputError(
            f"{path} holds statistics of Inception features; a proxy extractor needs images to compare with"
        )
    if path.name == ADM_REFERENCE:
        verify(path)
    with reading(path, "reference statistics"), zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        stored = {name: _read_array(archive, name) for name in ("mu", "sigma", "mu_s", "sigma_s") if name in names}
        with_images = "arr_0" in names
    features, size, spatial = None, None, None
    pooled = _pair(path, stored, "mu", "sigma", extractor.widths[0])
    if "mu_s" in stored:
        spatial = _pair(path, stored, "mu_s", "sigma_s", extractor.widths[2])
    if with_images:
        images = NpzImages(path)
        statistics, _ = measure_files(images, extractor, f"{path.name}: reference images", keep=True)
        features, size = statistics.features, images.size
    published = path.name in (ADM_REFERENCE, ADM_STATISTICS)
    name = path.name if path.name == ADM_REFERENCE else f"{path.name}:{checked_sha256(path)[:8]}"
    what, number = (
        ("ImageNet's training images", IMAGENET_IMAGES) if published else (f"statistics stored in {path.name}", 0)
    )
    return Reference(name, what, number, pooled, spatial, features, size, published)


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """A float64 array of statistics; its size is looked at before it is read. ValueError if it is none."""
    with archive.open(f"{name}.npy") as file:
        shape, _, dtype = npy_header(file)
    if dtype.kind not in "fiu" or min(shape, default=0) < 0 or math.prod(shape) > MOST_STATISTICS:
        raise ValueError(f"{name} is {dtype} {shape}")
    with archive.open(f"{name}.npy") as file:
        values = npy.read_array(file, allow_pickle=False).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return values


def _pair(path: Path, stored: dict[str, np.ndarray], mu: str, sigma: str, width: int) -> MeanCovariance:
    shapes = {name: stored[name].shape for name in (mu, sigma) if name in stored}
    if shapes != {mu: (width,), sigma: (width, width)}:
        raise InputError(f"{path}: holds statistics of shapes {shapes}, but the extractor has {width} features")
    return {"mu": stored[mu], "sigma": stored[sigma]}
