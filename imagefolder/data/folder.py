"""Any data folder: torchvision's layout (DIR/class/image, or DIR/train and DIR/val with such folders) or tar shards."""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from imagefolder.data.checking import checked_splits
from imagefolder.data.disk import File, Walk
from imagefolder.data.images import DataSplits
from imagefolder.data.layout import Layout, class_folders, find_layout, output_folder
from imagefolder.data.shards import image_shards
from imagefolder.data.stored import make_rows
from imagefolder.errors import InputError


def read_data(root: Path, image_size: int, skip_corrupt: bool = False, index: Path | None = None) -> DataSplits:
    """Read a data folder of any layout: class folders, train/ and val/ with class folders, or both with tar shards.

    Arguments and errors: as of `image_folder`.
    """
    walk = Walk(root, output_folder(root, index))
    layout = find_layout(walk)
    read = image_shards if layout.shards else _class_folders
    return read(walk, layout, image_size, skip_corrupt, index)


def image_folder(root: Path, image_size: int, skip_corrupt: bool = False, index: Path | None = None) -> DataSplits:
    """Read an image folder, checking every file once.

    Args:
        root: with `train/` and `val/` (or `validation/`, `valid/`, `test/`) inside these are the splits; otherwise a
            fixed fifth of every class (chosen by the hash of the file's name) is the test split. Folders that hold
            nothing but another folder are passed. Hidden files and folders never count; links are followed.
        image_size: side of the square crops.
        skip_corrupt: leave unreadable training images out instead of failing. Test images are never left out.
        index: folder in which to remember checked files, so that only new and changed ones are read at the next start.
            It lies in the output folder of the run, which is no part of the data even if it is within `root`.

    Raises:
        InputError: naming the folder, class or files at fault.
    """
    walk = Walk(root, output_folder(root, index))
    return _class_folders(walk, find_layout(walk), image_size, skip_corrupt, index)


def _class_folders(walk: Walk, layout: Layout, image_size: int, skip_corrupt: bool, index: Path | None) -> DataSplits:
    classes, files, labels = _scan(walk, layout.train)
    if layout.test is None:
        is_test = _split([name for name, *_ in files], labels)
    else:
        test_classes, test, test_labels = _scan(walk, layout.test)
        if classes != test_classes:
            odd = sorted(set(classes) ^ set(test_classes))
            pair = f"{os.path.basename(layout.train)} and {os.path.basename(layout.test)}"
            raise InputError(f"{walk.root}: {pair} have different classes: {', '.join(odd[:5])}")
        is_test = np.arange(len(files) + len(test)) >= len(files)
        files, labels = files + test, labels + test_labels
    names, sizes, times, status_times, inodes = zip(*files, strict=True)
    rows = make_rows(names, size=sizes, file_size=sizes, mtime=times, ctime=status_times, inode=inodes, cls=-1)
    labels = np.array(labels)
    return checked_splits(walk.root, rows, labels, is_test, classes, image_size, skip_corrupt, index, walk.left_out)


def _scan(walk: Walk, folder: str) -> tuple[list[str], list[File], list[int]]:
    """Class names, and all files of a folder of class folders with their class, sorted."""
    classes = class_folders(walk, folder)
    files: list[File] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        path = os.path.join(folder, name)
        found = walk.files(path, IMG_EXTENSIONS)
        if not found:
            raise InputError(f"class folder {walk.path(path)} holds no images ({', '.join(IMG_EXTENSIONS)})")
        files += found
        labels += [label] * len(found)
    return classes, files, labels


def _split(names: list[bytes], labels: list[int]) -> np.ndarray:
    """Which files are for testing: a fixed fifth of every class (at least one of two), by the hash of the file name."""
    is_test = np.zeros(len(names), bool)
    digests = np.array([hashlib.sha256(os.path.basename(name)).digest() for name in names])
    starts = [*np.flatnonzero(np.diff(labels, prepend=-1)), len(names)]
    for start, stop in itertools.pairwise(starts):
        number = max((stop - start) // 5, 1) if stop - start > 1 else 0
        is_test[start + np.argsort(digests[start:stop], kind="stable")[:number]] = True
    return is_test
