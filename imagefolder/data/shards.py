"""Images in tar shards: DIR/train/*.tar and DIR/val/*.tar, read in any order without unpacking.

Either as webdataset writes them (KEY.jpg beside KEY.cls, which holds a class index, and DIR/classes.txt may name the
classes, one per line), or with the images in class folders inside the shards (n01440764/n01440764_10026.JPEG).
"""

from __future__ import annotations

import itertools
import os
import posixpath
import tarfile
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from imagefolder.data.checking import checked_splits, index_file, read_index
from imagefolder.data.images import DataSplits
from imagefolder.data.stored import UNCHECKED, location, make_rows
from imagefolder.errors import InputError
from imagefolder.training.progress import Phase

SPLITS = ("train", "val")
NAMES = "classes.txt"


def image_shards(root: Path, image_size: int, skip_corrupt: bool = False, index: Path | None = None) -> DataSplits:
    """Read a folder of shards, checking every image once. Arguments as of `image_folder`.

    Raises:
        InputError: naming the shard, and the member at fault.
    """
    shards = [sorted((root / split).glob("*.tar")) for split in SPLITS]
    for split, found in zip(SPLITS, shards, strict=True):
        if not found:
            raise InputError(f"{root / split}: no .tar shards, but there are some in the other of train/ and val/")
    known = _by_shard(read_index(index_file(index, root)))
    parts: list[np.ndarray] = []
    with Phase(f"{root.resolve().name}: reading shards", sum(map(len, shards))) as phase:
        for shard in itertools.chain(*shards):
            parts.append(_rows_of(root, shard, known))
            phase.update(len(parts))
    rows = np.concatenate(parts)  # names as wide as the widest
    is_test = np.arange(len(rows)) >= sum(map(len, parts[: len(shards[0])]))
    classes, labels = _classes(root, rows)
    _require_equal_classes(root, classes, labels, is_test)
    return checked_splits(root, rows, labels, is_test, classes, image_size, skip_corrupt, index)


def _by_shard(rows: np.ndarray) -> dict[bytes, np.ndarray]:
    """The rows of an index by shard; those of one shard lie together."""
    shards = [name[:length] for name, length in zip(rows["name"].tolist(), rows["shard"].tolist(), strict=True)]
    found, start = {}, 0
    for shard, group in itertools.groupby(shards):
        stop = start + len(list(group))
        found[shard], start = rows[start:stop], stop
    return found


def _rows_of(root: Path, shard: Path, known: dict[bytes, np.ndarray]) -> np.ndarray:
    """The images of a shard, from the index if the shard is unchanged, else from its headers."""
    name, status = os.fsencode(shard.relative_to(root)), shard.stat()
    rows = known.get(name)
    if rows is not None and (rows["file_size"][0], rows["mtime"][0]) == (status.st_size, status.st_mtime_ns):
        rows["state"] = UNCHECKED  # what the check found is taken over there
        return rows
    images, classes = _read_headers(shard)
    missing = [member.name for key, member in images.items() if key not in classes] if classes else []
    if missing:
        raise InputError(f"{shard}: {missing[0]} has no .cls beside it, as other images of the shard have")
    return make_rows(
        [name + b"/" + os.fsencode(member.name) for member in images.values()],
        shard=len(name),
        offset=[member.offset_data for member in images.values()],
        size=[member.size for member in images.values()],
        file_size=status.st_size,
        mtime=status.st_mtime_ns,
        cls=[classes.get(key, -1) for key in images],
    )


def _read_headers(shard: Path) -> tuple[dict[str, tarfile.TarInfo], dict[str, int]]:
    """The image members of a shard, and the class indices it holds, both by key (the name without its suffix)."""
    images: dict[str, tarfile.TarInfo] = {}
    classes: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            descriptor = tar.fileobj.fileno()
            for member in tar:
                key, suffix = posixpath.splitext(member.name)
                if not member.isfile() or posixpath.basename(key).startswith("."):
                    continue
                if suffix.lower() in IMG_EXTENSIONS:
                    if key in images:
                        raise InputError(f"{shard}: two images are called {key}")
                    images[key] = member
                elif suffix == ".cls":
                    classes[key] = _class_index(
                        os.pread(descriptor, member.size, member.offset_data), f"{shard}: {member.name}"
                    )
            end = os.pread(descriptor, tarfile.BLOCKSIZE, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{shard}: not a whole tar file ({error}); fetch or write it again") from None
    if end != bytes(tarfile.BLOCKSIZE):  # the module takes damage behind the first member for the end
        raise InputError(f"{shard}: truncated or damaged at byte {tar.offset}; fetch or write it again")
    if not images:
        raise InputError(f"{shard}: holds no images ({', '.join(IMG_EXTENSIONS)})")
    return images, classes


def _class_index(text: bytes, origin: str) -> int:
    try:
        index = int(text)
    except ValueError:
        index = -1
    if not 0 <= index < 2**31:
        raise InputError(f"{origin}: a class index is expected, not {text[:20]!r}")
    return index


def _classes(root: Path, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Class names and int64 labels: as the shards' .cls members say, else the images' folders."""
    from_cls = rows["cls"] >= 0
    if not from_cls.any():
        names = zip(rows["name"].tolist(), rows["shard"].tolist(), strict=True)
        parents = [posixpath.dirname(name[shard + 1 :]) for name, shard in names]
        folders = [os.fsdecode(posixpath.basename(parent)) for parent in parents]
        if "" in folders:
            origin = location(root, rows[folders.index("")])
            raise InputError(f"{origin} has neither a .cls member beside it nor a class folder")
        classes = sorted(set(folders))
        position = {name: label for label, name in enumerate(classes)}
        return classes, np.array([position[name] for name in folders])
    if not from_cls.all():
        origin = location(root, rows[np.argmin(from_cls)])
        raise InputError(f"{origin} has no .cls beside it, as the images of other shards have")
    labels = rows["cls"].astype(np.int64)
    if not (root / NAMES).is_file():
        return [str(label) for label in range(labels.max() + 1)], labels
    classes = (root / NAMES).read_text().splitlines()
    classes = [name.strip() for name in classes if name.strip()]
    if len(set(classes)) < len(classes):
        twice = next(name for position, name in enumerate(classes) if name in classes[:position])
        raise InputError(f"{root / NAMES}: {twice} is there twice")
    if labels.max() >= len(classes):
        origin = location(root, rows[np.argmax(labels)])
        raise InputError(f"{origin} is of class {labels.max()}, but {root / NAMES} names {len(classes)} classes")
    return classes, labels


def _require_equal_classes(root: Path, classes: list[str], labels: np.ndarray, is_test: np.ndarray) -> None:
    odd = np.setxor1d(labels[is_test], labels[~is_test])
    if len(odd):
        names = ", ".join(classes[label] for label in odd[:5])
        raise InputError(f"{root}: train and val have different classes: {names}")
