"""Training on any torch data set: `imagefolder.train_tokenizer` and `imagefolder.train_generator`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from imagefolder.checkpoints.native import CONFIG, WEIGHTS, read_about
from imagefolder.config import (
    Config,
    Execution,
    GeneratorConfig,
    LossConfig,
    TokenizerConfig,
    TrainingConfig,
    from_dict,
    to_dict,
)
from imagefolder.errors import InputError
from imagefolder.generator.export import weights_sha256
from imagefolder.generator.model import Generator
from imagefolder.generator.origin import tokenizer_sha256
from imagefolder.generator.sampling import Sampling
from imagefolder.locks import building
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import Teacher, pretrained_vit
from imagefolder.training import generator as generators
from imagefolder.training import tokenizer as tokenizers
from imagefolder.training.dataset import DatasetImages, open_dataset
from imagefolder.training.loop import DEFAULT_EXECUTION
from imagefolder.training.token_cache import build_token_cache
from imagefolder.validation import shown
from imagefolder.zoo import GENERATORS, TOKENIZERS, find, for_tokenizer

_Config = TypeVar("_Config", TokenizerConfig, GeneratorConfig)
RELEASED_LOSS = LossConfig()


def train_tokenizer(
    config: TokenizerConfig | str,
    data: Dataset | DataLoader,
    output: str | Path,
    *,
    training: TrainingConfig,
    loss: LossConfig = RELEASED_LOSS,
    teacher: nn.Module | None = None,
    detail_teacher: nn.Module | None = None,
    pretrained: bool = False,
    seed: int = 0,
    execution: Execution = DEFAULT_EXECUTION,
    evaluate: Callable[[Any], float] | None = None,
    **overrides: Any,
) -> Tokenizer:
    """Train a tokenizer and save it in a folder; the same call resumes an interrupted training or loads a finished one.

    Args:
        config: of the tokenizer, or a name of `imagefolder.list_models()`.
        data: a map-style data set of (image, label), or a loader, of which data set, batch size and number of workers
            are used. Images are PIL images or uint8 arrays (which are centre-cropped), or tensors of the tokenizer's
            size: uint8, or float in [0, 1] or [-1, 1]; see `DatasetImages` for how these are told apart.
        output: folder; receives the weights, `curve.jsonl` and the logger's files, and the state while training.
        training: steps, batch size, optimiser.
        loss: the objective. That of the release needs published weights (`python -m imagefolder.weights check`);
            `LossConfig(perceptual=0.0, adversarial=0.0)` needs none.
        teacher: frozen, images (B, 3, H, W) in [-1, 1] to features (B, width of the tokenizer), for the semantic
            branch. None: the tokenizer's backbone with its published weights, unless `semantic` is "none".
        detail_teacher: the same for detail guidance (`detail`).
        pretrained: start from the backbone's published weights.
        seed: of everything random.
        execution: speed, memory and logger.
        evaluate: called every `training.evaluate_every` steps with the tokenizer; the weights with the lowest value are
            kept.
        overrides: fields of the configuration to change.

    Returns:
        The trained tokenizer (averaged weights), in evaluation mode, on the GPU if there is one.

    Raises:
        InputError: settings or items are wrong, published weights are missing, or the folder holds another training.
    """
    folder, config = Path(output), _configured(config, TokenizerConfig, overrides)
    _require_evaluation(training, evaluate)
    images, training = open_dataset(data, config.image_size, training, seed)
    wanted = config.semantic != "none" and loss.semantic > 0
    if teacher is not None and not wanted:
        raise InputError('a teacher has no effect: semantic is "none", or its loss has the weight 0')
    if teacher is None and wanted:
        try:
            teacher = Teacher(pretrained_vit(config))
        except InputError as error:
            raise InputError(f'{error}; or pass teacher=..., or semantic="none"') from None
    identity = {
        **_identity(images, training, seed),
        "loss": to_dict(loss),
        "pretrained": pretrained,
        "teachers_sha256": [None if net is None else weights_sha256(net) for net in (teacher, detail_teacher)],
    }
    with building(folder / ".lock", str(folder)):
        if not _is_finished(folder, config, identity):
            tokenizers.train_tokenizer(
                config,
                images,
                folder,
                training=training,
                loss=loss,
                teacher=teacher,
                detail_teacher=detail_teacher,
                pretrained=pretrained,
                seed=seed,
                title=f"{config.name}: training tokenizer",
                about=identity,
                execution=execution,
                evaluate=evaluate,
            )
        return Tokenizer.from_pretrained(folder).to(_device())


def train_generator(
    config: GeneratorConfig | str,
    tokenizer: Tokenizer,
    data: Dataset | DataLoader,
    output: str | Path,
    *,
    training: TrainingConfig,
    views: int = 1,
    classes: Sequence[str] | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    execution: Execution = DEFAULT_EXECUTION,
    evaluate: Callable[[Generator], float] | None = None,
    **overrides: Any,
) -> Generator:
    """Train a generator on the tokens of a tokenizer and save it; resumes and returns as `train_tokenizer` does.

    Args:
        config: of the generator, or a name of `imagefolder.list_models()`. The fields that describe tokens are the
            tokenizer's; with a name, the number of classes is the data set's.
        tokenizer: trained; it is frozen, and moved to the GPU if there is one. Its hash is stored with the generator,
            which refuses any other tokenizer when it is loaded.
        data: as for `train_tokenizer`; all items are read once for their labels.
        output: folder.
        training: steps, batch size, optimiser.
        views: how often every image is encoded beforehand, each time with new random numbers for the data set's
            augmentation; 0: images are encoded in every step instead.
        classes: their names; by default those of the data set (`data.classes`), if it has any.
        sampling: settings that `Generator.sample` uses by default, stored with the generator.
        seed, execution, evaluate, overrides: as for `train_tokenizer`.

    Returns:
        The trained generator (averaged weights), in evaluation mode, on the GPU if there is one.

    Raises:
        InputError: settings or items are wrong, there are more classes than `config.num_classes`, or the folder holds
            another training.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise InputError(f"tokenizer must be an imagefolder.Tokenizer, not of type {type(tokenizer).__name__}")
    if not 0 <= views <= 1000:
        raise InputError(f"views must lie in 0..1000, not {shown(views)}")
    _require_evaluation(training, evaluate)
    sha256 = tokenizer_sha256(tokenizer)
    if sha256 is None:
        raise InputError(
            f"{tokenizer.config.name} was cast to another type; train on the tokens of a float32 tokenizer"
        )
    folder = Path(output)
    images, training = open_dataset(data, tokenizer.config.image_size, training, seed)
    images.read_labels()
    number = int(images.labels.max()) + 1
    names = _class_names(images.dataset) if classes is None else tuple(classes)
    if isinstance(config, str):
        overrides = {"num_classes": len(names) if names else number, **overrides}
    config = _configured(config, GeneratorConfig, overrides)
    config = for_tokenizer(config, tokenizer.config, name=config.name)
    if number > config.num_classes:
        raise InputError(f"the data set has labels up to {number - 1}, but the generator {config.num_classes} classes")
    if classes is None and names and len(names) != config.num_classes:
        names = None
    tokenizer.to(_device())
    identity = {**_identity(images, training, seed), "views": views, "tokenizer_sha256": sha256}
    with building(folder / ".lock", str(folder)):
        if not _is_finished(folder, config, identity):
            title, tokens = f"{config.name}: training generator", images
            if views:
                where, encoding = folder / "tokens", f"{tokenizer.config.name}: encoding images"
                tokens = build_token_cache(
                    tokenizer.eval(), images, where, tokenizer_sha256=sha256, views=views, title=encoding
                )
            generators.train_generator(
                config,
                tokens,
                folder,
                tokenizer=tokenizer,
                training=training,
                seed=seed,
                title=title,
                about=identity,
                classes=names,
                sampling=sampling,
                execution=execution,
                evaluate=evaluate,
            )
        generator = Generator.from_pretrained(folder, tokenizer=tokenizer).to(_device())
    if sampling is not None:  # of a training finished before, others may be stored
        generator.sampling = sampling
    return generator


def _configured(config: _Config | str, kind: type[_Config], overrides: dict[str, Any]) -> _Config:
    """A configuration, or the one of a name, with some fields changed."""
    if isinstance(config, str):
        table: Any = TOKENIZERS if kind is TokenizerConfig else GENERATORS
        config = find(table, config)
    if not isinstance(config, kind):
        raise InputError(f"config must be a {kind.__name__} or a name, not {shown(config)}")
    unknown = sorted(overrides.keys() - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise InputError(f"{kind.__name__} has no field {', '.join(unknown)}")
    if kind is GeneratorConfig and "depth" in overrides:
        overrides = {"width": None, "heads": None, "drop_path": None, **overrides}
    return dataclasses.replace(config, **overrides)


def _identity(images: DatasetImages, training: TrainingConfig, seed: int) -> dict[str, Any]:
    data = {"images": len(images), "image_size": images.image_size, "sha256": images.fingerprint()}
    return {"training": to_dict(training), "seed": seed, "dataset": data}


def _is_finished(folder: Path, config: Config, identity: dict[str, Any]) -> bool:
    """Whether the folder holds the result of this training; `InputError` if it holds another model."""
    if not ((folder / CONFIG).exists() and (folder / WEIGHTS).exists()):
        return False
    about = read_about(folder)
    kind = type(config)
    other = [name for name in identity if about.get(name) != identity[name]]
    if about.get("kind") != kind.__name__ or from_dict(kind, about.get("config"), str(folder / CONFIG)) != config:
        other = ["config", *other]
    if other:
        raise InputError(
            f"{folder}: holds a model trained with other settings ({', '.join(other)}); choose another folder, or "
            "remove this one"
        )
    return True


def _class_names(dataset: Dataset) -> tuple[str, ...] | None:
    """The names of the classes as data sets of torchvision list them."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def _require_evaluation(training: TrainingConfig, evaluate: object) -> None:
    if training.evaluate_every and evaluate is None:
        raise InputError(f"evaluate_every is {training.evaluate_every}, but there is no evaluate=... to call")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
