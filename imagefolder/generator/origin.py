"""What a generator's checkpoint holds besides weights: whose tokens it was trained on, its classes, how to sample it.

    tokenizer_name, tokenizer_sha256    of the tokenizer; the hash is that of its native weight file
    classes                             names, in the order of the labels
    sampling                            fields of `sampling.Sampling`

Checkpoints from elsewhere hold none of these, and any tokenizer of the right shape is accepted.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch

from imagefolder.checkpoints.native import native_sha256
from imagefolder.config import GeneratorConfig
from imagefolder.errors import InputError, one_line
from imagefolder.generator.sampling import Sampling, check_sampling
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.validation import shown

LONGEST_NAME = 1000


def tokenizer_sha256(tokenizer: Tokenizer) -> str | None:
    """sha256 of a tokenizer's native weight file in float32; None if that is unknown: its weights have another type."""
    if tokenizer.float32_sha256 is not None:
        return tokenizer.float32_sha256
    whole = all(value.dtype == torch.float32 for value in tokenizer.parameters())
    return native_sha256(tokenizer) if whole else None


def require_own_tokenizer(about: dict[str, Any], tokenizer: Tokenizer, origin: str) -> None:
    """`InputError` if a checkpoint's document names another tokenizer than this one."""
    theirs = about.get("tokenizer_sha256")
    if theirs is None or (ours := tokenizer_sha256(tokenizer)) is None:
        return
    if not isinstance(theirs, str) or not re.fullmatch("[0-9a-f]{64}", theirs):
        raise InputError(f"{origin}: tokenizer_sha256 {shown(theirs)} is not a sha256")
    if theirs != ours:
        name = one_line(str(about.get("tokenizer_name", "a tokenizer")))[:LONGEST_NAME]
        raise InputError(
            f"{origin}: trained on the tokens of {name} with weights {theirs[:12]}, not of {tokenizer.config.name} "
            f"with weights {ours[:12]}; load the tokenizer it was trained with"
        )


def stored_classes(about: dict[str, Any], config: GeneratorConfig, origin: str) -> tuple[str, ...] | None:
    """The names of the classes, or None if they are not known."""
    return None if about.get("classes") is None else checked_classes(about["classes"], config, origin)


def checked_classes(names: Any, config: GeneratorConfig, origin: str) -> tuple[str, ...]:
    """Names of all classes; `InputError` if they are not that."""
    named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not named or len(names) != config.num_classes:
        raise InputError(f"{origin}: classes must be the {config.num_classes} names of its classes, not {shown(names)}")
    return tuple(one_line(name)[:LONGEST_NAME] for name in names)


def stored_sampling(about: dict[str, Any], config: GeneratorConfig, origin: str) -> Sampling:
    """The model's own sampling settings; the defaults for those that are not stored."""
    values = about.get("sampling", {})
    known = {field.name for field in dataclasses.fields(Sampling)}
    if not isinstance(values, dict) or not values.keys() <= known:
        raise InputError(f"{origin}: sampling must hold {', '.join(sorted(known))}, not {shown(values)}")
    try:
        sampling = Sampling(**values)
        check_sampling(config, **dataclasses.asdict(sampling), joint=False)
    except InputError as error:
        raise InputError(f"{origin}: sampling: {error}") from None
    return sampling
