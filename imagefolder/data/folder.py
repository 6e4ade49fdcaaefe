"""Any data folder: torchvision's layout (DIR/class/image, or DIR/train and DIR/val with such folders) or tar shards."""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path

import numpy as np

from imagefolder.data.checking import Listing, checked_splits, index_file
from imagefolder.data.disk import IMAGE_SUFFIXES, File, Walk
from imagefolder.data.images import DataSplits
from imagefolder.data.layout import Layout, class_folders, find_layout, output_folder
from imagefolder.data.shards import list_shards
from imagefolder.data.stored import make_rows
from imagefolder.errors import InputError


def read_data(root: Path, image_size: int, *, skip_corrupt: bool = False, index: Path | None = None) -> DataSplits:
    """Read a data folder, checking every image once.

    Args:
        root: with `train/` and `val/` (or `validation/`, `valid/`, `test/`) inside, these are the splits: class folders
            or tar shards. Otherwise it holds class folders, and a fixed fifth of every class (chosen by the hash of the
            file name) is the test split. Folders that hold nothing but another folder are skipped. Hidden files and
            folders never count; links are followed.
        image_size: side of the square crops.
        skip_corrupt: leave out unreadable training images instead of failing. Test images are never left out.
        index: folder in which to remember checked files, so that only new and changed ones are read at the next start.
            It lies in the output folder of the run, which is not part of the data even if it is inside `root`.

    Raises:
        InputError: naming the folder, class, files or shard at fault.
    """
    walk = Walk(root, output_folder(root, index))
    layout, file = find_layout(walk), index_file(index, root)
    listing = list_shards(walk, layout, file) if layout.shards else _list_class_folders(walk, layout)
    return checked_splits(listing, image_size, skip_corrupt=skip_corrupt, index=file)


def _list_class_folders(walk: Walk, layout: Layout) -> Listing:
    classes, files, labels = _scan(walk, layout.splits[0])
    if len(layout.splits) == 1:
        is_test = _split([file.name for file in files], labels)
    else:
        test_classes, test, test_labels = _scan(walk, layout.splits[1])
        layout.require_same_classes(walk.root, set(classes) ^ set(test_classes))
        is_test = np.arange(len(files) + len(test)) >= len(files)
        files, labels = files + test, labels + test_labels
    names, sizes, times, status_times, inodes = map(list, zip(*files, strict=True))
    rows = make_rows(names, size=sizes, file_size=sizes, mtime=times, ctime=status_times, inode=inodes, cls=-1)
    return Listing(walk.root, classes, rows, np.array(labels), is_test, walk.left_out)


def _scan(walk: Walk, folder: str) -> tuple[list[str], list[File], list[int]]:
    """Class names, and all files of a folder of class folders with their class, sorted."""
    classes = class_folders(walk, folder)
    files: list[File] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        path = os.path.join(folder, name)
        found = walk.files(path, IMAGE_SUFFIXES)
        if not found:
            raise InputError(f"class folder {walk.path(path)} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        files += found
        labels += [label] * len(found)
    return classes, files, labels


def _split(names: list[bytes], labels: list[int]) -> np.ndarray:
    """Which files are test images: a fixed fifth of every class (at least one of two), by the hash of the file name."""
    is_test = np.zeros(len(names), bool)
    digests = np.array([hashlib.sha256(os.path.basename(name)).digest() for name in names])
    starts = [*np.flatnonzero(np.diff(labels, prepend=-1)), len(names)]
    for start, stop in itertools.pairwise(starts):
        number = max((stop - start) // 5, 1) if stop - start > 1 else 0
        is_test[start + np.argsort(digests[start:stop], kind="stable")[:number]] = True
    return is_test
