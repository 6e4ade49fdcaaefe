"""Images in tar shards: DIR/train/*.tar and DIR/val/*.tar, read in any order without unpacking.

Two layouts: as webdataset writes them (KEY.jpg beside KEY.cls, which holds a class index; DIR/classes.txt may name the
classes, one per line), or with class folders inside the shards (n01440764/n01440764_10026.JPEG).
"""

from __future__ import annotations

import itertools
import os
import posixpath
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from imagefolder.data.archive import read_headers
from imagefolder.data.checking import Listing, read_index
from imagefolder.data.disk import HIDDEN, IMAGE_SUFFIXES, OTHER_KINDS, Tree, Walk
from imagefolder.data.layout import CLASS_NAMES, ELSEWHERE, Layout, shards_in
from imagefolder.data.rows import UNCHECKED, location, make_rows, state_of
from imagefolder.errors import InputError
from imagefolder.files import reading
from imagefolder.progress import Phase


def list_shards(walk: Walk, layout: Layout, index: Path | None) -> Listing:
    """The images in the shards of a data folder. `index`: its index file, or None.

    Raises:
        InputError: naming the shard, and the member where one is to blame.
    """
    root = walk.root
    train, test = (_find_shards(walk, split) for split in layout.splits)
    parts = read_shards(root, train + test, index)
    for part in parts:
        walk.left_out += Counter({HIDDEN: int(part["hidden"][0]), OTHER_KINDS: int(part["other_kinds"][0])})
    rows = np.concatenate(parts)  # names as wide as the widest
    is_test = np.arange(len(rows)) >= sum(map(len, parts[: len(train)]))
    classes, labels = classes_of(rows, walk, os.path.join(os.path.dirname(layout.splits[0]), CLASS_NAMES))
    layout.require_same_classes(root, {classes[label] for label in np.setxor1d(labels[is_test], labels[~is_test])})
    return Listing(root, classes, rows, labels, is_test, walk.left_out)


def read_shards(root: Path, shards: Iterable[str], index: Path | None) -> list[np.ndarray]:
    """The images of every shard, from the index where a shard is unchanged. `shards`: paths below `root`."""
    known = _by_shard(read_index(index))
    shards, parts = list(shards), []
    with Phase(f"{root.resolve().name}: reading shards", len(shards)) as phase:
        for shard in shards:
            parts.append(_rows_of(root, shard, known))
            phase.update(len(parts))
    return parts


def _find_shards(walk: Walk, split: str) -> list[str]:
    """Paths of the shards of a split below the data folder, sorted."""
    contents, path = walk.contents(split), walk.path(split)
    shards = shards_in(contents)
    if not shards:
        raise InputError(f"{path}: no .tar shards, but the other split has some")
    for name, _ in contents.folders:
        if walk.contents(os.path.join(split, name)).named(IMAGE_SUFFIXES):
            raise InputError(f"{path} holds tar shards and a folder of images, {name}; move one of them away")
        walk.left_out[ELSEWHERE] += walk.count(os.path.join(split, name))
    walk.leave_out(contents)
    walk.left_out[OTHER_KINDS] += len(contents.files) - len(shards)
    return [os.path.join(split, name) for name in shards]


def _by_shard(rows: np.ndarray) -> dict[bytes, np.ndarray]:
    """The rows of an index by shard; those of one shard are adjacent."""
    shards = [name[:length] for name, length in zip(rows["name"].tolist(), rows["shard"].tolist(), strict=True)]
    found, start = {}, 0
    for shard, group in itertools.groupby(shards):
        stop = start + len(list(group))
        found[shard], start = rows[start:stop], stop
    return found


def _rows_of(root: Path, shard: str, known: dict[bytes, np.ndarray]) -> np.ndarray:
    """The images of a shard, from the index if the shard is unchanged, else from its headers."""
    name, path = os.fsencode(shard), root / shard
    with reading(path, "a tar file"):
        status = path.stat()
    state = state_of(status)
    rows = known.get(name)
    if rows is not None and all(rows[field][0] == value for field, value in state.items()):
        rows["state"] = UNCHECKED  # the check itself copies what is known from the index
        return rows
    found = read_headers(path)
    images = found.images.values()
    return make_rows(
        [name + b"/" + os.fsencode(member.name) for member in images],
        shard=len(name),
        offset=[member.offset for member in images],
        size=[member.size for member in images],
        hidden=found.hidden,
        other_kinds=found.other_kinds,
        cls=found.class_indices(path),
        **state,
    )


def classes_of(rows: np.ndarray, tree: Tree, names: str) -> tuple[list[str], np.ndarray]:
    """Class names and int64 labels (N,): from the class indices of the rows, or else from the images' folders.

    `names`: a file of class names, one per line, which there may be.
    """
    root, from_cls = tree.root, rows["cls"] >= 0
    if not from_cls.any():
        members = zip(rows["name"].tolist(), rows["shard"].tolist(), strict=True)
        folders = [os.fsdecode(posixpath.basename(posixpath.dirname(name[shard + 1 :]))) for name, shard in members]
        if "" in folders:
            origin = location(root, rows[folders.index("")])
            raise InputError(f"{origin} has neither a .cls member nor a class folder")
        classes = sorted(set(folders))
        position = {name: label for label, name in enumerate(classes)}
        return classes, np.array([position[name] for name in folders])
    if not from_cls.all():
        origin = location(root, rows[np.argmin(from_cls)])
        raise InputError(f"{origin} has no .cls member, unlike the images of other shards")
    labels = rows["cls"].astype(np.int64)
    text, path = tree.text(names, "a list of class names"), tree.path(names)
    if text is not None:
        classes = _class_names(text, path)
        if labels.max() >= len(classes):
            origin = location(root, rows[np.argmax(labels)])
            raise InputError(f"{origin} is of class {labels.max()}, but {path} names {len(classes)} classes")
        return classes, labels
    present = np.unique(labels)
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if len(gaps):
        origin = location(root, rows[np.argmax(labels)])
        raise InputError(
            f"{root}: class '{gaps[0]}' has no readable training image, but {origin} is of class "
            f"{present[-1]}; number the classes from 0 without gaps, or name them all in {path}"
        )
    return [str(label) for label in present], labels


def _class_names(text: str, path: Path) -> list[str]:
    """The class names of a text, one per line, with any kind of line ending."""
    classes = [line.strip() for line in text.split("\n") if line.strip()]
    if len(set(classes)) < len(classes):
        twice = next(name for position, name in enumerate(classes) if name in classes[:position])
        raise InputError(f"{path}: {twice} is listed twice")
    return classes
