"""Any torch data set as the images of a training: items checked, made 8-bit, and read with seeded random numbers."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, default_collate
from torch.utils.data.distributed import DistributedSampler

from imagefolder.config import TrainingConfig
from imagefolder.data.batches import Batches
from imagefolder.data.images import Key, to_uint8
from imagefolder.data.pictures import read_image
from imagefolder.distributed import is_main
from imagefolder.errors import InputError
from imagefolder.progress import Phase, console

INSPECTED = 64  # items read before a training, spread over the data set
READ_AT_ONCE = 100
TOLERANCE = 1e-3  # of the limits of values
KINDS = "a PIL image, a uint8 array (H, W, 3), a uint8 tensor (3, H, W), or a float tensor in [0, 1] or [-1, 1]"


class DatasetImages(Dataset):
    """The items (image, label) of a torch data set as uint8 images and labels.

    PIL images and uint8 arrays get the published centre crop; tensors, uint8 or float, must have the right size. Float
    tensors lie in [-1, 1] if one of the items read beforehand has a value below 0, and otherwise in [0, 1], as from
    torchvision; an item outside of that range is an error. They are rounded to 8 bits.

    Augmentation is the data set's own. While an item is read, the random numbers of torch, numpy and `random` are
    seeded by (seed, epoch, index), so that a resumed training sees the same images.

    Raises:
        InputError: here, or when a batch is fetched: the data set has no length or order, or an item is not (image,
            label) of the right kinds, size and range. The message names the item.
    """

    transform = "of the data set"
    labels: Tensor
    """int64 (N,), once `read_labels` was called"""

    def __init__(self, dataset: Dataset, image_size: int, *, workers: int = 0, seed: int = 0) -> None:
        if (
            isinstance(dataset, IterableDataset)
            or not hasattr(dataset, "__len__")
            or not hasattr(dataset, "__getitem__")
        ):
            raise InputError(
                f"{type(dataset).__name__} has no items by number: trainings need a data set with len(dataset) and "
                "dataset[i]"
            )
        self.dataset, self.image_size, self.workers, self.seed = dataset, image_size, workers, seed
        self.number = len(dataset)  # pyright: ignore[reportArgumentType] (checked above)
        if not self.number:
            raise InputError(f"{type(dataset).__name__} is empty")
        self.name, self.black = type(dataset).__name__, -1
        self._inspect()

    def __len__(self) -> int:
        return self.number

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        items = [self._item(epoch, index) for epoch, index in keys]
        images = torch.stack([self._pixels(image, index) for (image, _), (_, index) in zip(items, keys, strict=True)])
        return images, torch.tensor([label for _, label in items])

    def read_labels(self) -> None:
        """Set `labels`; all items are read once."""
        starts, found = range(0, len(self), READ_AT_ONCE), []
        keys = [[(0, i) for i in range(start, min(start + READ_AT_ONCE, len(self)))] for start in starts]
        with Phase(f"{self.name}: reading labels", len(self)) as phase:
            for _, labels in Batches(self, keys):
                found.append(labels)
                phase.update(phase.done + len(labels))
        self.labels = torch.cat(found)

    def plain(self) -> DatasetImages:
        return self

    def augmented(self, training: Literal["tokenizer", "generator"], seed: int = 0) -> DatasetImages:
        return self

    def fingerprint(self) -> str:
        """sha256 of the number of items and of the ones read beforehand."""
        return self._sha256

    def verify(self) -> None:
        """What a data set reads is its own affair."""

    def _inspect(self) -> None:
        """Find the range of float images and the identity of the data set from items spread over all of it."""
        number = min(INSPECTED, len(self))
        places = [i * (len(self) - 1) // max(number - 1, 1) for i in range(number)]
        items = [self._item(0, place) for place in places]
        lows = [
            float(image.min())
            for image, _ in items
            if isinstance(image, Tensor) and image.is_floating_point() and image.numel()
        ]
        if lows and min(lows) >= -TOLERANCE:
            self.black = 0
            _print(f"{self.name}: float images in [0, 1] (none of the {len(lows)} looked at has a value below 0)")
        pixels = self._digest(items, places)
        if pixels != self._digest([self._item(0, place) for place in places], places):
            pixels = ""
            _print(
                f"{self.name}: draws random numbers other than those of torch, numpy and random, so a resumed training "
                "will not see the images of an uninterrupted one"
            )
        text = f"{len(self)}:{[label for _, label in items]}:{pixels}"
        self._sha256 = hashlib.sha256(text.encode()).hexdigest()

    def _digest(self, items: list[tuple[Any, int]], places: list[int]) -> str:
        """sha256 of the pixels of items."""
        pixels = [self._pixels(image, place) for (image, _), place in zip(items, places, strict=True)]
        return hashlib.sha256(torch.stack(pixels).numpy().tobytes()).hexdigest()

    def _item(self, epoch: int, index: int) -> tuple[Any, int]:
        """Image and label, as the data set gives them."""
        with _seeded(f"{self.seed}:{epoch}:{index}"):
            item: Any = self.dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(f"item {index} of the data set must be (image, label), not {_what(item)}")
        label = item[1].item() if isinstance(item[1], Tensor) and item[1].numel() == 1 else item[1]
        if not isinstance(label, Integral) or isinstance(label, bool) or int(label) < 0:
            raise InputError(
                f"item {index} of the data set: its label must be an integer from 0 on, not {_what(label)}"
            )
        return item[0], int(label)

    def _pixels(self, image: Any, index: int) -> Tensor:
        """uint8 (3, H, W)."""
        where = f"item {index} of the data set"
        if isinstance(image, Image.Image | np.ndarray):
            try:
                return to_uint8(read_image(image, self.image_size))
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
        if not isinstance(image, Tensor):
            raise InputError(f"{where}: its image must be {KINDS}, not {_what(image)}")
        side = self.image_size
        if image.ndim != 3 or image.shape[0] not in (1, 3) or tuple(image.shape[1:]) != (side, side):
            raise InputError(
                f"{where}: its image must have the shape (3, {side}, {side}), not {tuple(image.shape)}; resize and "
                "crop in the data set's transform"
            )
        image = image.detach().cpu().expand(3, -1, -1)
        if image.dtype == torch.uint8:
            return image.contiguous()
        if not image.is_floating_point():
            raise InputError(f"{where}: its image must be {KINDS}, not a tensor of {str(image.dtype)[6:]}")
        low, high = torch.stack(torch.aminmax(image.float())).tolist()
        if not (low >= self.black - TOLERANCE and high <= 1 + TOLERANCE):  # written so that NaN fails
            raise InputError(
                f"{where}: its values are {low:.4g} to {high:.4g}, outside the range [{self.black}, 1] of the items "
                "read before; leave out normalisation by mean and standard deviation, and give 8-bit values as uint8"
            )
        image = image.float().clamp(self.black, 1)
        return to_uint8(image if self.black else 2 * image - 1)


def open_dataset(
    data: Dataset | DataLoader, image_size: int, training: TrainingConfig, seed: int
) -> tuple[DatasetImages, TrainingConfig]:
    """The images of a data set or loader, and the training with the loader's batch size.

    Of a loader, data set, batch size and number of workers are used. The order is that of the training, a new
    permutation in every epoch, which can be resumed.

    Raises:
        InputError: as for `DatasetImages`, or the loader chooses or changes the items in ways of its own.
    """
    if not isinstance(data, DataLoader):
        if not isinstance(data, Dataset) and not hasattr(data, "__getitem__"):
            raise InputError(f"train on a torch Dataset or DataLoader, not on {_what(data)}")
        return DatasetImages(data, image_size, seed=seed), training
    if isinstance(data.dataset, IterableDataset):
        return DatasetImages(data.dataset, image_size), training  # raises
    if data.batch_size is None or not isinstance(data.sampler, RandomSampler | SequentialSampler | DistributedSampler):
        raise InputError(
            f"the DataLoader chooses items by its own {type(data.batch_sampler or data.sampler).__name__}, which a "
            "resumed training cannot repeat; pass a Dataset (torch.utils.data.Subset for some of its items)"
        )
    if data.collate_fn is not default_collate:
        raise InputError("the DataLoader has its own collate_fn; do its work in the Dataset, and pass that")
    _print(
        f"DataLoader: using its data set, batch size {data.batch_size} and {data.num_workers} workers; the order of "
        "items is the training's own, so that it can be resumed"
    )
    images = DatasetImages(data.dataset, image_size, workers=data.num_workers, seed=seed)
    return images, replace(training, batch_size=data.batch_size)


@contextlib.contextmanager
def _seeded(text: str) -> Iterator[None]:
    """Seed the random numbers that data sets draw, and restore them afterwards."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (what others draw)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def _print(text: str) -> None:
    if is_main():
        console.print(text)


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype)[6:]} {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{value!r:.40}" if isinstance(value, Integral | float | str) else f"of type {type(value).__name__}"
