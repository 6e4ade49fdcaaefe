from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from make_records import REPORTED_CSV, make_failed, make_metric, make_record
from PIL import Image

from leaderboard.record import Metric, Record

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def make() -> Callable[..., Record]:
    return make_record


@pytest.fixture
def metric() -> Callable[..., Metric]:
    return make_metric


@pytest.fixture
def failed() -> Callable[..., Record]:
    return make_failed


@pytest.fixture
def reported_csv() -> Path:
    return REPORTED_CSV


@pytest.fixture
def output(tmp_path: Path) -> tuple[Path, list[Record]]:
    """An output folder with the pictures of its records: two rows with three seeds, one failed row."""
    records = [make_record("imagefolder", seed, 2.0 + seed) for seed in range(3)]
    records += [make_record("var", seed, 2.5 + seed / 10) for seed in range(3)]
    records += [make_failed()]
    (tmp_path / "pictures").mkdir()
    for i, record in enumerate(records):
        for path in record.pictures.values():
            image = Image.new("L", (64, 64), 255 - 30 * i)
            image.paste(60, (8, 8, 24 + 4 * i, 56))
            image.save(tmp_path / path)
    return tmp_path, records


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from pages import chromium

    with chromium() as found:
        yield found
