"""Images that stay in their files or tar shards until a batch needs them."""

from __future__ import annotations

import hashlib
import os
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
from imagefolder.data.transforms import View, describe_view, open_rgb, square
from imagefolder.distributed import my_part
from imagefolder.errors import InputError
from imagefolder.progress import Phase

UNCHECKED, GOOD, CORRUPT = 0, 1, 2
BLOCK = 1000  # images read by threads between two reports of progress

# One row per image. As an array, ImageNet's 1.28 million take 0.15 GB and are passed to worker processes at once.
FIELDS = [
    ("shard", "i4"),  # number of bytes of the name that are the path of the shard; 0: the image is a file
    ("offset", "i8"),  # of the image in its file, bytes
    ("size", "i8"),  # of the image, bytes
    ("file_size", "i8"),  # of the file or shard
    ("mtime", "i8"),  # of the file or shard, ns
    ("ctime", "i8"),  # of the file or shard, ns; unlike mtime it cannot be set back
    ("inode", "u8"),  # of the file or shard
    ("hidden", "i4"),  # number of hidden members of the shard
    ("other_kinds", "i4"),  # number of members that are neither images nor classes
    ("cls", "i4"),  # class index from the shard, or -1
    ("state", "u1"),
    ("sha256", "u1", 32),  # of the image, once checked
]


def make_rows(names: list[bytes], **columns: list[int] | int) -> np.ndarray:
    """Rows of images not checked yet. `names`: paths below the data folder; in shards SHARD/MEMBER."""
    rows = np.zeros(len(names), [("name", f"S{max(map(len, names), default=1)}"), *FIELDS])
    rows["name"] = names
    for column, values in columns.items():
        rows[column] = values
    return rows


def location(root: Path, row: np.void) -> str:
    """The place of an image as shown in messages: PATH, or SHARD: MEMBER."""
    name, shard = row["name"], row["shard"]
    if not shard:
        return str(root / os.fsdecode(name))
    return f"{root / os.fsdecode(name[:shard])}: {os.fsdecode(name[shard + 1 :])}"


def read_image(root: Path, row: np.void) -> bytes:
    """The bytes of an image. Files are opened for each: next to decoding that costs nothing, and none stays open.

    Raises:
        InputError: naming the image: its file has changed, is missing or cannot be read.
    """
    return read_unchanged(
        root / os.fsdecode(row["name"][: row["shard"] or None]),
        (int(row["file_size"]), int(row["mtime"]), int(row["ctime"])),
        offset=int(row["offset"]),
        size=int(row["size"]),
        origin=location(root, row),
        sha256=row["sha256"].tobytes(),
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
