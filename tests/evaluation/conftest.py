"""Extractor weights written by the test, and images to measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from imagefolder import weights
from imagefolder.config import GeneratorConfig, TokenizerConfig
from imagefolder.data.digits import digits
from imagefolder.data.images import ArrayImages, DataSplits, to_float
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.proxy import ProxyNet, proxy_extractor
from imagefolder.files import file_sha256
from imagefolder.generator.model import Generator
from imagefolder.tokenizer.model import Tokenizer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are fastest with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_extractor(path: Path, seed: int, splits: DataSplits) -> Path:
    """Random convolutions and a least-squares classifier of the digits on top: good enough to measure with."""
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
def proxy(extractor: Path) -> Extractor:
    return proxy_extractor(extractor)


@pytest.fixture(scope="session")
def splits() -> DataSplits:
    return digits(32)


@pytest.fixture(scope="session")
def few(splits: DataSplits) -> DataSplits:
    """The first 200 training and 120 test images."""

    def first(images: ArrayImages, number: int) -> ArrayImages:
        return ArrayImages(images.images[:number], images.labels[:number])

    return replace(splits, train=first(splits.train, 200), test=first(splits.test, 120))


def untrained_generator(classes: int) -> Generator:
    """A generator with a tokenizer of 2 x 5 tokens."""
    torch.manual_seed(0)
    tokens = {"branches": 2, "scales": (1, 2), "codebook_size": 16, "code_dim": 4}
    config = TokenizerConfig(
        image_size=32, patch_size=8, backbone="vit_tiny_patch16_224", width=32, depth=1, heads=2, dropout_start=1,
        **tokens,
    )  # fmt: skip
    tokenizer = Tokenizer(config)
    return Generator(GeneratorConfig(depth=1, width=32, heads=2, num_classes=classes, **tokens), tokenizer).eval()


@pytest.fixture(scope="session")
def generator() -> Generator:
    return untrained_generator(10)


@pytest.fixture(scope="session")
def imagenet_generator() -> Generator:
    return untrained_generator(1000)


@pytest.fixture(scope="session")
def two_sets(splits: DataSplits) -> tuple[Tensor, Tensor]:
    """250 digits with noise, and 200 other digits."""
    images, _ = splits.train.__getitems__([(0, i) for i in range(450)])
    noise = torch.randint(-40, 40, images[:250].shape, generator=torch.Generator().manual_seed(0))
    return (images[:250] + noise).clamp(0, 255).to(torch.uint8), images[250:]


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like the published Inception's, with random weights that keep activations at unit scale."""
    from torch_fidelity import feature_extractor_inceptionv3 as published

    class Blank(published.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:
            """There are no weights to load."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "load_state_dict_from_url", lambda *_, **__: {})
        torch.manual_seed(0)
        network = Blank("blank", ["2048"])
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    path = tmp_path_factory.mktemp("weights") / weights.INCEPTION
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def accept(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Search for weights in a file's folder, and accept its hash."""

    def put(path: Path) -> None:
        monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(path.parent))
        entry = replace(weights.FILES[path.name], sha256=file_sha256(path), size=path.stat().st_size)
        monkeypatch.setitem(weights.FILES, path.name, entry)

    return put
