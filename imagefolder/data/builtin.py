"""The data sets known by name: the embedded digits, and small ones that others publish.

Images keep the publishers' splits and order. Smaller ones than 32 px get a black border, then all are resized to the
scale's image size (Pillow, bicubic with antialiasing), and grey ones repeated for red, green and blue. None is
augmented.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from imagefolder.data.digits import digits
from imagefolder.data.images import DataSplits, Key
from imagefolder.data.published import DataFile, Published, Split, read_published

CHUNK = 1024  # images that are hashed at once


def _idx(folder: str, hashes: tuple[str, str, str, str] = ("", "", "", "")) -> tuple[DataFile, ...]:
    """The four files of MNIST or of a data set in its format, with 60,000 and 10,000 images of 28 x 28."""
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    sizes = (47_040_016, 60_008, 7_840_016, 10_008)
    paths = [f"{folder}/raw/{name}-ubyte" for name in names]
    return tuple(DataFile(*each) for each in zip(paths, sizes, hashes, strict=True))


PUBLISHED = {
    "fashion": Published(
        "Fashion-MNIST",
        "Xiao et al. 2017, github.com/zalandoresearch/fashion-mnist, MIT",
        "FashionMNIST",
        _idx(
            "FashionMNIST",
            (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        ),
        padding=2,
        package=("dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")),
    ),
    "mnist": Published(
        "MNIST", "LeCun et al. 1998, yann.lecun.com/exdb/mnist, CC BY-SA 3.0", "MNIST", _idx("MNIST"), padding=2
    ),
    "kmnist": Published(
        "Kuzushiji-MNIST",
        "Clanuwat et al. 2018, github.com/rois-codh/kmnist, CC BY-SA 4.0",
        "KMNIST",
        _idx("KMNIST"),
        padding=2,
    ),
    "cifar10": Published(
        "CIFAR-10",
        "Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html, no licence stated",
        "CIFAR10",
        (DataFile("cifar-10-python.tar.gz", 170_498_071),),
    ),
    "cifar100": Published(
        "CIFAR-100",
        "Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html, no licence stated",
        "CIFAR100",
        (DataFile("cifar-100-python.tar.gz", 169_001_437),),
    ),
    "svhn": Published(
        "SVHN",
        "Netzer et al. 2011, ufldl.stanford.edu/housenumbers, for non-commercial use only",
        "SVHN",
        (DataFile("train_32x32.mat", 182_040_794), DataFile("test_32x32.mat", 64_275_384)),
    ),
}

BUILTIN = ("digits", *PUBLISHED)
"""Names of the data sets."""


def read_builtin(name: str, image_size: int) -> DataSplits:
    """A data set of `BUILTIN` as RGB images of a size.

    Raises:
        InputError: its files are neither on this machine nor can they be downloaded, or they are damaged.
    """
    if name == "digits":
        return digits(image_size)
    train, test, classes = read_published(PUBLISHED[name])
    padding = PUBLISHED[name].padding
    return DataSplits(
        name=name,
        train=ResizedImages(train, padding, image_size),
        test=ResizedImages(test, padding, image_size),
        classes=classes,
        image_size=image_size,
    )


class ResizedImages(Dataset):
    """Square images in memory as published, resized by the batch, never augmented."""

    workers = 0

    def __init__(self, split: Split, padding: int, image_size: int) -> None:
        border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        self._pixels = np.pad(split.pixels, border[: split.pixels.ndim]) if padding else split.pixels
        self.labels, self.image_size = torch.from_numpy(split.labels), image_size
        self.transform = "none" if self._pixels.shape[1] == image_size else "resized (Pillow, bicubic)"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        places = [place for _, place in keys]
        return self._images(self._pixels[places]), self.labels[places]

    def plain(self) -> ResizedImages:
        return self

    def augmented(self, training: Literal["tokenizer", "generator"], seed: int = 0) -> ResizedImages:
        return self

    def fingerprint(self) -> str:
        """sha256 of the resized RGB images and the labels."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for start in range(0, len(self), CHUNK):
            digest.update(self._images(self._pixels[start : start + CHUNK]).numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    def verify(self) -> None:
        """Images in memory do not change."""

    def _images(self, pixels: np.ndarray) -> Tensor:
        """uint8 (B, S, S) or (B, S, S, 3) -> uint8 (B, 3, H, W)."""
        size = (self.image_size, self.image_size)
        if pixels.shape[1:3] != size:
            pixels = np.stack(
                [np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BICUBIC)) for each in pixels]
            )
        images = torch.from_numpy(np.ascontiguousarray(pixels))
        if images.ndim == 3:
            return images[:, None].expand(-1, 3, -1, -1).contiguous()
        return images.permute(0, 3, 1, 2).contiguous()
