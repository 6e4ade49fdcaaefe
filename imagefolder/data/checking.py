"""Every image is read once: a damaged one is found before training, and its hash becomes part of the data's identity.

The results are kept in an index file, so that a million images need not be read again at every start.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy

from imagefolder.data.batches import require_room_for_sockets, usable_cpus
from imagefolder.data.disk import say
from imagefolder.data.imagenet import CLASSES, imagenet_labels
from imagefolder.data.images import DataSplits, safe_name
from imagefolder.data.rows import CORRUPT, GOOD, UNCHECKED, content_order, location, make_rows
from imagefolder.data.stored import BLOCK, StoredImages, read_image
from imagefolder.data.transforms import open_rgb
from imagefolder.errors import InputError
from imagefolder.files import write_atomically
from imagefolder.progress import Phase

SAVE_SECONDS = 60.0
TICK = 20_000_000  # ns; within one tick of its clock a file system may give two changes of a file the same time
DIGEST = hashlib.sha256().digest_size

UNREADABLE = "unreadable"
MOST_NAMED = 20


@dataclass(frozen=True)
class Listing:
    """The images of a data set, not checked yet, in the order in which they are stored.

    `rows` (N,), see `rows.FIELDS`; `labels` int64 (N,), positions in `classes`; `is_test` bool (N,), or None to hold
    out a fifth of every class; `left_out`: numbers of files that are not among the rows, by reason.
    """

    root: Path
    classes: list[str]
    rows: np.ndarray
    labels: np.ndarray
    is_test: np.ndarray | None
    left_out: Counter[str]


def index_file(index: Path | None, root: Path) -> Path | None:
    """The index of the data folder `root`, in the folder of indices."""
    if index is None:
        return None
    path = root.resolve()
    return index / f"{safe_name(path.name)}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}.npy"


def read_index(path: Path | None) -> np.ndarray:
    """Rows of an earlier start; none if there is no index, or it is damaged or of another version.

    The file is a .npy file followed by its sha256.
    """
    try:
        content = path.read_bytes() if path else b""
        body = memoryview(content)[:-DIGEST]
        if hashlib.sha256(body).digest() == content[-DIGEST:]:
            rows = npy.read_array(io.BytesIO(body), allow_pickle=False)
            if rows.dtype.descr[1:] == make_rows([]).dtype.descr[1:]:
                return rows
    except (OSError, ValueError):
        pass
    return make_rows([])


def checked_splits(
    listing: Listing, data: Path, image_size: int, *, skip_corrupt: bool, index: Path | None
) -> DataSplits:
    """Check all images of a data set and return its splits.

    Both depend on the names of the classes and the contents of the images alone, whatever their files are called and
    stored in: classes are sorted by name, and the images of a class by the sha256 of their content. Without a test
    split, the first fifth of every class is held out.

    Args:
        listing: its rows are filled in place.
        data: the path of the data, which gives the data set its name.
        skip_corrupt: leave out unreadable training images instead of failing. Images of a test split are never left
            out, since the reference of a metric would change silently.
        index: the index file of this data set, or None.

    Raises:
        InputError: naming images that cannot be read, a class without any, or classes that are not ImageNet's.
    """
    root, rows, path = listing.root, listing.rows, data.resolve()
    classes, labels = _sorted_classes(listing.classes, listing.labels)
    require_room_for_sockets()
    known_labels = imagenet_labels(classes, str(data))
    reasons = check_images(root, rows, index)
    corrupt = rows["state"] == CORRUPT
    is_test = _held_out(rows, labels) if listing.is_test is None else listing.is_test
    bad_train, bad_test = (np.flatnonzero(corrupt & side).tolist() for side in (~is_test, is_test))
    if bad_test or (bad_train and not skip_corrupt):
        bad = bad_train + bad_test
        hint = "" if bad_test else ", or pass --skip-corrupt to train without them"
        named = "; ".join(reasons[i] for i in bad[:5])
        raise InputError(f"{len(bad)} corrupt image(s), repair or remove them{hint}: {named}")
    if bad_train:
        named = "; ".join(reasons[i] for i in bad_train[:MOST_NAMED])
        more = f"; and {len(bad_train) - MOST_NAMED} more" if len(bad_train) > MOST_NAMED else ""
        say(f"skipping {len(bad_train)} corrupt training image(s): {named}{more}")
    order = np.lexsort((content_order(rows), labels))
    train, test = (order[(~corrupt & side)[order]] for side in (~is_test, is_test))
    missing = np.flatnonzero(np.bincount(labels[train], minlength=len(classes)) == 0)
    if len(missing):
        raise InputError(f"{data}: class {classes[missing[0]]!r} has no readable training image")
    if not len(test):
        raise InputError(f"{data}: no test images; a class needs at least 2 images, or use train/ and val/ folders")
    if known_labels is not None and len(classes) < CLASSES:
        say(f"{data}: {len(classes)} of ImageNet's {CLASSES} classes")
    left_out = {reason: number for reason, number in listing.left_out.items() if number}
    if left_out:
        say(f"{data}: left out: {', '.join(f'{number:,} {reason}' for reason, number in left_out.items())}")
    if bad_train:
        left_out[UNREADABLE] = len(bad_train)
    return DataSplits(
        name=safe_name(path.stem if path.is_file() else path.name),
        train=StoredImages(root=root, rows=rows[train], labels=torch.from_numpy(labels[train]), image_size=image_size),
        test=StoredImages(root=root, rows=rows[test], labels=torch.from_numpy(labels[test]), image_size=image_size),
        classes=classes,
        image_size=image_size,
        imagenet_labels=known_labels,
        left_out=left_out,
    )


def _sorted_classes(classes: list[str], labels: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The classes by name, or by number if all names are numbers, and the labels (N,) as positions among them."""
    key = (lambda name: (int(name), name)) if all(map(str.isdecimal, classes)) else None
    order = sorted(range(len(classes)), key=lambda label: key(classes[label]) if key else classes[label])
    return [classes[label] for label in order], np.argsort(order)[labels]


def _held_out(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which images are the test split: a fifth of every class (at least one of two), the first by their content.

    Unreadable images count, so that leaving out one of the training images moves no other. bool (N,).
    """
    good = np.flatnonzero(rows["state"] == GOOD)
    order = good[np.lexsort((content_order(rows[good]), labels[good]))]
    number = np.bincount(labels)
    held_out = np.where(number > 1, np.maximum(number // 5, 1), 0)
    place = np.arange(len(order)) - np.searchsorted(labels[order], labels[order])  # in its class
    is_test = np.zeros(len(rows), bool)
    is_test[order[place < held_out[labels[order]]]] = True
    return is_test


def check_images(root: Path, rows: np.ndarray, index: Path | None) -> dict[int, str]:
    """Fill in `state` and `sha256` of every row: from the index file where the file is unchanged, else by reading.

    The index is written every minute, so that an interrupted check resumes.

    Returns:
        Which images cannot be read and why, by row.
    """
    reasons: dict[int, str] = {}
    _recall(rows, read_index(index))
    todo = np.flatnonzero(rows["state"] == UNCHECKED)
    if not len(todo):
        return reasons

    def check(i: int) -> bytes | str:
        age = time.time_ns() - int(rows["ctime"][i])
        if 0 <= age < TICK:
            time.sleep((TICK - age) / 1e9)  # so that a change of the file after this reading changes its time too
        try:
            data = read_image(root, rows[i])
            open_rgb(data, location(root, rows[i]))
            return hashlib.sha256(data).digest()
        except InputError as error:
            return str(error)

    def save() -> None:
        if index:
            write_atomically(index, lambda temporary: _save(temporary, rows))

    saved, start = time.monotonic(), len(rows) - len(todo)
    title = f"{root.resolve().name}: checking images"
    with Phase(title, len(rows), start) as phase, ThreadPoolExecutor(usable_cpus()) as pool:
        try:
            for at in range(0, len(todo), BLOCK):
                block = todo[at : at + BLOCK].tolist()
                for i, found in zip(block, pool.map(check, block), strict=True):
                    if isinstance(found, str):
                        rows["state"][i], reasons[i] = CORRUPT, found
                    else:
                        rows["state"][i], rows["sha256"][i] = GOOD, np.frombuffer(found, np.uint8)
                phase.update(start + at + len(block))
                if time.monotonic() - saved > SAVE_SECONDS:
                    save()
                    saved = time.monotonic()
        finally:
            save()
    return reasons


def _recall(rows: np.ndarray, known: np.ndarray) -> None:
    """Copy what is known about unchanged files. Unreadable ones are tried again: the disk may have been at fault."""
    known = known[known["state"] == GOOD]
    if not len(known):
        return
    known = known[np.argsort(known["name"])]
    at = np.searchsorted(known["name"], rows["name"]).clip(max=len(known) - 1)
    same = np.ones(len(rows), bool)
    for field in ("name", "offset", "size", "file_size", "mtime", "ctime", "inode"):
        same &= known[field][at] == rows[field]
    for field in ("state", "sha256"):
        rows[field][same] = known[field][at[same]]


def _save(path: Path, rows: np.ndarray) -> None:
    with path.open("wb+") as file:
        npy.write_array(file, rows, allow_pickle=False)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").digest()
        file.write(digest)
