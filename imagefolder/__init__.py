"""ImageFolder (arXiv 2410.01756): tokenizer and folded next-scale generator, training and evaluation.

The names below are imported when they are first used, so that a command can answer before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from imagefolder import _torchvision as _torchvision  # before anything imports torchvision

if TYPE_CHECKING:
    from imagefolder.config import GeneratorConfig, TokenizerConfig
    from imagefolder.errors import InputError
    from imagefolder.generator.model import Generator, Samples
    from imagefolder.loading import load_generator, load_tokenizer
    from imagefolder.tokenizer.model import Tokenizer
    from imagefolder.zoo import list_models

__all__ = [
    "Generator",
    "GeneratorConfig",
    "InputError",
    "Samples",
    "Tokenizer",
    "TokenizerConfig",
    "list_models",
    "load_generator",
    "load_tokenizer",
]

_MODULES = {
    "Generator": "generator.model",
    "GeneratorConfig": "config",
    "InputError": "errors",
    "Samples": "generator.model",
    "Tokenizer": "tokenizer.model",
    "TokenizerConfig": "config",
    "list_models": "zoo",
    "load_generator": "loading",
    "load_tokenizer": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
