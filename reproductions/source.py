"""The images of a row: where they come from, and their description in records."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from imagefolder.data.builtin import BUILTIN, read_builtin
from imagefolder.data.folder import read_data
from imagefolder.data.images import DataSplits
from leaderboard.record import Dataset


@dataclass(frozen=True)
class Source:
    """Where images come from. Every process reads them itself: data may be large, their description is small."""

    data: str
    """the name of a built-in data set, or an absolute path"""
    image_size: int
    skip_corrupt: bool = False
    index: Path | None = None


@functools.lru_cache(maxsize=1)
def read_splits(source: Source) -> DataSplits:
    """The images of a source, read once per process."""
    if source.data in BUILTIN:
        return read_builtin(source.data, source.image_size)
    return read_data(Path(source.data), source.image_size, skip_corrupt=source.skip_corrupt, index=source.index)


def describe(splits: DataSplits) -> Dataset:
    """The description of the images in a record."""
    return Dataset(
        name=splits.name,
        sha256=splits.sha256,
        n_train=len(splits.train),
        n_test=len(splits.test),
        classes=len(splits.classes),
        image_size=splits.image_size,
        left_out=splits.left_out,
    )
