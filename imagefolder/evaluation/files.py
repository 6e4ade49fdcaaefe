"""Images in files, as other tools write them: a folder of PNGs, or an npz with `arr_0` uint8 (N, H, W, 3).

They are read in batches: sets larger than the memory are no problem.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from imagefolder.distributed import gather_objects, my_part
from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.statistics import Statistics, measure

BATCH = 50


class FileImages(Protocol):
    """A set of images in files, all of one size (height, width), in a fixed order."""

    path: Path
    size: tuple[int, int]

    def __len__(self) -> int: ...
    def batches(self, part: range) -> Iterator[Tensor]:
        """The images of a contiguous range of indices: uint8 (B, 3, H, W)."""
        ...


def open_images(path: Path) -> FileImages:
    """The images of a folder or npz; `InputError` naming the file where they cannot be measured as they are."""
    if path.is_dir():
        return PngFolder(path)
    if path.is_file():
        return NpzImages(path)
    raise InputError(f"{path} does not exist; give a folder of PNG files or an npz")


class PngFolder:
    """All PNG files below a folder, ordered by path."""

    def __init__(self, path: Path) -> None:
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in (*IMG_EXTENSIONS, ".jfif"))
        other = next((file for file in files if file.suffix.lower() != ".png"), None)
        if other is not None:
            raise InputError(
                f"{other}: not a PNG file; lossy formats such as JPEG change the numbers, so save images as PNG"
            )
        if not files:
            raise InputError(f"{path} holds no PNG files")
        self.path, self.files = path, files
        self.size = self._load(files[0]).shape[:2]

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, part: range) -> Iterator[Tensor]:
        for start in range(part.start, part.stop, BATCH):
            files = self.files[start : min(start + BATCH, part.stop)]
            arrays = [self._load(file) for file in files]
            for file, array in zip(files, arrays, strict=True):
                if array.shape[:2] != self.size:
                    raise InputError(f"{file}: {_text(array.shape)} pixels, but {self.files[0]} has {_text(self.size)}")
            yield _channels_first(np.stack(arrays))

    def _load(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                if image.format != "PNG":
                    raise InputError(f"{path}: {image.format} data in a file named PNG; save images as PNG")
                if image.mode not in ("RGB", "L", "P", "1") or "transparency" in image.info:
                    raise InputError(f"{path}: {image.mode} image; only 8-bit images without transparency are measured")
                return np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: not a readable image ({error})") from None


class NpzImages:
    """The array `arr_0` of an npz, read from inside the archive as it is needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
                shape, self.start = _npy_header(file)
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: no npz with images in arr_0 ({error})") from None
        self.number, *size, _ = shape
        self.size = tuple(size)

    def __len__(self) -> int:
        return self.number

    def batches(self, part: range) -> Iterator[Tensor]:
        height, width = self.size
        image = height * width * 3
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
                file.seek(self.start + part.start * image)
                for start in range(part.start, part.stop, BATCH):
                    count = min(BATCH, part.stop - start)
                    data = file.read(count * image)
                    if len(data) < count * image:
                        raise InputError(f"{self.path}: arr_0 ends after {start + len(data) // image} images")
                    array = np.frombuffer(bytearray(data), np.uint8).reshape(count, height, width, 3)
                    yield _channels_first(array)
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path}: damaged ({error}); copy it again") from None


def measure_files(images: FileImages, extractor: Extractor, title: str, keep: bool) -> tuple[Statistics, str]:
    """Statistics of images in files, and the sha256 over their pixels, which knows no file format."""
    digests: list[bytes] = []

    def batches() -> Iterator[Tensor]:
        for batch in images.batches(my_part(len(images))):
            digests.extend(hashlib.sha256(image.numpy()).digest() for image in batch)
            yield batch

    statistics = measure(batches(), extractor, len(images), title, keep)
    whole = b"".join(digest for part in gather_objects(digests) for digest in part)
    return statistics, hashlib.sha256(whole).hexdigest()


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], int]:
    """Shape of the images in an opened `.npy`, and where they begin; ValueError if they are no images."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or fortran:
        raise ValueError(f"it is {dtype} {shape}, not uint8 (N, H, W, 3)")
    return shape, file.tell()


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _text(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
