"""Fixtures of the tests of datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imagefolder.data.rows import location
from imagefolder.data.stored import StoredImages


def files_of(images: StoredImages) -> list[Path]:
    """The files of a split, in order."""
    return [Path(location(images.root, row)) for row in images.rows]


@pytest.fixture
def pixels(tmp_path: Path, image_at: Callable[..., Path]) -> bytes:
    """An image file."""
    return image_at(tmp_path / "x.png", 1).read_bytes()


@pytest.fixture
def paths() -> Callable[[StoredImages], list[Path]]:
    return files_of
