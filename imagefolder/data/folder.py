"""Any image folder in torchvision's layout: DIR/class/image, or DIR/train/class/image beside DIR/val/class/image."""

from __future__ import annotations

import hashlib
import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from imagefolder.data.images import DataSplits, Key
from imagefolder.errors import InputError


@dataclass(frozen=True)
class Sample:
    """One image file, its class index, and the sha256 of its content."""

    path: Path
    label: int
    sha256: str


class FolderImages(Dataset):
    """Image files, cropped to a square; `crop_from` > 1 and `flip` augment."""

    workers = 2

    def __init__(self, samples: list[Sample], image_size: int, crop_from: float = 1.0, flip: bool = False) -> None:
        self.samples, self.image_size, self.crop_from, self.flip = samples, image_size, crop_from, flip
        self.labels = torch.tensor([sample.label for sample in samples])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        arrays = [self._load(epoch, index) for epoch, index in keys]
        images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        return images, self.labels[[index for _, index in keys]]

    def plain(self) -> FolderImages:
        """The same files, centre-cropped."""
        return FolderImages(self.samples, self.image_size)

    def fingerprint(self) -> str:
        """sha256 over class, name and content of every file."""
        lines = (f"{sample.label}/{sample.path.name}:{sample.sha256}\n" for sample in self.samples)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _load(self, epoch: int, index: int) -> np.ndarray:
        image = open_rgb(self.samples[index].path)
        if self.crop_from <= 1:
            return center_crop(image, self.image_size)
        rng = random.Random(f"{epoch}:{index}")  # augmentation depends on the image and the epoch, not on workers
        array = random_crop(image, self.image_size, self.crop_from, rng)
        return array[:, ::-1] if self.flip and rng.random() < 0.5 else array


def image_folder(root: Path, image_size: int, skip_corrupt: bool = False) -> DataSplits:
    """Read an image folder, checking every file once.

    Args:
        root: with `train/` and `val/` inside these are the splits; otherwise a fixed fifth of every class (chosen by
            the hash of the file's name) is the test split.
        image_size: side of the square crops.
        skip_corrupt: leave unreadable training images out instead of failing. Test images are never left out, since
            the reference of a metric would change silently.

    Raises:
        InputError: naming the folder, class or files at fault.
    """
    if not root.is_dir():
        raise InputError(f"data folder {root} does not exist or is not a folder")
    if (root / "train").is_dir() and (root / "val").is_dir():
        classes, train = _scan(root / "train")
        test_classes, test = _scan(root / "val")
        if classes != test_classes:
            odd = sorted(set(classes) ^ set(test_classes))
            raise InputError(f"{root}: train and val have different classes: {', '.join(odd[:5])}")
    else:
        classes, files = _scan(root)
        train, test = _split(files)
    good_train, bad_train = _inspect(train)
    good_test, bad_test = _inspect(test)
    if bad_test or (bad_train and not skip_corrupt):
        bad = bad_train + bad_test
        hint = "" if bad_test else ", or pass --skip-corrupt to train without them"
        raise InputError(f"{len(bad)} corrupt image(s), repair or remove them{hint}: {', '.join(map(str, bad[:5]))}")
    if bad_train:
        print(f"skipping {len(bad_train)} corrupt training image(s): {', '.join(map(str, bad_train))}", flush=True)
    missing = sorted(set(range(len(classes))) - {sample.label for sample in good_train})
    if missing:
        raise InputError(f"{root}: class {classes[missing[0]]!r} has no readable training image")
    if not good_test:
        raise InputError(f"{root}: no test images; a class needs at least 2 images, or use train/ and val/ folders")
    return DataSplits(
        name=root.resolve().name,
        train=FolderImages(good_train, image_size, crop_from=1.125, flip=True),
        test=FolderImages(good_test, image_size),
        classes=classes,
        image_size=image_size,
    )


def open_rgb(path: Path) -> Image.Image:
    """A file as RGB; `InputError` naming the file if it is no readable image."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip instead of scaling
                image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable image ({error})") from None


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM's centre crop: box halving while twice too large, bicubic to the shorter side, centre. uint8 (H, W, 3)."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    top, left = (image.height - size) // 2, (image.width - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


def random_crop(image: Image.Image, size: int, crop_from: float, rng: random.Random) -> np.ndarray:
    """Shorter side to crop_from x size (Lanczos), then a random square. uint8 (H, W, 3)."""
    scale = round(size * crop_from) / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    top, left = rng.randint(0, image.height - size), rng.randint(0, image.width - size)
    return np.asarray(image)[top : top + size, left : left + size]


def _scan(folder: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """Class names and all (file, class index) of a folder of class folders, sorted."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise InputError(f"data folder {folder} is empty or has no class folders (expected {folder}/CLASS/IMAGE)")
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
        if not found:
            raise InputError(f"class folder {folder / name} holds no images ({', '.join(IMG_EXTENSIONS)})")
        files += [(path, label) for path in found]
    return classes, files


def _split(files: list[tuple[Path, int]]) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """A fixed fifth of every class (at least one of two images) for testing, chosen by the hash of the file name."""
    train, test = [], []
    for _, group in itertools.groupby(files, key=lambda file: file[1]):
        by_hash = sorted(group, key=lambda file: hashlib.sha256(file[0].name.encode()).digest())
        number = max(len(by_hash) // 5, 1) if len(by_hash) > 1 else 0
        test += sorted(by_hash[:number])
        train += sorted(by_hash[number:])
    return train, test


def _inspect(files: list[tuple[Path, int]]) -> tuple[list[Sample], list[Path]]:
    """Read and decode every file once: the good ones with their hash, and the corrupt ones."""

    def look(file: tuple[Path, int]) -> Sample | Path:
        path, label = file
        try:
            open_rgb(path)
            return Sample(path, label, hashlib.sha256(path.read_bytes()).hexdigest())
        except (InputError, OSError):
            return path

    with ThreadPoolExecutor() as pool:
        looked = list(track(pool.map(look, files), "checking images", total=len(files), transient=True))
    return [r for r in looked if isinstance(r, Sample)], [r for r in looked if isinstance(r, Path)]
