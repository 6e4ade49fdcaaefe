"""Extractor weights written by the test, and images to measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from imagefolder.data.digits import digits
from imagefolder.data.images import DataSplits, to_float
from imagefolder.evaluation.extractor import ProxyNet


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are fastest with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_extractor(path: Path, seed: int, splits: DataSplits) -> Path:
    """Random convolutions, and on top the least-squares classifier of the digits: good enough to measure with."""
    images, labels = splits.train.__getitems__([(0, i) for i in range(600)])
    torch.manual_seed(seed)
    net = ProxyNet(10).train()
    with torch.no_grad():
        for _ in range(30):
            net(to_float(images[:64]))  # the statistics of batch normalisation
        features = net.eval()(to_float(images))[0].double()
        mean = features.mean(0)
        targets = 12 * torch.nn.functional.one_hot(labels, 10).double() - 6
        solution = torch.linalg.lstsq(features - mean, targets - targets.mean(0)).solution
        net.head.weight.copy_(solution.T)
        net.head.bias.copy_(targets.mean(0) - mean @ solution)
    save_file(net.state_dict(), path)
    return path


@pytest.fixture
def extractor_at(splits: DataSplits) -> Callable[[Path, int], Path]:
    return lambda path, seed: write_extractor(path, seed, splits)


@pytest.fixture(scope="session")
def extractor(tmp_path_factory: pytest.TempPathFactory, splits: DataSplits) -> Path:
    return write_extractor(tmp_path_factory.mktemp("extractor") / "extractor.safetensors", 0, splits)


@pytest.fixture(scope="session")
def splits() -> DataSplits:
    return digits(32)


@pytest.fixture(scope="session")
def two_sets(splits: DataSplits) -> tuple[Tensor, Tensor]:
    """250 digits with noise, and 200 other digits."""
    images, _ = splits.train.__getitems__([(0, i) for i in range(450)])
    noise = torch.randint(-40, 40, images[:250].shape, generator=torch.Generator().manual_seed(0))
    return (images[:250] + noise).clamp(0, 255).to(torch.uint8), images[250:]
