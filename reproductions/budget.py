"""The budget on the command line: `--budget FIELD=VALUE ...` changes a scale's training and evaluation.

What differs from the scale is part of the identity of models and records, and rows of different budgets share no table.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import replace

from imagefolder.config import TokenizerConfig, TrainingConfig
from imagefolder.errors import InputError
from imagefolder.validation import shown
from imagefolder.zoo import variant
from reproductions.scales import Scale, proxy_steps_for

TRAINING = ("steps", "batch_size", "learning_rate")  # of both models, or of one: "tokenizer_steps", "generator_steps"
TRAININGS = ("tokenizer", "generator")
FIELDS: dict[str, tuple[float, float]] = {
    **{name: (1, 2**40) for name in ("steps", "tokenizer_steps", "generator_steps")},
    **{name: (2, 2**20) for name in ("batch_size", "tokenizer_batch_size", "generator_batch_size")},
    **{name: (1e-9, 1.0) for name in ("learning_rate", "tokenizer_learning_rate", "generator_learning_rate")},
    "image_size": (1, 8192),
    "samples": (10, 10**8),  # the Inception score uses ten splits
    "proxy_steps": (5, 2**40),
}
"""Every field with its smallest and largest value; all but learning rates are whole numbers"""


def with_budget(scale: Scale, budget: Sequence[str]) -> Scale:
    """A scale with the fields changed that `budget` lists as FIELD=VALUE.

    Raises:
        InputError: an unknown or repeated field, a value that is no number or out of range, an image size that does not
            fit the models of the scale.
    """
    values = _parsed(budget)
    changed = scale
    for model in TRAININGS:
        training: TrainingConfig = getattr(changed, f"{model}_training")
        wanted = {name: values.get(f"{model}_{name}", values.get(name)) for name in TRAINING}
        training = replace(training, **{name: value for name, value in wanted.items() if value is not None})
        training = _keeping_shares(training, getattr(scale, f"{model}_training").steps)
        changed = replace(changed, **{f"{model}_training": training})
    if "samples" in values:
        changed = replace(changed, samples=int(values["samples"]))
    if "proxy_steps" in values:
        if scale.published:
            raise InputError(f"--budget proxy_steps: scale {scale.name} uses published networks and trains no proxies")
        changed = replace(changed, proxy_steps=int(values["proxy_steps"]))
    if "image_size" in values and values["image_size"] != scale.tokenizer.image_size:
        size = int(values["image_size"])
        _check_image_size(scale, size)
        models = {"tokenizer": scale.tokenizer, "single_scale": scale.single_scale}
        changed = replace(changed, **{name: _of_size(config, size) for name, config in models.items()})
    return replace(changed, budget=_differences(scale, changed))


def with_proxy_steps(scale: Scale, original: Scale, images: int) -> Scale:
    """A scale whose number of proxy steps is settled: that of the budget, of the original scale, or the one that suits
    the number of training images."""
    if scale.published:
        return scale
    usual = original.proxy_steps or proxy_steps_for(images)
    steps = scale.proxy_steps or usual
    budget = tuple(entry for entry in scale.budget if entry[0] != "proxy_steps")
    return replace(scale, proxy_steps=steps, budget=(*budget, *((("proxy_steps", steps),) * (steps != usual))))


def _parsed(budget: Sequence[str]) -> dict[str, int | float]:
    values: dict[str, int | float] = {}
    for text in budget:
        name, equals, value = text.partition("=")
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            guess = f" (did you mean {near[0]}?)" if near else ""
            raise InputError(f"--budget {shown(text)}: no such field{guess}; known: {', '.join(FIELDS)}")
        if not equals:
            raise InputError(f"--budget {shown(text)}: give a value, as in {name}=100")
        if name in values:
            raise InputError(f"--budget: {name} is given twice")
        values[name] = _number(name, value)
    return values


def _number(name: str, text: str) -> int | float:
    smallest, largest = FIELDS[name]
    whole = not name.endswith("learning_rate")
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise InputError(f"--budget {name}={shown(text)}: must be {kind}") from None
    if not (math.isfinite(value) and smallest <= value <= largest):
        raise InputError(f"--budget {name}={value}: must be from {smallest:,} to {largest:,}")
    return value


def _keeping_shares(training: TrainingConfig, steps: int) -> TrainingConfig:
    """Settings that count steps keep their share of a training that had `steps` before: the window of the averaged
    weights, epochs, and the steps between evaluations. A short training would end with the average of its beginning."""
    if training.steps == steps:
        return training
    ratio = training.steps / steps
    return replace(
        training,
        ema=round(max(0.0, 1 - (1 - training.ema) / ratio), 9) if training.ema else 0.0,
        epoch_steps=max(1, round(training.epoch_steps * ratio)),
        evaluate_every=max(1, round(training.evaluate_every * ratio)) if training.evaluate_every else 0,
    )


def _check_image_size(scale: Scale, size: int) -> None:
    if scale.published:
        raise InputError(
            f"--budget image_size={size}: scale {scale.name} is measured against a published reference of "
            f"{scale.tokenizer.image_size} px"
        )
    patch = scale.tokenizer.patch_size
    side = max(scale.tokenizer.latent_side, scale.single_scale.latent_side, max(scale.var_scales))
    if size % patch:
        raise InputError(f"--budget image_size={size}: must be a multiple of {patch}, the patch size of {scale.name}")
    if size < patch * side:
        raise InputError(
            f"--budget image_size={size}: scale {scale.name} has token maps of up to {side} x {side}, one per patch of "
            f"{patch} px, so it must be at least {patch * side}; a smaller scale has smaller ones"
        )


def _of_size(config: TokenizerConfig, size: int) -> TokenizerConfig:
    """A tokenizer for images of another size."""
    try:
        return variant(config, image_size=size)
    except InputError as error:
        raise InputError(f"--budget image_size={size}: {error}") from None


def _differences(scale: Scale, changed: Scale) -> tuple[tuple[str, int | float], ...]:
    """The fields in which two scales differ, with the new values; both models' together if they are equal."""
    found: list[tuple[str, int | float]] = []
    for name in TRAINING:
        new = {model: getattr(getattr(changed, f"{model}_training"), name) for model in TRAININGS}
        old = {model: getattr(getattr(scale, f"{model}_training"), name) for model in TRAININGS}
        differing = [model for model in TRAININGS if new[model] != old[model]]
        if len(differing) == len(TRAININGS) and len(set(new.values())) == 1:
            found.append((name, new["tokenizer"]))
        else:
            found += [(f"{model}_{name}", new[model]) for model in differing]
    if changed.tokenizer.image_size != scale.tokenizer.image_size:
        found.append(("image_size", changed.tokenizer.image_size))
    if changed.samples != scale.samples:
        found.append(("samples", changed.samples))
    if changed.proxy_steps != scale.proxy_steps:
        found.append(("proxy_steps", changed.proxy_steps))
    return tuple(found)
