"""Previews: metrics of a few images in the curve of a training, which they leave as it is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import RUN
from torch import Tensor

from imagefolder.config import GeneratorConfig, LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.data.digits import digits
from imagefolder.data.images import ArrayImages
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.preview import preview_reconstructions, preview_samples
from imagefolder.evaluation.proxy import ProxyNet, proxy_extractor
from imagefolder.generator.model import Generator
from imagefolder.progress import Event, display, send_to
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.training.curve import Preview
from imagefolder.training.generator import train_generator
from imagefolder.training.tokenizer import train_tokenizer

Train = Callable[[Path, Preview | None], None]
SAMPLED = {"proxy-gFID (20 samples)", "proxy-gKID (20 samples)"}
RECONSTRUCTED = {"proxy-rFID (20 images)", "proxy-rKID (20 images)"}


@pytest.fixture
def proxy(tmp_path: Path) -> Extractor:
    torch.manual_seed(0)
    save_file(ProxyNet(10).state_dict(), tmp_path / "extractor.safetensors")
    return proxy_extractor(tmp_path / "extractor.safetensors")


@pytest.fixture
def train(generator_config: GeneratorConfig, training: TrainingConfig, tokenizer: Tokenizer) -> Train:
    """Train a generator for 8 steps; states are saved after steps 3 and 6."""
    draws = torch.Generator().manual_seed(0)
    tokens = ArrayImages(torch.randint(64, (50, 2, 14), generator=draws), torch.randint(10, (50,), generator=draws))

    def run(folder: Path, preview: Preview | None) -> None:
        train_generator(
            generator_config, tokens, folder, tokenizer=tokenizer, training=training, preview=preview, **RUN
        )

    return run


@pytest.fixture
def of_samples(proxy: Extractor) -> Preview:
    return Preview(2, preview_samples(digits(32), lambda: proxy, number=20, seed=0, batch_size=10))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def points(folder: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return {point.pop("step"): point for point in lines}


def test_a_previewed_generator_has_the_same_weights(tmp_path: Path, train: Train, of_samples: Preview) -> None:
    train(tmp_path / "with", of_samples)
    train(tmp_path / "without", None)
    assert same(weights(tmp_path / "with"), weights(tmp_path / "without"))
    curve, plain = points(tmp_path / "with"), points(tmp_path / "without")
    assert [step for step in curve if curve[step].keys() >= SAMPLED] == [2, 4, 6, 8]
    assert len({curve[step]["proxy-gFID (20 samples)"] for step in (2, 4, 6, 8)}) == 4
    assert not any("proxy" in name for name in curve[3])
    for step, losses in plain.items():
        assert {name: curve[step][name] for name in losses} == losses


def test_a_previewed_tokenizer_has_the_same_weights(
    tmp_path: Path,
    tokenizer_config: TokenizerConfig,
    training: TrainingConfig,
    whole_objective: LossConfig,
    train_digits: ArrayImages,
    proxy: Extractor,
) -> None:
    """With stochastic depth, quantizer dropout and a discriminator, all of which draw random numbers."""
    measure = preview_reconstructions(digits(32), lambda: proxy, number=20)
    for name, preview in (("with", Preview(2, measure)), ("without", None)):
        options = {"training": training, "loss": whole_objective, "teacher": None, "preview": preview}
        train_tokenizer(tokenizer_config, train_digits, tmp_path / name, **options, **RUN)
    assert same(weights(tmp_path / "with"), weights(tmp_path / "without"))
    curve = points(tmp_path / "with")
    assert [step for step in curve if curve[step].keys() >= RECONSTRUCTED] == [2, 4, 6, 8]


def test_an_interrupted_training_has_the_same_curve(tmp_path: Path, train: Train, of_samples: Preview) -> None:
    train(tmp_path / "whole", of_samples)
    left = 1

    def interrupted(generator: object) -> dict[str, float]:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return of_samples.measure(generator)

    for allowed in (1, 1):  # then the previews after steps 4 and 6 are interrupted; the second time after one more
        left = allowed
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "stopped", Preview(2, interrupted))
    train(tmp_path / "stopped", of_samples)
    assert points(tmp_path / "stopped") == points(tmp_path / "whole")
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def test_the_averaged_model_is_previewed_in_eval_mode(tmp_path: Path, train: Train) -> None:
    seen = []

    def measure(generator: Generator) -> dict[str, float]:
        assert not any(module.training for module in generator.modules())
        assert not torch.is_grad_enabled()
        seen.append({name: value.clone() for name, value in generator.transformer.state_dict().items()})
        return {}

    train(tmp_path, Preview(4, measure))
    assert len(seen) == 2
    assert same(seen[1], weights(tmp_path))  # the averaged weights of the last step are those written


def test_progress_shows_the_last_values_and_training_time_is_without_previews(tmp_path: Path, train: Train) -> None:
    events: list[Event] = []

    def measure(_: object) -> dict[str, float]:
        time.sleep(0.3)  # longer than between two updates of the display
        return {"gFID (20 samples)": 12.5}

    send_to(events.append)
    try:
        began = time.monotonic()
        train(tmp_path, Preview(4, measure))
        passed = time.monotonic() - began
    finally:
        send_to(display.handle)
    shown = [event.values for event in events if "gFID (20 samples)" in event.values]
    assert shown
    assert {"cross_entropy", "gFID (20 samples)"} <= shown[0].keys()
    assert json.loads((tmp_path / "config.json").read_text())["seconds"] <= passed - 0.6
