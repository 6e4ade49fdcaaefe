"""What a dataset is: 8-bit images by (epoch, index), with labels, in two splits, identified by a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

Key = tuple[int, int]  # (epoch, index): augmentation is a function of both


class BatchSource(Protocol):
    """What batches are fetched from: a split of images, or the tokens of one."""

    workers: int
    """processes that fetch batches; 0: this one"""

    def __len__(self) -> int: ...
    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        """A batch: uint8 images (B, 3, H, W) or int64 tokens (B, P, L), and int64 labels (B,)."""
        ...


class Images(BatchSource, Protocol):
    """A split of images, uint8 (B, 3, H, W) by the batch."""

    labels: Tensor
    """int64 (N,)"""
    transform: str
    """how the pixels are computed, in one line"""

    def plain(self) -> Images:
        """The same images without augmentation."""
        ...

    def augmented(self, training: Literal["tokenizer", "generator"], seed: int = 0) -> Images:
        """The same images, augmented as in one of the two trainings of a run with this seed."""
        ...

    def fingerprint(self) -> str:
        """sha256 of contents and labels."""
        ...

    def verify(self) -> None:
        """Read this process's share again; `InputError` naming an image that no longer matches the fingerprint."""
        ...


class ArrayImages(Dataset):
    """Images (or tokens) in memory, never augmented."""

    workers = 0
    transform = "none"

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        index = torch.tensor([i for _, i in keys])
        return self.images[index], self.labels[index]

    def plain(self) -> ArrayImages:
        return self

    def augmented(self, training: Literal["tokenizer", "generator"], seed: int = 0) -> ArrayImages:
        return self

    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.numpy().tobytes() + self.labels.numpy().tobytes()).hexdigest()

    def verify(self) -> None:
        """Images in memory do not change."""


class SomeImages(Dataset):
    """A subset of a split: the images at `places`."""

    def __init__(self, images: Images, places: Sequence[int]) -> None:
        self.images, self.places = images, places
        self.labels, self.workers, self.transform = images.labels[list(places)], images.workers, images.transform

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        return self.images.__getitems__([(epoch, self.places[i]) for epoch, i in keys])

    def plain(self) -> SomeImages:
        return SomeImages(self.images.plain(), self.places)

    def augmented(self, training: Literal["tokenizer", "generator"], seed: int = 0) -> SomeImages:
        return SomeImages(self.images.augmented(training, seed), self.places)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.images.fingerprint()}:{list(self.places)}".encode()).hexdigest()

    def verify(self) -> None:
        self.images.verify()


def spread_evenly(images: Images, most: int) -> Images:
    """At most `most` images of a split, spread evenly over it."""
    number = len(images)
    return images if number <= most else SomeImages(images, [i * number // most for i in range(most)])


@dataclass(frozen=True)
class DataSplits:
    """A dataset: training and test images, both without augmentation (trainings see `train.augmented(...)`).

    `name`: safe as part of a file name, see `safe_name`.
    `imagenet_labels`: the index of every class in ImageNet-1k, by which a generator for ImageNet knows it; None unless
    all classes are among its 1000.
    `left_out`: how many files of the data folder are in neither split, by reason.
    """

    name: str
    train: Images
    test: Images
    classes: list[str]
    image_size: int
    imagenet_labels: list[int] | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """Identity of the images and labels of both splits at this image size."""
        text = f"{self.image_size}:{self.train.fingerprint()}:{self.test.fingerprint()}"
        return hashlib.sha256(text.encode()).hexdigest()


def safe_name(name: str) -> str:
    """The name of a folder as part of a file name: printable, 1 to 60 bytes of UTF-8."""
    printable = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in name)
    return printable.encode()[:60].decode(errors="ignore").strip() or "data"


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8: clamp(127.5 x + 128), truncated, as published for reconstructions."""
    return (127.5 * images + 128).clamp(0, 255).to(torch.uint8)


def samples_to_uint8(images: Tensor) -> Tensor:
    """Generated images in [0, 1] -> uint8: 255 x, truncated, as published for samples."""
    return (255 * images).clamp(0, 255).to(torch.uint8)
