"""Every image is read once: a damaged one is found before training, and its hash becomes part of the data's identity.

What was found is kept in an index file, so that a million images are not read again at every start.
"""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from imagefolder.data.imagenet import CLASSES, imagenet_labels
from imagefolder.data.images import DataSplits
from imagefolder.data.stored import CORRUPT, GOOD, UNCHECKED, StoredImages, location, make_rows, read
from imagefolder.data.transforms import open_rgb
from imagefolder.distributed import is_main
from imagefolder.errors import InputError
from imagefolder.files import write_atomically
from imagefolder.training.progress import Phase

SAVE_SECONDS = 60.0
BLOCK = 1000  # images between looks at the clock


def index_file(index: Path | None, root: Path) -> Path | None:
    """The index of the data folder `root` within the folder of indices."""
    if index is None:
        return None
    return index / f"{root.resolve().name}-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]}.npy"


def read_index(path: Path | None) -> np.ndarray:
    """Rows of an earlier start; none if there is no index, or it is damaged or of another version."""
    try:
        rows = np.load(path) if path else make_rows([])
        return rows if rows.dtype.descr[1:] == make_rows([]).dtype.descr[1:] else make_rows([])
    except (OSError, ValueError, EOFError):
        return make_rows([])


def checked_splits(
    root: Path,
    rows: np.ndarray,
    labels: np.ndarray,
    is_test: np.ndarray,
    classes: list[str],
    image_size: int,
    skip_corrupt: bool,
    index: Path | None,
) -> DataSplits:
    """The splits of a data folder once all images are checked.

    Args:
        rows: of all images (N,), filled in place.
        labels: int64 (N,), positions in `classes`.
        is_test: bool (N,).
        skip_corrupt: leave unreadable training images out instead of failing. Test images are never left out, since
            the reference of a metric would change silently.
        index: folder of indices, or None.

    Raises:
        InputError: naming images that cannot be read, a class without any, or classes that are not ImageNet's.
    """
    known_labels = imagenet_labels(classes, str(root))
    check_images(root, rows, index_file(index, root))
    bad_train, bad_test = (np.flatnonzero((rows["state"] == CORRUPT) & (is_test == side)) for side in (False, True))
    if len(bad_test) or (len(bad_train) and not skip_corrupt):
        bad = [*bad_train, *bad_test]
        hint = "" if len(bad_test) else ", or pass --skip-corrupt to train without them"
        named = ", ".join(location(root, rows[i]) for i in bad[:5])
        raise InputError(f"{len(bad)} corrupt image(s), repair or remove them{hint}: {named}")
    if len(bad_train) and is_main():
        named = ", ".join(location(root, rows[i]) for i in bad_train)
        print(f"skipping {len(bad_train)} corrupt training image(s): {named}", flush=True)
    train, test = (np.flatnonzero((rows["state"] == GOOD) & (is_test == side)) for side in (False, True))
    missing = np.flatnonzero(np.bincount(labels[train], minlength=len(classes)) == 0)
    if len(missing):
        raise InputError(f"{root}: class {classes[missing[0]]!r} has no readable training image")
    if not len(test):
        raise InputError(f"{root}: no test images; a class needs at least 2 images, or use train/ and val/ folders")
    if known_labels is not None and len(classes) < CLASSES and is_main():
        print(f"{root}: {len(classes)} of ImageNet's {CLASSES} classes", flush=True)
    return DataSplits(
        name=root.resolve().name,
        train=StoredImages(root, rows[train], torch.from_numpy(labels[train]), image_size),
        test=StoredImages(root, rows[test], torch.from_numpy(labels[test]), image_size),
        classes=classes,
        image_size=image_size,
        imagenet_labels=known_labels,
    )


def check_images(root: Path, rows: np.ndarray, path: Path | None) -> None:
    """Fill in `state` and `sha256` of every row: from the index at `path` where the file is unchanged, or by reading.

    The index is written now and then, so that an interrupted check continues.
    """
    _recall(rows, read_index(path))
    todo = np.flatnonzero(rows["state"] == UNCHECKED)
    if not len(todo):
        return

    def look(i: int) -> bytes | None:
        try:
            data = read(root, rows[i])
            open_rgb(data, "")
            return hashlib.sha256(data).digest()
        except (InputError, OSError):
            return None

    def save() -> None:
        if path:
            write_atomically(path, lambda temporary: _save(temporary, rows))

    saved, start = time.monotonic(), len(rows) - len(todo)
    with Phase(f"{root.resolve().name}: checking images", len(rows), start) as phase, ThreadPoolExecutor() as pool:
        try:
            for at in range(0, len(todo), BLOCK):
                block = todo[at : at + BLOCK]
                for i, digest in zip(block, pool.map(look, block), strict=True):
                    rows["state"][i] = CORRUPT if digest is None else GOOD
                    if digest is not None:
                        rows["sha256"][i] = np.frombuffer(digest, np.uint8)
                phase.update(start + at + len(block))
                if time.monotonic() - saved > SAVE_SECONDS:
                    save()
                    saved = time.monotonic()
        finally:
            save()


def _recall(rows: np.ndarray, known: np.ndarray) -> None:
    """Take over what is known about unchanged files. Unreadable ones are tried again: the disk may be at fault."""
    known = known[known["state"] == GOOD]
    if not len(known):
        return
    known = known[np.argsort(known["name"])]
    at = np.searchsorted(known["name"], rows["name"]).clip(max=len(known) - 1)
    same = np.ones(len(rows), bool)
    for field in ("name", "offset", "size", "file_size", "mtime"):
        same &= known[field][at] == rows[field]
    for field in ("state", "sha256"):
        rows[field][same] = known[field][at[same]]


def _save(path: Path, rows: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, rows)
