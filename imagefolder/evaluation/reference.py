"""What samples are compared with: images, or stored statistics such as ADM's reference batch of ImageNet."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors.torch import save_file
from torch import Tensor

from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.files import NpzImages, measure_files, npy_header, open_images
from imagefolder.evaluation.statistics import MeanCovariance, Statistics
from imagefolder.files import checked_sha256, file_sha256, read_json, reading, write_atomically, write_json
from imagefolder.tensors import read_tensors
from imagefolder.weights import ADM_REFERENCE, ADM_STATISTICS, find_weights, require, verify

IMAGENET_CLASSES, IMAGENET_IMAGES = 1000, 1_281_167
MOST_STATISTICS = 2**25  # values of one stored array; Inception's covariance has 2**22


@dataclass(frozen=True)
class Reference:
    """The real side of a comparison, as one extractor sees it.

    Attributes:
        what: the real images, in words.
        number: how many they are; 0: not known.
        pooled: mean and covariance of their pooled features; `spatial` likewise.
        features: float32 (M, D), for precision, recall and KID; None for stored statistics.
        size: height and width of the images, if known.
        held_out: float32 (T, D), features of images of the same kind that are not among the real ones (test images), if
            there are any.
        published: whether published numbers of samples are measured against it.
    """

    name: str
    what: str
    number: int
    pooled: MeanCovariance
    spatial: MeanCovariance | None
    features: Tensor | None
    size: tuple[int, int] | None
    published: bool = False
    held_out: Tensor | None = None

    def check_size(self, size: tuple[int, int], what: str) -> None:
        """`InputError` for images of another size, which were cropped differently."""
        if self.size is not None and self.size != size:
            raise InputError(
                f"{what} have {size[1]} x {size[0]} pixels, the reference {self.name} {self.size[1]} x {self.size[0]}; "
                "crop and resize both the same way first"
            )


def reference_of(name: str, what: str, statistics: Statistics, size: tuple[int, int] | None = None) -> Reference:
    """A reference of images measured here."""
    spatial = statistics.spatial.statistics() if statistics.extractor.widths.spatial else None
    features = statistics.features if statistics.keep else None
    return Reference(name, what, statistics.number, statistics.pooled.statistics(), spatial, features, size)


def write_reference(path: Path, reference: Reference, about: dict[str, Any]) -> None:
    """Keep a reference of images in a file of tensors, without spatial features.

    Args:
        about: JSON values, stored beside it with its sha256.
    """
    assert reference.features is not None
    tensors = {name: torch.from_numpy(value) for name, value in reference.pooled.items()}
    tensors["features"] = reference.features.contiguous()
    write_atomically(path, lambda temporary: save_file(tensors, temporary))
    stored = {"name": reference.name, "what": reference.what, "number": reference.number, "size": reference.size}
    write_json(path.with_suffix(".json"), {**stored, **about, "sha256": file_sha256(path)})


def read_reference(path: Path) -> tuple[Reference, dict[str, Any]]:
    """What `write_reference` kept, and the document beside it.

    Raises:
        InputError: one of the files is missing or damaged, or they do not belong together.
    """
    about = read_json(path.with_suffix(".json"))
    with reading(path.with_suffix(".json"), "what is known about a reference"):
        name, what, number, size = (about[key] for key in ("name", "what", "number", "size"))
        sha256 = about["sha256"]
    tensors = read_tensors(path, sha256)
    with reading(path, "statistics of a reference"):
        pooled = {key: tensors[key].numpy() for key in ("mu", "sigma")}
        return Reference(name, what, number, pooled, None, tensors["features"], tuple(size)), about


def adm_file() -> str:
    """The file of ADM's evaluation suite to use: its reference batch, or mean and covariance if only they are here."""
    return ADM_STATISTICS if find_weights(ADM_REFERENCE) is None and find_weights(ADM_STATISTICS) else ADM_REFERENCE


def published_reference(extractor: Extractor) -> Reference:
    """ImageNet at 256 pixels from ADM's evaluation suite; only mean and covariance if that is all this machine has.

    Raises:
        WeightsAbsent: neither file is on this machine.
        InputError: its content is wrong.
    """
    return _stored(require(adm_file()), extractor)


def read_references(path: Path, extractors: Sequence[Extractor]) -> list[Reference]:
    """The reference at a path, for each extractor: a folder of PNGs, an npz of images, or an npz of statistics.

    Raises:
        InputError: it is none of these, or the statistics are not of an extractor's features.
    """
    if path.is_file() and _has_statistics(path):
        return [_stored(path, extractor) for extractor in extractors]
    images = open_images(path)
    measured, sha256 = measure_files(images, extractors, f"{path.name}: reference", keep=True)
    name, what = f"{path.name}:{sha256[:8]}", f"the images of {path.name}"
    return [reference_of(name, what, statistics, images.size) for statistics in measured]


def _has_statistics(path: Path) -> bool:
    with reading(path, "an npz"), zipfile.ZipFile(path) as archive:
        return "mu.npy" in archive.namelist()


def _stored(path: Path, extractor: Extractor) -> Reference:
    """A reference of stored statistics, which are of the published Inception's features."""
    if extractor.reference != "published":
        raise InputError(
            f"{path} holds statistics of Inception features; {extractor.name} needs images to compare with"
        )
    if path.name == ADM_REFERENCE:
        verify(path)
    with reading(path, "reference statistics"), zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        stored = {name: _read_array(archive, name) for name in ("mu", "sigma", "mu_s", "sigma_s") if name in names}
        with_images = "arr_0" in names
    features, size, spatial = None, None, None
    pooled = _pair(path, stored, "mu", "sigma", extractor.widths.pooled)
    if "mu_s" in stored:
        spatial = _pair(path, stored, "mu_s", "sigma_s", extractor.widths.spatial)
    if with_images:
        images = NpzImages(path)
        (statistics,), _ = measure_files(images, [extractor], f"{path.name}: reference images", keep=True)
        features, size = statistics.features, images.size
    published = path.name in (ADM_REFERENCE, ADM_STATISTICS)
    name = path.name if path.name == ADM_REFERENCE else f"{path.name}:{checked_sha256(path)[:8]}"
    what, number = (
        ("ImageNet's training images", IMAGENET_IMAGES) if published else (f"statistics stored in {path.name}", 0)
    )
    return Reference(name, what, number, pooled, spatial, features, size, published)


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """A float64 array of statistics; ValueError if it is not one. Its size is checked before it is read."""
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
