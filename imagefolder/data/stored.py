"""Images that stay in their files, or in tar shards, until a batch asks for them."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from imagefolder.data.disk import read_unchanged
from imagefolder.data.images import Key
from imagefolder.data.loading import image_workers, usable_cpus
from imagefolder.data.transforms import View, describe_view, open_rgb, square
from imagefolder.distributed import my_part
from imagefolder.errors import InputError
from imagefolder.progress import Phase

UNCHECKED, GOOD, CORRUPT = 0, 1, 2
BLOCK = 1000  # images that threads read at a time

# One row per image. ImageNet has 1.28 million: as an array they take 0.15 GB and reach worker processes at once.
FIELDS = [
    ("shard", "i4"),  # how many bytes of the name are the shard's path; 0: the image is a file of its own
    ("offset", "i8"),  # of the image in its file, bytes
    ("size", "i8"),  # of the image, bytes
    ("file_size", "i8"),  # of the file or shard
    ("mtime", "i8"),  # of the file or shard, ns
    ("ctime", "i8"),  # of the file or shard, ns: unlike mtime nobody can set it back
    ("inode", "u8"),  # of the file or shard
    ("hidden", "i4"),  # how many hidden members the shard has
    ("other_kinds", "i4"),  # how many members that are neither images nor classes
    ("cls", "i4"),  # class index that the shard gives, or -1
    ("state", "u1"),
    ("sha256", "u1", 32),  # of the image, once checked
]


def make_rows(names: list[bytes], **columns: list[int] | int) -> np.ndarray:
    """Rows of images not checked yet. `names`: path below the data folder; for shards PATH/MEMBER."""
    rows = np.zeros(len(names), [("name", f"S{max(map(len, names), default=1)}"), *FIELDS])
    rows["name"] = names
    for column, values in columns.items():
        rows[column] = values
    return rows


def location(root: Path, row: np.void) -> str:
    """Where an image lies, for people."""
    name, shard = row["name"], row["shard"]
    if not shard:
        return str(root / os.fsdecode(name))
    return f"{root / os.fsdecode(name[:shard])}: {os.fsdecode(name[shard + 1 :])}"


def read(root: Path, row: np.void) -> bytes:
    """The bytes of an image file. Opened for each: beside decoding that costs nothing, and nothing is left open.

    Raises:
        InputError: naming the image: its file has changed, is gone, or is none that can be read.
    """
    path = root / os.fsdecode(row["name"][: row["shard"] or None])
    known = (int(row["file_size"]), int(row["mtime"]), int(row["ctime"]))
    place, sha256 = (int(row["offset"]), int(row["size"])), row["sha256"].tobytes()
    return read_unchanged(path, known, *place, location(root, row), sha256)


class StoredImages(Dataset):
    """Images described by rows, as squares of one view; `seed` is that of a random one."""

    def __init__(
        self, root: Path, rows: np.ndarray, labels: Tensor, image_size: int, view: View = "plain", seed: int = 0
    ) -> None:
        self.root, self.rows, self.labels, self.image_size = root, rows, labels, image_size
        self.view, self.seed = view, seed
        self.transform = describe_view(image_size, view, seed)
        self.workers = image_workers()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        size, view = self.image_size, self.view
        arrays = [square(self.open(index), size, view, epoch, index, self.seed) for epoch, index in keys]
        images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        return images, self.labels[[index for _, index in keys]]

    def open(self, index: int) -> Image.Image:
        """One whole image."""
        row = self.rows[index]
        return open_rgb(read(self.root, row), location(self.root, row))

    def plain(self) -> StoredImages:
        """The same images, centre-cropped."""
        return StoredImages(self.root, self.rows, self.labels, self.image_size)

    def augmented(self, training: Literal["tokenizer", "generator"], seed: int = 0) -> StoredImages:
        """The same images, cropped and flipped at random as for one of the two trainings of a run with this seed."""
        return StoredImages(self.root, self.rows, self.labels, self.image_size, training, seed)

    def fingerprint(self) -> str:
        """sha256 over class and content of every image, in order."""
        return hashlib.sha256(self.labels.numpy().tobytes() + self.rows["sha256"].tobytes()).hexdigest()

    def verify(self) -> None:
        """Read this process's part of the files again, for changes that show in no size and no time.

        Raises:
            InputError: naming the first image whose content is another than when it was checked, or that is gone.
        """

        def digest(row: np.void) -> bytes:
            return hashlib.sha256(read(self.root, row)).digest()

        title = f"{self.root.resolve().name}: reading images again"
        part = my_part(len(self.rows))
        rows = self.rows[part.start : part.stop]
        with Phase(title, len(rows)) as phase, ThreadPoolExecutor(usable_cpus()) as pool:
            for at in range(0, len(rows), BLOCK):
                block = rows[at : at + BLOCK]
                for row, found in zip(block, pool.map(digest, block), strict=True):
                    if found != row["sha256"].tobytes():
                        place = location(self.root, row)
                        raise InputError(
                            f"{place}: its content has changed since the images were checked; start the run again"
                        )
                phase.update(at + len(block))
