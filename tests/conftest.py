"""Which tests run by default, and image folders that tests draw."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def pytest_configure(config: pytest.Config) -> None:
    """Models this small are fastest with one thread. Benchmarks measure with all of them, and with memory as the
    commands have it, which is settled before test modules make tensors."""
    if config.getoption("--benchmark-only"):
        from imagefolder.environment import tune_allocator

        tune_allocator()
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that take minutes (`slow`, `faults`) or need optional packages (`extras`), unless `-m` selects
    them: `pytest -m slow`."""
    for marker in ("slow", "faults", "extras"):
        if marker in config.getoption("markexpr"):
            continue
        left_out = [item for item in items if item.get_closest_marker(marker) is not None]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item.get_closest_marker(marker) is None]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Collections of garbage, of which a row's timing makes three, skip the hundreds of thousands of objects of
    imported modules: they take milliseconds instead of half a second."""
    gc.freeze()


def draw(path: Path, seed: int, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> Path:
    """Write noise of `size` (width, height) in a mode of PIL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def draw_classes(root: Path, classes: dict[str, int], seed: int = 0) -> Path:
    """Write class folders with numbered images below `root`."""
    for position, (name, number) in enumerate(classes.items()):
        for i in range(number):
            draw(root / name / f"{i:03}.png", seed + 1000 * position + i)
    return root


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks are fastest with one thread, identical runs give identical bits, and forks inherit no pool."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def image_at() -> Callable[..., Path]:
    return draw


@pytest.fixture
def classes_at() -> Callable[..., Path]:
    return draw_classes
