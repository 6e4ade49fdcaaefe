"""Training on torch data sets: what is accepted and how pixels are read, resuming, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler
from torchvision.transforms.v2.functional import to_image, to_pil_image

import imagefolder
from imagefolder.config import GeneratorConfig, LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.data.images import ArrayImages, to_float
from imagefolder.files import read_json
from imagefolder.generator.sampling import Sampling
from imagefolder.interruption import Stopped, clear_stop, request_stop
from imagefolder.training.dataset import DatasetImages, open_dataset
from imagefolder.training.generator import GeneratorTask
from imagefolder.training.loop import _Runner
from imagefolder.training.tokenizer import TokenizerTask

LOSS = LossConfig(perceptual=0.0, adversarial=0.0)
CLASSES = [f"digit {i}" for i in range(10)]


class Items(Dataset):
    """A data set of one image and label per item, as a function makes them."""

    def __init__(self, item: Callable[[int], Any], number: int = 20) -> None:
        self.item, self.number = item, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


@pytest.fixture
def pixels(train_digits: ArrayImages) -> Tensor:
    return train_digits.images[:40]


@pytest.fixture
def data(pixels: Tensor, train_digits: ArrayImages) -> Dataset:
    dataset = TensorDataset(pixels, train_digits.labels[:40])
    dataset.classes = CLASSES
    return dataset


@pytest.fixture
def plain(tokenizer_config: TokenizerConfig) -> TokenizerConfig:
    return replace(tokenizer_config, semantic="none")


def batch(images: DatasetImages, indices: list[int], epoch: int = 0) -> tuple[Tensor, Tensor]:
    return images.__getitems__([(epoch, index) for index in indices])


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "uint8 tensor": lambda image: image,
    "PIL image": to_pil_image,
    "numpy array": lambda image: image.permute(1, 2, 0).numpy(),
    "float in [0, 1]": lambda image: image / 255,
    "float in [-1, 1]": to_float,
    "float64 in [-1, 1]": lambda image: image.double() / 127.5 - 1,
    "torchvision's image": to_image,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_the_same_pixels(form: str, pixels: Tensor) -> None:
    images = DatasetImages(Items(lambda i: (FORMS[form](pixels[i]), i % 10)), 32)
    found, labels = batch(images, [3, 19, 0])
    assert torch.equal(found, pixels[[3, 19, 0]])
    assert labels.tolist() == [3, 9, 0]


def test_grey_images_and_those_of_other_sizes_are_converted_if_they_are_pictures(pixels: Tensor) -> None:
    grey = DatasetImages(Items(lambda i: (pixels[i, :1], i)), 32)
    assert torch.equal(batch(grey, [1])[0], pixels[1:2, :1].expand(-1, 3, -1, -1))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90), dtype=np.uint8))
    cropped = DatasetImages(Items(lambda i: (picture, 0)), 32)
    expected = (imagefolder.read_image(picture, size=32) + 1) * 127.5
    assert torch.equal(batch(cropped, [0])[0][0], expected.round().to(torch.uint8))


def test_the_range_of_floats_is_decided_beforehand_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    bright = torch.rand(200, 3, 32, 32)
    images = DatasetImages(TensorDataset(bright, torch.zeros(200, dtype=torch.int64)), 32)
    assert "TensorDataset: float images in [0, 1]" in capsys.readouterr().out
    bright[101, 0, 0, 0] = -0.5  # not among those looked at
    with pytest.raises(
        imagefolder.InputError, match=r"item 101 .* outside the range \[0, 1\] of the items read before"
    ):
        batch(images, [100, 101])
    bright[0, 0, 0, 0] = -1.0
    images = DatasetImages(TensorDataset(bright, torch.zeros(200, dtype=torch.int64)), 32)
    assert "float images" not in capsys.readouterr().out
    assert int(batch(images, [101])[0][0, 0, 0, 0]) == 64


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.rand(3, 32, 32), r"item 0 of the data set must be \(image, label\), not a tensor"),
        ((torch.rand(3, 32, 32),), r"must be \(image, label\), not a tuple of 1"),
        ((torch.rand(3, 16, 32), 0), r"shape \(3, 32, 32\), not \(3, 16, 32\)"),
        ((torch.rand(32, 32, 3), 0), r"shape \(3, 32, 32\), not \(32, 32, 3\)"),
        ((torch.rand(3, 32, 32) * 255, 0), r"values are .* outside the range \[0, 1\]"),
        ((torch.full((3, 32, 32), float("nan")), 0), "values are nan"),
        ((torch.randn(3, 32, 32) * 2, 0), "leave out normalisation"),
        ((torch.zeros(3, 32, 32, dtype=torch.int64), 0), "not a tensor of int64"),
        ((np.zeros((32, 32, 3)), 0), "item 0 of the data set: a numpy image must be uint8"),
        (("photo.jpg", 0), "its image must be a PIL image, .* not 'photo.jpg'"),
        ((torch.rand(3, 32, 32), 1.5), "its label must be an integer from 0 on, not 1.5"),
        ((torch.rand(3, 32, 32), -1), "its label must be an integer from 0 on, not -1"),
        ((torch.rand(3, 32, 32), [1, 2]), "its label must be an integer from 0 on, not a list of 2"),
    ],
)
def test_wrong_items_are_named(item: Any, message: str) -> None:
    with pytest.raises(imagefolder.InputError, match=message) as caught:
        DatasetImages(Items(lambda i: item), 32)
    assert "\n" not in str(caught.value)


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        yield torch.rand(3, 32, 32), 0


def test_what_cannot_be_trained_on_is_refused(data: Dataset, training: TrainingConfig) -> None:
    weighted = DataLoader(data, sampler=WeightedRandomSampler([1.0] * 40, 40))
    refused: list[tuple[Any, str]] = [
        (Endless(), "Endless has no items by number"),
        (DataLoader(Endless()), "Endless has no items by number"),
        (Subset(data, []), "Subset is empty"),
        (weighted, "chooses items by its own BatchSampler|WeightedRandomSampler"),
        (DataLoader(data, batch_size=None), "chooses items by its own"),
        (DataLoader(data, collate_fn=lambda items: items), "its own collate_fn"),
        (7, "train on a torch Dataset or DataLoader, not on 7"),
    ]
    for source, message in refused:
        with pytest.raises(imagefolder.InputError, match=message):
            open_dataset(source, 32, training, 0)


def test_random_augmentation_is_a_function_of_seed_epoch_and_index(pixels: Tensor) -> None:
    def draw(i: int) -> tuple[Tensor, int]:
        shift = random.randrange(8) + np.random.randint(8) + int(torch.randint(8, ()))  # noqa: NPY002
        return pixels[i].roll(shift, -1), i

    images, state = DatasetImages(Items(draw), 32, seed=3), torch.get_rng_state()
    first, second = batch(images, [5, 6]), batch(images, [6, 5])
    assert torch.equal(first[0].flip(0), second[0])
    assert torch.equal(torch.get_rng_state(), state)
    others = [batch(images, list(range(20)), epoch)[0] for epoch in (0, 1)]
    others.append(batch(DatasetImages(Items(draw), 32, seed=4), list(range(20)))[0])
    assert not any(torch.equal(a, b) for a, b in zip(others, others[1:] + others[:1], strict=True))
    assert images.fingerprint() == DatasetImages(Items(draw), 32, seed=3).fingerprint()


def test_draws_that_cannot_be_seeded_are_said(pixels: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    own = np.random.default_rng(0)
    one, two = (DatasetImages(Items(lambda i: (pixels[i].roll(int(own.integers(32)), -1), 0)), 32) for _ in range(2))
    assert "will not see the images of an uninterrupted one" in capsys.readouterr().out
    assert one.fingerprint() == two.fingerprint()  # so that the training can be resumed


def stop_after(steps: int, task: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the training of a kind of model to stop after so many steps."""
    step, taken = _Runner.step, []

    def stopping(self: _Runner, number: int) -> dict[str, Tensor]:
        taken.extend([number] * isinstance(self.task, task))
        if len(taken) == steps:
            request_stop()
        return step(self, number)

    monkeypatch.setattr(_Runner, "step", stopping)


def test_both_models_are_trained_resumed_and_loaded(
    tmp_path: Path,
    plain: TokenizerConfig,
    generator_config: GeneratorConfig,
    training: TrainingConfig,
    data: Dataset,
) -> None:
    def train(folder: Path) -> tuple[imagefolder.Tokenizer, imagefolder.Generator]:
        tokenizer = imagefolder.train_tokenizer(plain, data, folder / "tokenizer", training=training, loss=LOSS)
        generator = imagefolder.train_generator(
            replace(generator_config, codebook_size=7),  # the tokenizer decides
            tokenizer,
            data,
            folder / "generator",
            training=training,
            sampling=Sampling(guidance=1.0, top_k=9),
        )
        return tokenizer, generator

    tokenizer, generator = train(tmp_path / "whole")
    for task, part in ((TokenizerTask, "tokenizer"), (GeneratorTask, "generator")):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(3, task, patch)
            with pytest.raises(Stopped):
                train(tmp_path / "stopped")
        clear_stop()
        assert (tmp_path / "stopped" / part / "state.pt").exists()
    again = train(tmp_path / "stopped")
    for model, resumed in ((tokenizer, again[0]), (generator.transformer, again[1].transformer)):
        ours, theirs = model.state_dict(), resumed.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").rglob("*.safetensors")}
    assert len(before) == 2
    train(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in before} == before

    loaded = imagefolder.load(tmp_path / "whole" / "generator", tmp_path / "whole" / "tokenizer")
    assert isinstance(loaded, imagefolder.Generator)
    assert loaded.classes == tuple(CLASSES)
    assert loaded.sampling == Sampling(guidance=1.0, top_k=9)
    assert torch.equal(loaded.sample([1, 2]).tokens, generator.sample([1, 2]).tokens)
    with pytest.raises(imagefolder.InputError, match="trained on the tokens of tiny with weights"):
        imagefolder.load(tmp_path / "whole" / "generator", imagefolder.Tokenizer(plain))
    with pytest.raises(
        imagefolder.InputError, match=r"whole/tokenizer: holds a model trained with other settings \(seed\)"
    ):
        imagefolder.train_tokenizer(plain, data, tmp_path / "whole/tokenizer", training=training, loss=LOSS, seed=1)
    fewer = Subset(data, range(39))
    with pytest.raises(imagefolder.InputError, match=r"other settings \(dataset\)"):
        imagefolder.train_tokenizer(plain, fewer, tmp_path / "whole/tokenizer", training=training, loss=LOSS)


def test_a_loader_gives_its_batch_size_and_nothing_else_changes(
    tmp_path: Path, plain: TokenizerConfig, training: TrainingConfig, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"loss": LOSS, "name": "mine"}
    loader = DataLoader(data, batch_size=8, shuffle=True)
    one = imagefolder.train_tokenizer(
        plain, loader, tmp_path / "a", training=replace(training, batch_size=2), **options
    )
    assert "DataLoader: using its data set, batch size 8" in capsys.readouterr().out
    two = imagefolder.train_tokenizer(plain, data, tmp_path / "b", training=training, **options)
    assert one.config.name == "mine"
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert read_json(tmp_path / "a" / "config.json")["training"]["batch_size"] == 8


def test_a_named_generator_has_the_classes_of_its_data(
    tmp_path: Path, plain: TokenizerConfig, training: TrainingConfig, pixels: Tensor
) -> None:
    tokenizer = imagefolder.Tokenizer(plain)
    data = DataLoader(TensorDataset(pixels, torch.arange(40) % 3), batch_size=8, num_workers=1)
    short = replace(training, steps=2)
    options: dict[str, Any] = {"training": short, "depth": 1, "views": 0}
    generator = imagefolder.train_generator("VAR-mini-MSVR3P2-256", tokenizer, data, tmp_path, **options)
    assert (generator.config.num_classes, generator.classes, generator.config.depth) == (3, None, 1)
    assert not (tmp_path / "tokens").exists()


def test_wrong_trainings_are_refused(
    tmp_path: Path, plain: TokenizerConfig, training: TrainingConfig, data: Dataset, generator_config: GeneratorConfig
) -> None:
    tokenizer, two = imagefolder.Tokenizer(plain), replace(generator_config, num_classes=2)
    evaluated = replace(training, evaluate_every=2)
    options: dict[str, Any] = {"training": training, "loss": LOSS}
    for call, message in (
        (lambda: imagefolder.train_tokenizer("nothing", data, tmp_path, **options), "nothing"),
        (lambda: imagefolder.train_tokenizer(plain, data, tmp_path, colour=1, **options), "no field colour"),
        (lambda: imagefolder.train_tokenizer(two, data, tmp_path, **options), "config must be a TokenizerConfig"),
        (
            lambda: imagefolder.train_tokenizer(plain, data, tmp_path, teacher=torch.nn.Identity(), **options),
            "a teacher has no effect",
        ),
        (lambda: imagefolder.train_tokenizer(plain, data, tmp_path, training=evaluated), "no evaluate="),
        (lambda: imagefolder.train_generator(two, tokenizer, data, tmp_path, training=training), "labels up to 9"),
        (
            lambda: imagefolder.train_generator(two, "tok", data, tmp_path, training=training),
            "must be an imagefolder.Tok",
        ),
        (
            lambda: imagefolder.train_generator(two, tokenizer.half(), data, tmp_path, training=training),
            "float32 tokenizer",
        ),
    ):
        with pytest.raises(imagefolder.InputError, match=message):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_published_teacher_is_named_with_the_ways_out(
    tmp_path: Path,
    tokenizer_config: TokenizerConfig,
    training: TrainingConfig,
    data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(imagefolder.InputError, match=r'; or pass teacher=\.\.\., or semantic="none"'):
        imagefolder.train_tokenizer(tokenizer_config, data, tmp_path / "out", training=training, loss=LOSS)
