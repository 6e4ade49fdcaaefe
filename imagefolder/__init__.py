"""ImageFolder (arXiv 2410.01756): tokenizer and folded next-scale generator, training and evaluation."""

from imagefolder import _torchvision as _torchvision  # isort: skip  # must come before anything that imports torchvision
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
