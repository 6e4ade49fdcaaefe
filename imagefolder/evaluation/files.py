"""Images in files, as other tools write them: a folder of PNGs, or an npz with `arr_0` uint8 (N, H, W, 3).

They are read batch by batch; a set may be larger than memory.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from imagefolder.data.disk import IMAGE_SUFFIXES, File, Walk, read_unchanged, say, stamp
from imagefolder.data.transforms import MOST_PIXELS, is_16_bit_png, open_bounded
from imagefolder.distributed import gather_objects, my_part
from imagefolder.errors import InputError, reason
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.statistics import Statistics, measure
from imagefolder.files import reading

BATCH = 50
MOST_IMAGES = 2**24  # in an npz; its header may claim any number, and statistics need a few bytes per image
IMAGES = (*IMAGE_SUFFIXES, ".jfif")
DAMAGED = "; it is damaged, copy it again"
JPEG_MAGIC = b"\xff\xd8\xff"


def open_images(path: Path) -> PngFolder | NpzImages:
    """The images of a folder or npz; an `InputError` names the file that cannot be measured as it is."""
    if path.is_dir():
        return PngFolder(path)
    if path.is_file():
        return NpzImages(path)
    what = "is neither a folder nor a file" if os.path.lexists(path) else "does not exist"
    raise InputError(f"{path} {what}; give a folder of PNG files or an npz")


class PngFolder:
    """All PNG files below a folder, ordered by path. Links to folders are followed; hidden files are skipped.

    `size` (height, width) is that of all images.
    """

    def __init__(self, path: Path) -> None:
        walk = Walk(path)
        files = sorted(walk.files("", IMAGES), key=lambda file: Path(os.fsdecode(file[0])))
        for name, *_ in files:
            if not name.lower().endswith(b".png"):
                file = path / os.fsdecode(name)
                what = "not a PNG file; lossy formats such as JPEG change the numbers, so save images as PNG"
                raise InputError(f"{file}: {what if file.exists() else 'broken link'}")
        if not files:
            raise InputError(f"{path} holds no PNG files")
        left_out = [f"{number:,} {kind}" for kind, number in walk.left_out.items() if number]
        if left_out:
            say(f"{path}: {len(files):,} PNG files; left out: {', '.join(left_out)}")
        self.path, self.files = path, files
        self.size = self._load(files[0]).shape[:2]

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, part: range) -> Iterator[Tensor]:
        """Images of a contiguous range of indices: uint8 (B, 3, H, W); B is smaller for very large images.

        Raises:
            InputError: a file is damaged, or changed after it was opened.
        """
        step = _batch(self.size)
        for start in range(part.start, part.stop, step):
            files = self.files[start : min(start + step, part.stop)]
            arrays = [self._load(file) for file in files]
            for file, array in zip(files, arrays, strict=True):
                if array.shape[:2] != self.size:
                    first = self.path / os.fsdecode(self.files[0][0])
                    raise InputError(
                        f"{self.path / os.fsdecode(file[0])}: {_text(array.shape)} pixels, but {first} has "
                        f"{_text(self.size)}"
                    )
            yield _channels_first(np.stack(arrays))

    def _load(self, file: File) -> np.ndarray:
        """uint8 (H, W, 3)."""
        path, known = self.path / os.fsdecode(file.name), (file.size, file.mtime, file.ctime)
        data = read_unchanged(path, known, offset=0, size=file.size, origin=str(path))
        if data.startswith(JPEG_MAGIC):
            raise InputError(f"{path}: JPEG data in a file named PNG; save images as PNG")
        try:
            with open_bounded(io.BytesIO(data), ("PNG",)) as image:
                deep = is_16_bit_png(data)
                if deep or image.mode not in ("RGB", "L", "P", "1") or image.has_transparency_data:
                    raise InputError(
                        f"{path}: {image.mode} image{' of 16 bits' if deep else ''}; only 8-bit images without "
                        "transparency are measured"
                    )
                return np.asarray(image.convert("RGB"))
        except (InputError, MemoryError):
            raise
        except Exception as error:  # decoders raise almost anything on damaged files
            raise InputError(f"{path}: not a readable image ({reason(error)})") from None


class NpzImages:
    """The array `arr_0` of an npz, read from the archive batch by batch; the interface is that of `PngFolder`."""

    def __init__(self, path: Path) -> None:
        self.path, self._stamp = path, stamp(path.stat())
        with (
            reading(path, "an npz with images in arr_0"),
            zipfile.ZipFile(path) as archive,
            archive.open("arr_0.npy") as file,
        ):
            shape, fortran, dtype = npy_header(file)
            if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or fortran:
                raise ValueError(f"it is {dtype} {shape}, not uint8 (N, H, W, 3)")
            number, height, width, _ = shape
            if not 0 <= number <= MOST_IMAGES or min(height, width) < 1 or height * width > MOST_PIXELS:
                raise ValueError(f"{number:,} images of {width:,} x {height:,} pixels")
            self.start = file.tell()
            whole = (archive.getinfo("arr_0.npy").file_size - self.start) // (height * width * 3)
            if whole < number:
                raise ValueError(f"arr_0 ends after {whole:,} of {number:,} images")
        self.number, self.size = number, (height, width)

    def __len__(self) -> int:
        return self.number

    def batches(self, part: range) -> Iterator[Tensor]:
        height, width = self.size
        image, step = height * width * 3, _batch(self.size)
        self._require_unchanged()
        with (
            reading(self.path, "images", DAMAGED),
            zipfile.ZipFile(self.path) as archive,
            archive.open("arr_0.npy") as file,
        ):
            file.seek(self.start + part.start * image)
            for start in range(part.start, part.stop, step):
                count = min(step, part.stop - start)
                data = file.read(count * image)
                if len(data) < count * image:
                    raise ValueError(f"arr_0 ends after {start + len(data) // image} images")
                array = np.frombuffer(bytearray(data), np.uint8).reshape(count, height, width, 3)
                yield _channels_first(array)
        self._require_unchanged()

    def _require_unchanged(self) -> None:
        if not self.path.exists() or stamp(self.path.stat()) != self._stamp:
            raise InputError(f"{self.path}: changed since it was opened; start again")


def measure_files(
    images: PngFolder | NpzImages, extractors: Sequence[Extractor], title: str, keep: bool
) -> tuple[list[Statistics], str]:
    """Statistics of images in files, one per extractor, and the sha256 over their pixels, whatever their format."""
    digests: list[bytes] = []

    def batches() -> Iterator[Tensor]:
        for batch in images.batches(my_part(len(images))):
            digests.extend(pixel_digests(batch))
            yield batch

    statistics = measure(batches(), extractors, len(images), title, keep)
    return statistics, pixels_sha256([digest for part in gather_objects(digests) for digest in part])


def in_batches(images: PngFolder | NpzImages, size: int) -> Iterator[Tensor]:
    """All images in batches of one size, the last one smaller, whatever the batches they are read in."""
    waiting: list[Tensor] = []
    for batch in images.batches(range(len(images))):
        for image in batch:
            waiting.append(image)
            if len(waiting) == size:
                yield torch.stack(waiting)
                waiting = []
    if waiting:
        yield torch.stack(waiting)


def pixel_digests(images: Tensor) -> list[bytes]:
    """sha256 of each image's pixels, uint8 (B, 3, H, W)."""
    return [hashlib.sha256(image.contiguous().numpy().data).digest() for image in images]


def pixels_sha256(digests: Iterable[bytes]) -> str:
    """sha256 over the pixels of a set of images, from the `pixel_digests` of all its images in their order."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def read_labels(path: Path, number: int) -> np.ndarray | None:
    """The labels beside images in files, int64 (number,): `arr_1` of an npz, `labels.npy` in a folder; None without.

    Raises:
        InputError: they are no integers, or not one for each image.
    """
    if path.is_dir():
        if not (file := path / "labels.npy").exists():
            return None
        with reading(file, "labels"), file.open("rb") as opened:
            return _read_labels(opened, number)
    with reading(path, "an npz with labels in arr_1"), zipfile.ZipFile(path) as archive:
        if "arr_1.npy" not in archive.namelist():
            return None
        with archive.open("arr_1.npy") as opened:
            return _read_labels(opened, number)


def _read_labels(file: IO[bytes], number: int) -> np.ndarray:
    """ValueError for any other array, before it is read."""
    start = file.tell()
    shape, _, dtype = npy_header(file)
    if dtype.kind not in "iu" or shape != (number,):
        raise ValueError(f"labels are {dtype} {shape}, not an integer for each of {number:,} images")
    file.seek(start)
    return npy.read_array(file, allow_pickle=False).astype(np.int64)


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of the array in an opened `.npy`; ValueError if it is not one."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        return read(file)
    except Exception as error:  # Python's parser on a broken header; nested brackets raise MemoryError
        raise ValueError(f"its header is not readable ({reason(error)})") from None


def _batch(size: tuple[int, int]) -> int:
    """Number of images of a size that are read at once."""
    return max(1, min(BATCH, MOST_PIXELS // (size[0] * size[1])))


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _text(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
