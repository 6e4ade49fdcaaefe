"""Small data sets that others publish: files found on this machine and checked, else downloaded by torchvision.

Files lie in one of `data_folders()` as torchvision arranges them there (FashionMNIST/raw/train-images-idx3-ubyte,
cifar-10-batches-py/...); archives (.gz, .tar.gz) serve as well.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imagefolder.errors import DamagedFile, InputError, reason
from imagefolder.files import reading, write_atomically, writing
from imagefolder.progress import console

IDX = "-ubyte"  # ending of the files of MNIST and its relatives
REMEDY = "; replace it by the published file, or remove it to have it downloaded"
PATIENCE = 10.0  # seconds without an answer; torchvision itself would wait for ever


@dataclass(frozen=True)
class DataFile:
    """A published file: its path below a data folder, and its size in bytes.

    Size and sha256 of an IDX file are of its content, since there are several gzip files of the same content. Without
    a sha256, a file is known by torchvision's md5 of the archive.
    """

    path: str
    size: int
    sha256: str = ""


@dataclass(frozen=True)
class Published:
    """A data set whose class in torchvision holds the images in one array.

    `source`: authors, page and licence. `kind`: name of the class. `padding`: black pixels added at every side.
    `package`: a package of Debian with the IDX files, and the folder it puts them into.
    """

    title: str
    source: str
    kind: str
    files: tuple[DataFile, ...]
    padding: int = 0
    package: tuple[str, Path] | None = None

    @property
    def torchvision(self) -> Any:
        """The class; it knows the URLs and the md5 of every archive."""
        import torchvision  # slow, and not needed for other data

        return getattr(torchvision.datasets, self.kind)


class Split(NamedTuple):
    """uint8 images, grey (N, S, S) or RGB (N, S, S, 3), and int64 labels (N,)."""

    pixels: np.ndarray
    labels: np.ndarray


class Archive(NamedTuple):
    """A file to download: its path below a data folder, where to get it, and its md5."""

    path: str
    urls: tuple[str, ...]
    md5: str


def data_folders() -> list[Path]:
    """Where files are searched for: $IMAGEFOLDER_DATA, ~/.cache/imagefolder/data. The first receives downloads."""
    own = os.environ.get("IMAGEFOLDER_DATA")
    return [*([Path(own)] if own else []), Path.home() / ".cache" / "imagefolder" / "data"]


def read_published(data: Published) -> tuple[Split, Split, list[str]]:
    """Training split, test split and names of the classes.

    Raises:
        DamagedFile: naming a file whose content is not the published one.
        InputError: naming the files that are absent and cannot be downloaded, and where to put them.
    """
    if data.files[0].path.endswith(IDX):
        arrays = [_read_idx(path, file) for path, file in zip(_idx_paths(data), data.files, strict=True)]
        train, test, classes = Split(*arrays[:2]), Split(*arrays[2:]), data.torchvision.classes
    else:
        train, test, classes = _read_with_torchvision(data)
    for split in (train, test):
        if len(split.pixels) != len(split.labels) or not set(split.labels.tolist()) <= set(range(len(classes))):
            raise DamagedFile(f"{data.title}: its images and labels do not belong together; replace the files")
    return train, test, list(classes)


# MNIST and its relatives: training images, training labels, test images and test labels, gzipped or not


def _idx_paths(data: Published) -> list[Path]:
    found = {file: _find(data, file) for file in data.files}
    for file in [file for file, path in found.items() if path is None]:
        found[file] = _download(data, file)
    return [path for path in found.values() if path is not None]


def _find(data: Published, file: DataFile) -> Path | None:
    places = [folder / file.path for folder in data_folders()]
    if data.package is not None:
        places.append(data.package[1] / Path(file.path).name)
    return next((path for place in places for path in (place, Path(f"{place}.gz")) if path.is_file()), None)


def _read_idx(path: Path, file: DataFile) -> np.ndarray:
    """The array in an IDX file: uint8 images or int64 labels."""
    with reading(path, "an IDX file", REMEDY):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            content = opened.read(file.size + 1)
        if len(content) != file.size:
            found = "more" if len(content) > file.size else f"{len(content):,}"
            raise DamagedFile(f"{path}: its content has {found} bytes, not {file.size:,}{REMEDY}")
        if file.sha256 and (found := hashlib.sha256(content).hexdigest()) != file.sha256:
            raise DamagedFile(f"{path}: its content has sha256 {found}, not {file.sha256}{REMEDY}")
        dimensions = content[3]  # in front of their lengths, and those in front of the values
        shape = np.frombuffer(content, ">u4", dimensions, offset=4)
        array = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    return array.astype(np.int64) if dimensions == 1 else array


# The others: torchvision's classes check and read them


def _read_with_torchvision(data: Published) -> tuple[Split, Split, list[str]]:
    kind = data.torchvision
    unpacked = [getattr(kind, "base_folder", file.path) for file in data.files]
    folder = _folder_with(unpacked) or _folder_with([file.path for file in data.files])
    if folder is None:
        folder = data_folders()[0]
        for file in data.files:
            if not (folder / file.path).exists():
                _download(data, file)
    for file, name in zip(data.files, unpacked, strict=True):
        if not (folder / name).exists():
            _unpack(folder / file.path, folder / name, _archive(data, file).md5)
    with reading(folder, data.title):
        try:
            if hasattr(kind, "split_list"):
                train, test = kind(folder, split="train"), kind(folder, split="test")
            else:
                train, test = kind(folder, train=True), kind(folder, train=False)
        except RuntimeError:  # files are missing, or their md5 differs
            what = " or ".join(str(folder / name) for name in unpacked)
            raise DamagedFile(f"{what}: incomplete or damaged{REMEDY}") from None
    return _split(train), _split(test), getattr(train, "classes", [str(digit) for digit in range(10)])


def _folder_with(names: list[str]) -> Path | None:
    return next((folder for folder in data_folders() if all((folder / name).exists() for name in names)), None)


def _split(dataset: Any) -> Split:
    pixels = np.asarray(dataset.data)
    if pixels.shape[1] == 3:  # channels first
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return Split(pixels, np.asarray(labels, np.int64))


def _unpack(archive: Path, target: Path, md5: str) -> None:
    """Unpack the folder `target` from an archive next to it, at once for others that look for it."""
    from torchvision.datasets.utils import check_md5, extract_archive

    if not check_md5(archive, md5):
        raise DamagedFile(f"{archive}: its md5 is not {md5}{REMEDY}")
    with writing(target), tempfile.TemporaryDirectory(dir=archive.parent, prefix=".") as temporary:
        extract_archive(archive, temporary)
        try:
            os.replace(Path(temporary) / target.name, target)
        except OSError:
            if not target.exists():  # else another run was faster
                raise


# Downloads


def _archive(data: Published, file: DataFile) -> Archive:
    kind = data.torchvision
    if hasattr(kind, "resources"):
        name = f"{Path(file.path).name}.gz"
        return Archive(f"{file.path}.gz", tuple(mirror + name for mirror in kind.mirrors), dict(kind.resources)[name])
    if hasattr(kind, "split_list"):
        url, name, md5 = next(entry for entry in kind.split_list.values() if entry[1] == file.path)
        return Archive(name, (url,), md5)
    return Archive(kind.filename, (kind.url,), kind.tgz_md5)


def _download(data: Published, file: DataFile) -> Path:
    """Download a file into the first data folder."""
    from torchvision.datasets.utils import download_url

    archive = _archive(data, file)
    path = data_folders()[0] / archive.path

    def fetch(temporary: Path) -> None:
        problem = ""
        for url in archive.urls:
            console.print(f"{data.title} ({data.source}): downloading {url} to {path}")
            try:
                with _timeout(PATIENCE):
                    return download_url(url, str(temporary.parent), temporary.name, archive.md5)
            except (OSError, RuntimeError, HTTPException) as error:  # RuntimeError: its md5 differs
                problem = problem or f"{url}: {reason(error)}"
        raise InputError(f"{_wanted(data)}; it could not be downloaded ({problem})")

    write_atomically(path, fetch)
    return path


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """The time after which a connection opened by others fails if nothing arrives."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _wanted(data: Published) -> str:
    """Which files are absent, what they are known by, and where to put them."""
    missing = [file for file in data.files if _find(data, file) is None]
    names = ", ".join(_described(file, _archive(data, file)) for file in missing)
    package = f", install Debian's package {data.package[0]}" if data.package is not None else ""
    folder = data_folders()[0]
    return f"{data.title} is not on this machine: put {names} into {folder}{package}, or set IMAGEFOLDER_DATA"


def _described(file: DataFile, archive: Archive) -> str:
    known = f"sha256 {file.sha256}" if file.sha256 else f"md5 {archive.md5}"
    if not file.path.endswith(IDX):
        return f"{file.path} ({file.size:,} bytes, {known})"
    if file.sha256:
        return f"{archive.path} ({file.size:,} bytes unzipped, {known})"
    return f"{archive.path} ({known}; {file.size:,} bytes unzipped)"
