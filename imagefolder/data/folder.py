"""Any data folder: torchvision's layout (DIR/class/image, or DIR/train and DIR/val with such folders) or tar shards."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from imagefolder.data.checking import checked_splits
from imagefolder.data.images import DataSplits
from imagefolder.data.shards import image_shards
from imagefolder.data.stored import make_rows
from imagefolder.errors import InputError


def read_data(root: Path, image_size: int, skip_corrupt: bool = False, index: Path | None = None) -> DataSplits:
    """Read a data folder of any layout: class folders, train/ and val/ with class folders, or both with tar shards.

    Arguments and errors: as of `image_folder`.
    """
    if any(next((root / split).glob("*.tar"), None) for split in ("train", "val")):
        return image_shards(root, image_size, skip_corrupt, index)
    return image_folder(root, image_size, skip_corrupt, index)


def image_folder(root: Path, image_size: int, skip_corrupt: bool = False, index: Path | None = None) -> DataSplits:
    """Read an image folder, checking every file once.

    Args:
        root: with `train/` and `val/` inside these are the splits; otherwise a fixed fifth of every class (chosen by
            the hash of the file's name) is the test split.
        image_size: side of the square crops.
        skip_corrupt: leave unreadable training images out instead of failing. Test images are never left out.
        index: folder in which to remember checked files, so that only new and changed ones are read at the next start.

    Raises:
        InputError: naming the folder, class or files at fault.
    """
    if not root.is_dir():
        raise InputError(f"data folder {root} does not exist or is not a folder")
    if (root / "train").is_dir() and (root / "val").is_dir():
        classes, train, labels = _scan(root, "train")
        test_classes, test, test_labels = _scan(root, "val")
        if classes != test_classes:
            odd = sorted(set(classes) ^ set(test_classes))
            raise InputError(f"{root}: train and val have different classes: {', '.join(odd[:5])}")
        is_test = np.arange(len(train) + len(test)) >= len(train)
        files, labels = train + test, labels + test_labels
    else:
        classes, files, labels = _scan(root, "")
        is_test = _split([name for name, _, _ in files], labels)
    names, sizes, times = zip(*files, strict=True)
    rows = make_rows(names, size=sizes, file_size=sizes, mtime=times, cls=-1)
    return checked_splits(root, rows, np.array(labels), is_test, classes, image_size, skip_corrupt, index)


File = tuple[bytes, int, int]  # path below the data folder, size in bytes, time of the last change in ns


def _scan(root: Path, split: str) -> tuple[list[str], list[File], list[int]]:
    """Class names, and all files of a folder of class folders with their class, sorted."""
    folder = root / split
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise InputError(f"data folder {folder} is empty or has no class folders (expected {folder}/CLASS/IMAGE)")
    files: list[File] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_images(os.fsencode(folder / name), os.fsencode(os.path.join(split, name))))
        if not found:
            raise InputError(f"class folder {folder / name} holds no images ({', '.join(IMG_EXTENSIONS)})")
        files += found
        labels += [label] * len(found)
    return classes, files, labels


def _images(folder: bytes, name: bytes) -> Iterator[File]:
    """All image files at any depth of `folder`, called `name` below the data folder."""
    for entry in os.scandir(folder):
        path = os.path.join(name, entry.name)
        if entry.is_dir(follow_symlinks=False):
            yield from _images(entry.path, path)
        elif os.fsdecode(entry.name).lower().endswith(IMG_EXTENSIONS):
            try:
                status = entry.stat()
            except OSError:  # a link to nowhere: reported with the corrupt images
                yield path, 0, 0
            else:
                yield path, status.st_size, status.st_mtime_ns


def _split(names: list[bytes], labels: list[int]) -> np.ndarray:
    """Which files are for testing: a fixed fifth of every class (at least one of two), by the hash of the file name."""
    is_test = np.zeros(len(names), bool)
    digests = np.array([hashlib.sha256(os.path.basename(name)).digest() for name in names])
    starts = [*np.flatnonzero(np.diff(labels, prepend=-1)), len(names)]
    for start, stop in itertools.pairwise(starts):
        number = max((stop - start) // 5, 1) if stop - start > 1 else 0
        is_test[start + np.argsort(digests[start:stop], kind="stable")[:number]] = True
    return is_test
