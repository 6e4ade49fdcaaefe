"""Images that stay in their files, shards or archives until a batch needs them."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from imagefolder.data.batches import image_workers, usable_cpus
from imagefolder.data.disk import read_unchanged
from imagefolder.data.images import Key
from imagefolder.data.rows import file_of, location
from imagefolder.data.transforms import View, describe_view, open_rgb, square
from imagefolder.data.zips import reader
from imagefolder.distributed import my_part
from imagefolder.errors import InputError
from imagefolder.progress import Phase

BLOCK = 1000  # images read by threads between two reports of progress


def read_image(root: Path, row: np.void) -> bytes:
    """The bytes of an image. Files are opened for each: next to decoding that costs nothing, and none stays open.

    Raises:
        InputError: naming the image: its file has changed, is missing or cannot be read.
    """
    return read_unchanged(
        file_of(root, row),
        (int(row["file_size"]), int(row["mtime"]), int(row["ctime"])),
        offset=int(row["offset"]),
        size=int(row["size"]),
        origin=location(root, row),
        sha256=row["sha256"].tobytes(),
        read=reader(int(row["packed"]), int(row["crc"])),
    )


@dataclass(eq=False, repr=False, kw_only=True)
class StoredImages(Dataset):
    """The images of `rows` (N,) with int64 `labels` (N,), as squares in one view; `seed`: of a random view."""

    root: Path
    rows: np.ndarray
    labels: Tensor
    image_size: int
    view: View = "plain"
    seed: int = 0
    workers: int = field(default_factory=image_workers, init=False)
    transform: str = field(init=False)

    def __post_init__(self) -> None:
        self.transform = describe_view(self.image_size, self.view, self.seed)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        arrays = [
            square(self.open(index), self.image_size, view=self.view, epoch=epoch, index=index, seed=self.seed)
            for epoch, index in keys
        ]
        images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        return images, self.labels[[index for _, index in keys]]

    def open(self, index: int) -> Image.Image:
        """An image as it is stored, in RGB."""
        row = self.rows[index]
        return open_rgb(read_image(self.root, row), location(self.root, row))

    def plain(self) -> StoredImages:
        """The same images, centre-cropped."""
        return replace(self, view="plain", seed=0)

    def augmented(self, training: Literal["tokenizer", "generator"], seed: int = 0) -> StoredImages:
        """The same images, cropped and flipped at random as in one of the two trainings of a run with this seed."""
        return replace(self, view=training, seed=seed)

    def fingerprint(self) -> str:
        """sha256 of the class and content of every image, in order."""
        return hashlib.sha256(self.labels.numpy().tobytes() + self.rows["sha256"].tobytes()).hexdigest()

    def verify(self) -> None:
        """Read this process's share of the files again, to find changes that leave sizes and times as they were.

        Raises:
            InputError: naming the first image that is missing or whose content changed since it was checked.
        """

        def digest(row: np.void) -> bytes:
            return hashlib.sha256(read_image(self.root, row)).digest()

        title = f"{self.root.resolve().name}: reading images again"
        part = my_part(len(self.rows))
        rows = self.rows[part.start : part.stop]
        with Phase(title, len(rows)) as phase, ThreadPoolExecutor(usable_cpus()) as pool:
            for at in range(0, len(rows), BLOCK):
                block = rows[at : at + BLOCK]
                for row, found in zip(block, pool.map(digest, block), strict=True):
                    if found != row["sha256"].tobytes():
                        changed = "its content changed since the images were checked; start the run again"
                        raise InputError(f"{location(self.root, row)}: {changed}")
                phase.update(at + len(block))
