"""The models of the demo: found in folders, and loaded when they are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from imagefolder.checkpoints.native import CONFIG, WEIGHTS, read_about, read_config
from imagefolder.config import GeneratorConfig, TokenizerConfig
from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import default_device
from imagefolder.generator.model import Generator
from imagefolder.loading import load
from imagefolder.tokenizer.model import Tokenizer


@dataclass(frozen=True)
class Found:
    """Folders of a tokenizer and, if there is one, of a generator on its tokens."""

    tokenizer: Path
    generator: Path | None = None

    @property
    def name(self) -> str:
        return str(self.generator or self.tokenizer)


@dataclass(frozen=True)
class Model:
    """A loaded tokenizer and, if there is one, its generator; frozen, in evaluation mode."""

    tokenizer: Tokenizer
    generator: Generator | None = None


def find_models(places: Sequence[Path]) -> dict[str, Found]:
    """All trained models below some folders, by the path of the generator, or of a tokenizer that none uses or that
    is itself one of the folders.

    A generator belongs to the tokenizer whose hash it was trained with. Those with most branches and scales come first.

    Raises:
        InputError: a folder does not exist, or there is no model in any of them.
    """
    tokenizers, generators = dict[str, Path](), dict[Path, str]()
    for folder in (folder for place in places for folder in _checkpoints(place)):
        about = read_about(folder)
        if about.get("kind") == TokenizerConfig.__name__:
            tokenizers[str(about.get("weights_sha256"))] = folder
        elif about.get("kind") == GeneratorConfig.__name__:
            generators[folder] = str(about.get("tokenizer_sha256"))
    found = [Found(tokenizers[sha256], folder) for folder, sha256 in generators.items() if sha256 in tokenizers]
    used = {each.tokenizer for each in found}
    found += [Found(tokenizer) for tokenizer in tokenizers.values() if tokenizer not in used or tokenizer in places]
    if not found:
        alone = f"; the tokenizer of {next(iter(generators))} is not there either" if generators else ""
        raise InputError(
            f"{', '.join(map(str, places))}: no trained tokenizer{alone}; name a folder with models by --runs, or "
            "train one: python reproductions/table2.py --rows imagefolder"
        )
    return {each.name: each for each in sorted(found, key=_richness, reverse=True)}


@lru_cache(maxsize=2)
def load_model(found: Found) -> Model:
    """Load a model onto the device; `InputError` if a file is damaged."""
    device = default_device()
    tokenizer = load(found.tokenizer, device=device)
    assert isinstance(tokenizer, Tokenizer), "its configuration says so"
    if found.generator is None:
        return Model(tokenizer)
    generator = load(found.generator, tokenizer, device=device)
    assert isinstance(generator, Generator), "its configuration says so"
    return Model(tokenizer, generator)


def describe(model: Model) -> str:
    """A model in one line."""
    config, generator = model.tokenizer.config, model.generator
    scales = ", ".join(f"{side} x {side}" for side in config.scales)
    branches = f"{config.branches} branches" if config.branches > 1 else "one branch"
    text = f"{config.name}: {config.image_size} px, {branches} of {config.length} tokens on the scales {scales}"
    if generator is None:
        return f"{text}; no generator"
    positions = generator.transformer.sequence.length
    return f"{text}; {generator.config.name}: {positions} positions, {generator.config.num_classes} classes"


def _richness(found: Found) -> tuple[bool, int, int]:
    """What there is to see of a model."""
    config = read_config(found.tokenizer, TokenizerConfig)
    return found.generator is not None, config.branches, len(config.scales)


def _checkpoints(place: Path) -> list[Path]:
    """The folders of finished models below a folder, those of hidden folders left out."""
    if not place.is_dir():
        raise InputError(f"{place}: no such folder; name a folder with trained models by --runs")
    folders = [path.parent for path in sorted(place.rglob(CONFIG)) if (path.parent / WEIGHTS).exists()]
    return [folder for folder in folders if not any(p.startswith(".") for p in folder.relative_to(place).parts)]
