"""What the pieces of a row's work take on this machine: a few steps of its models, untrained, on a few images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imagefolder.data.images import ArrayImages, Images, to_float
from imagefolder.errors import InputError, reason
from imagefolder.evaluation.extractor import default_device
from imagefolder.evaluation.pairs import Pairs
from imagefolder.evaluation.protocols import BATCH
from imagefolder.evaluation.proxy import ProxyNet
from imagefolder.evaluation.spaces import extractors_for, further_extractors
from imagefolder.generator.model import Generator
from imagefolder.generator.sampling import arguments_of
from imagefolder.progress import silence
from imagefolder.tokenizer.discriminator import dino
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import blank_teacher
from imagefolder.training.classifier import train_classifier
from imagefolder.training.generator import GeneratorTask
from imagefolder.training.tokenizer import TokenizerTask, new_tokenizer
from imagefolder.training.trial import Measured, Trial, measure
from reproductions.proxies import BATCH as PROXY_BATCH
from reproductions.row import Row

FEW = 16  # images that batches are made of
Kind = Literal["extractor", "teacher", "tokenizer", "generator", "coding", "sampling", "features", "training images"]


@dataclass(frozen=True)
class Piece:
    """Something that a few stages need often: a training step, or the work on an image."""

    kind: Kind
    row: Row
    """any of those that need it"""
    times: float
    """how often it is needed in all: steps, or images"""


@dataclass(frozen=True)
class Cost:
    """Seconds of each part of a piece, per step or image, and its peak memory in bytes."""

    seconds: dict[str, float]
    memory: float


def time_piece(piece: Piece) -> Cost | str:
    """What a piece takes here, or one line on why that cannot be measured.

    torch's random state is left as it was. All processes that work together call this at once.
    """
    device = default_device()
    try:
        with torch.random.fork_rng(), silence(), warnings.catch_warnings(action="ignore"):
            parts = _TIMERS[piece.kind](piece, device)
    except (InputError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        return reason(error)
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    seconds = {name: measured.seconds / size for name, (measured, size) in parts.items()}
    return Cost(seconds, max(measured.memory for measured, _ in parts.values()))


Parts = dict[str, tuple[Measured, int]]
"""Each part's batch, and the steps or images that are in it."""


def _extractor(piece: Piece, device: torch.device) -> Parts:
    net = ProxyNet(piece.row.dataset.classes).to(device)
    return _classifier(piece, net.features, net.head)


def _teacher(piece: Piece, device: torch.device) -> Parts:
    teacher = blank_teacher(piece.row.recipe.tokenizer).to(device)
    return _classifier(piece, teacher, nn.Linear(teacher.vit.embed_dim, piece.row.dataset.classes).to(device))


def _classifier(piece: Piece, features: nn.Module, head: nn.Linear) -> Parts:
    images = ArrayImages(_few_images(piece.row), torch.zeros(FEW, dtype=torch.long))

    def run(size: int) -> None:
        train_classifier(features, head, images, steps=1, batch_size=size, seed=0, title="")

    return {"step": (measure(run, PROXY_BATCH, piece.times, head.weight.device), 1)}


def _tokenizer(piece: Piece, device: torch.device) -> Parts:
    row, config = piece.row, piece.row.recipe.tokenizer
    teacher = None if config.semantic == "none" else blank_teacher(config)
    features = None
    if row.loss.adversarial and row.loss.discriminator != "patch":
        features = dino() if row.scale.published else blank_teacher(config).vit
    task = TokenizerTask(new_tokenizer(config), row.training, row.loss, teacher=teacher, features=features)
    trial, batch = Trial(task, row.execution), (_few_images(row), torch.zeros(FEW, dtype=torch.long))
    late = trial.measure(batch, row.training.steps - 1, int(piece.times))
    early = late if not row.loss.adversarial or task.start == 0 else trial.measure(batch, 0, int(piece.times))
    return {"early": (early, 1), "late": (late, 1)}


def _generator(piece: Piece, device: torch.device) -> Parts:
    row = piece.row
    trial = Trial(GeneratorTask(_blank_generator(row), row.scale.generator_training), row.execution)
    shape = FEW, row.recipe.tokenizer.branches, row.recipe.tokenizer.length
    inputs = torch.randint(row.recipe.tokenizer.codebook_size, shape) if row.scale.views else _few_images(row)
    return {"step": (trial.measure((inputs, torch.zeros(FEW, dtype=torch.long)), 0, int(piece.times)), 1)}


def _coding(piece: Piece, device: torch.device) -> Parts:
    tokenizer = Tokenizer(piece.row.recipe.tokenizer).to(device).eval().requires_grad_(False)
    images = to_float(_few_images(piece.row).to(device))
    tokens = tokenizer.encode(images)

    def timed(run: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Measured, int]:
        return measure(lambda size: run(_repeated(inputs, size)), BATCH, piece.times / BATCH, device), BATCH

    return {"encode": timed(tokenizer.encode, images), "decode": timed(tokenizer.decode, tokens)}


def _sampling(piece: Piece, device: torch.device) -> Parts:
    generator, settings = _blank_generator(piece.row).to(device).eval(), piece.row.sampling

    def run(size: int) -> None:
        labels = torch.arange(size) % generator.config.num_classes
        generator.sample(labels, **arguments_of(settings))

    batch = settings.batch_size
    return {"image": (measure(run, batch, piece.times / batch, device), batch)}


def _features(piece: Piece, device: torch.device) -> Parts:
    """Of the extractors together; and the comparison of pairs of images."""
    images, networks = _few_images(piece.row), list[Callable[[Tensor], Any]]()
    if piece.row.scale.published:
        networks += extractors_for(None)
    else:
        net = ProxyNet(piece.row.dataset.classes).to(device).eval()
        networks.append(lambda images: net(to_float(images.to(device))))
    networks += further_extractors(piece.row.scale.published)
    pairs = Pairs()

    @torch.no_grad()
    def extract(size: int) -> None:
        for network in networks:
            network(_repeated(images, size))

    def compare(size: int) -> None:
        pairs.add(_repeated(images, size), _repeated(images.flip(0), size))

    def timed(run: Callable[[int], None]) -> tuple[Measured, int]:
        return measure(run, BATCH, piece.times / BATCH, device), BATCH

    return {"features": timed(extract), "pairs": timed(compare)}


def _training_images(piece: Piece, device: torch.device) -> Parts:
    """Reading, decoding and cropping, in as many processes as do it."""
    images: Images = piece.row.splits.train.augmented("tokenizer", piece.row.seed)

    def run(size: int) -> None:
        images.__getitems__([(0, i % len(images)) for i in range(size)])

    return {"read": (measure(run, FEW, piece.times / FEW, torch.device("cpu")), FEW * max(images.workers, 1))}


def _few_images(row: Row) -> Tensor:
    """Noise, uint8: what is in the images does not change how long they take."""
    size = row.dataset.image_size
    return torch.randint(256, (FEW, 3, size, size), dtype=torch.uint8)


def _blank_generator(row: Row) -> Generator:
    assert row.recipe.generator is not None
    return Generator(row.recipe.generator, Tokenizer(row.recipe.tokenizer).eval().requires_grad_(False))


def _repeated(inputs: Tensor, size: int) -> Tensor:
    return inputs[torch.arange(size, device=inputs.device) % len(inputs)]


_TIMERS: dict[Kind, Callable[[Piece, torch.device], Parts]] = {
    "extractor": _extractor,
    "teacher": _teacher,
    "tokenizer": _tokenizer,
    "generator": _generator,
    "coding": _coding,
    "sampling": _sampling,
    "features": _features,
    "training images": _training_images,
}
