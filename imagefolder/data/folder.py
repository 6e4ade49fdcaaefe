"""Images on disk, however people have them: class folders, tar shards, Kaggle's ImageNet, archives, parquet files."""

from __future__ import annotations

import csv
import os
import posixpath
from collections import Counter
from pathlib import Path

import numpy as np

from imagefolder.data.archive import read_headers
from imagefolder.data.checking import Listing, checked_splits, index_file
from imagefolder.data.disk import HIDDEN, IMAGE_SUFFIXES, OTHER_KINDS, Tree, Walk
from imagefolder.data.images import DataSplits
from imagefolder.data.layout import CLASS_NAMES, TRAIN, Layout, class_folders, find_layout, output_folder
from imagefolder.data.packed import PackedTree
from imagefolder.data.parquet import PARQUET, find_parquet, list_parquet
from imagefolder.data.rows import location
from imagefolder.data.shards import classes_of, list_shards
from imagefolder.data.zips import read_directory
from imagefolder.errors import InputError

_KAGGLE_HEADER = ["ImageId", "PredictionString"]


def read_data(root: Path, image_size: int, *, skip_corrupt: bool = False, index: Path | None = None) -> DataSplits:
    """Read images on disk, checking every one once.

    The same images in the same classes give the same data set, whatever their files are called and stored in.

    Args:
        root: a folder, or a .zip, .tar or .parquet file. With `train/` and `val/` (or `validation/`, `valid/`, `test/`)
            inside, these are the splits: class folders or tar shards. Otherwise it holds class folders, and a fixed
            fifth of every class is the test split. Folders that hold nothing but another folder are skipped. ImageNet
            as Kaggle distributes it, and folders of parquet files, are recognised. Hidden files and folders never
            count; links are followed.
        image_size: side of the square crops.
        skip_corrupt: leave out unreadable training images instead of failing. Images of a test split are never left
            out.
        index: folder in which to remember checked files, so that only new and changed ones are read at the next start,
            and to keep what is unpacked from parquet files (without it, a temporary folder). It lies in the output
            folder of the run, which is not part of the data even if it is inside `root`.

    Raises:
        InputError: naming the folder, class, file, member or row at fault.
    """
    file, suffix = index_file(index, root), root.suffix.lower()
    if root.is_dir():
        walk = Walk(root, output_folder(root, index))
        if parquet := find_parquet(walk):
            listing = list_parquet(root, parquet, file)
        else:
            layout = find_layout(walk)
            listing = list_shards(walk, layout, file) if layout.shards else _list_class_folders(walk, layout)
    elif not os.path.lexists(root):
        raise InputError(f"data folder {root} does not exist")
    elif suffix == PARQUET:
        listing = list_parquet(root, {TRAIN: [root]}, file)
    elif suffix == ".zip":
        listing = _list_archive(PackedTree(root, root.stat(), read_directory(root)))
    elif suffix == ".tar":
        listing = _list_tar(root)
    else:
        raise InputError(
            f"{root} is neither a folder nor a .zip, .tar or .parquet file; unpack other archives, and pass the folder"
        )
    return checked_splits(listing, root, image_size, skip_corrupt=skip_corrupt, index=file)


def _list_class_folders(tree: Tree, layout: Layout) -> Listing:
    classes, rows, labels = _scan(tree, layout.splits[0])
    if len(layout.splits) == 1:
        return Listing(tree.root, classes, rows, labels, None, tree.left_out)
    if layout.labels is None:
        test_classes, test, test_labels = _scan(tree, layout.splits[1])
    else:
        test_classes, test, test_labels = _scan_flat(tree, layout.splits[1], layout.labels)
    layout.require_same_classes(tree.root, set(classes) ^ set(test_classes))
    is_test = np.arange(len(rows) + len(test)) >= len(rows)
    both = np.concatenate([rows, test])  # names as wide as the widest
    return Listing(tree.root, classes, both, np.concatenate([labels, test_labels]), is_test, tree.left_out)


def _scan(tree: Tree, folder: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Sorted class names, and the rows of all images in a folder of class folders with their labels (N,)."""
    classes = class_folders(tree, folder)
    parts: list[np.ndarray] = []
    for name in classes:
        path = os.path.join(folder, name)
        parts.append(tree.rows(path))
        if not len(parts[-1]):
            raise InputError(f"class folder {tree.path(path)} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return classes, np.concatenate(parts), np.repeat(np.arange(len(classes)), [len(part) for part in parts])


def _scan_flat(tree: Tree, folder: str, file: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """As `_scan`, for a folder of images whose classes are listed in Kaggle's file."""
    place, rows = tree.path(file), tree.rows(folder)
    lines = csv.reader((tree.text(file, "a list of labels") or "").splitlines())
    if next(lines, None) != _KAGGLE_HEADER:
        raise InputError(f"{place}: the first line must be {','.join(_KAGGLE_HEADER)}")
    known: dict[str, str] = {}
    for line in lines:
        if len(line) != 2 or not line[1].split() or known.setdefault(line[0], line[1].split()[0]) != line[1].split()[0]:
            raise InputError(f"{place}: line {lines.line_num}: expected an image and its class, each image once")
    stems = [posixpath.splitext(posixpath.basename(os.fsdecode(name)))[0] for name in rows["name"].tolist()]
    for row, stem in zip(rows, stems, strict=True):
        if stem not in known:
            raise InputError(f"{location(tree.root, row)}: its class is not listed in {place}")
    if absent := sorted(known.keys() - set(stems)):
        more = f" and {len(absent) - 1:,} more" if len(absent) > 1 else ""
        raise InputError(f"{tree.path(folder)}: {absent[0]}{more}, listed in {place}, missing; unpack all of it")
    classes = sorted(set(known.values()))
    position = {name: label for label, name in enumerate(classes)}
    return classes, rows, np.array([position[known[stem]] for stem in stems])


def _list_archive(tree: Tree) -> Listing:
    layout = find_layout(tree)
    if layout.shards:
        raise InputError(f"{tree.root}: holds tar shards, which cannot be read inside an archive; unpack it")
    return _list_class_folders(tree, layout)


def _list_tar(root: Path) -> Listing:
    """The images of a tar file: class folders with or without splits, or KEY.jpg beside KEY.cls."""
    status, found = root.stat(), read_headers(root)
    tree = PackedTree(root, status, [*found.images.values(), *found.lists])
    if not found.classes:
        tree.left_out.update({HIDDEN: found.hidden, OTHER_KINDS: found.other_kinds - len(found.lists)})
        return _list_archive(tree)
    if tree.is_folder(TRAIN):
        raise InputError(f"{root}: holds train/ and .cls members; pack the splits into train/*.tar and val/*.tar")
    rows = tree.rows("")
    index = dict(zip(found.images, found.class_indices(root), strict=True))
    rows["cls"] = [index[os.fsdecode(name)] for name in rows["name"].tolist()]
    classes, labels = classes_of(rows, tree, CLASS_NAMES)
    named = sum(member.name == CLASS_NAMES for member in found.lists)
    left_out = Counter({HIDDEN: found.hidden, OTHER_KINDS: found.other_kinds - named})
    return Listing(root, classes, rows, labels, None, left_out)
