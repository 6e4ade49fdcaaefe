"""What tests of data sets ask of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imagefolder.data.stored import StoredImages, location


def files_of(images: StoredImages) -> list[Path]:
    """The files of a split, in order."""
    return [Path(location(images.root, row)) for row in images.rows]


@pytest.fixture
def paths() -> Callable[[StoredImages], list[Path]]:
    return files_of
