"""Image folders drawn for one test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagefolder.data.stored import StoredImages, location


def draw(path: Path, seed: int, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> Path:
    """Noise of (width, height) in a mode of PIL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def draw_classes(root: Path, classes: dict[str, int], seed: int = 0) -> Path:
    """Class folders with numbered images below `root`."""
    for position, (name, number) in enumerate(classes.items()):
        for i in range(number):
            draw(root / name / f"{i:03}.png", seed + 1000 * position + i)
    return root


def files_of(images: StoredImages) -> list[Path]:
    """The files of a split, in order."""
    return [Path(location(images.root, row)) for row in images.rows]


@pytest.fixture
def paths() -> Callable[[StoredImages], list[Path]]:
    return files_of


@pytest.fixture
def image_at() -> Callable[..., Path]:
    return draw


@pytest.fixture
def classes_at() -> Callable[..., Path]:
    return draw_classes
