"""ImageFolder (arXiv 2410.01756): tokenizer and folded next-scale generator, training and evaluation.

The names below are imported when they are first used, so that a command can answer before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from imagefolder import _torchvision as _torchvision  # before anything imports torchvision

if TYPE_CHECKING:
    from imagefolder.config import GeneratorConfig, LossConfig, TokenizerConfig, TrainingConfig
    from imagefolder.data.pictures import read_image, save_image, to_pil
    from imagefolder.errors import InputError
    from imagefolder.evaluation.library import Evaluation, evaluate, fid
    from imagefolder.generator.model import Generator, Samples
    from imagefolder.generator.sampling import Sampling
    from imagefolder.loading import load, load_generator, load_tokenizer
    from imagefolder.tokenizer.model import Tokenizer
    from imagefolder.training.library import train_generator, train_tokenizer
    from imagefolder.zoo import list_models

__all__ = [
    "Evaluation",
    "Generator",
    "GeneratorConfig",
    "InputError",
    "LossConfig",
    "Samples",
    "Sampling",
    "Tokenizer",
    "TokenizerConfig",
    "TrainingConfig",
    "evaluate",
    "fid",
    "list_models",
    "load",
    "load_generator",
    "load_tokenizer",
    "read_image",
    "save_image",
    "to_pil",
    "train_generator",
    "train_tokenizer",
]

_MODULES = {
    "Evaluation": "evaluation.library",
    "Generator": "generator.model",
    "GeneratorConfig": "config",
    "InputError": "errors",
    "LossConfig": "config",
    "Samples": "generator.model",
    "Sampling": "generator.sampling",
    "Tokenizer": "tokenizer.model",
    "TokenizerConfig": "config",
    "TrainingConfig": "config",
    "evaluate": "evaluation.library",
    "fid": "evaluation.library",
    "list_models": "zoo",
    "load": "loading",
    "load_generator": "loading",
    "load_tokenizer": "loading",
    "read_image": "data.pictures",
    "save_image": "data.pictures",
    "to_pil": "data.pictures",
    "train_generator": "training.library",
    "train_tokenizer": "training.library",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
