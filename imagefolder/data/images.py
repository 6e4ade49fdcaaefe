"""What a data set is here: 8-bit images by (epoch, index), with labels, in two splits, identified by a hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

Key = tuple[int, int]  # (epoch, index): augmentation is a function of both


class Images(Protocol):
    """A split. `__getitems__` fetches a batch: uint8 (B, 3, H, W) and int64 labels (B,)."""

    labels: Tensor

    def __len__(self) -> int: ...
    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]: ...
    def plain(self) -> Images:
        """The same images without augmentation."""
        ...

    def fingerprint(self) -> str:
        """sha256 over content and labels."""
        ...


class ArrayImages(Dataset):
    """Images in memory, without augmentation."""

    workers = 0

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        index = torch.tensor([i for _, i in keys])
        return self.images[index], self.labels[index]

    def plain(self) -> ArrayImages:
        return self

    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.numpy().tobytes() + self.labels.numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class DataSplits:
    """A data set: training images (augmented as its transform says) and test images (never augmented)."""

    name: str
    train: Images
    test: Images
    classes: list[str]
    image_size: int

    @cached_property
    def sha256(self) -> str:
        """Identity of the images and labels of both splits at this size."""
        text = f"{self.image_size}:{self.train.fingerprint()}:{self.test.fingerprint()}"
        return hashlib.sha256(text.encode()).hexdigest()


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8, by clamp(127.5 x + 128) and truncation as published for reconstructions."""
    return (127.5 * images + 128).clamp(0, 255).to(torch.uint8)


def samples_to_uint8(images: Tensor) -> Tensor:
    """Generated images in [0, 1] -> uint8, by truncation of 255 x as published for samples."""
    return (255 * images).clamp(0, 255).to(torch.uint8)
