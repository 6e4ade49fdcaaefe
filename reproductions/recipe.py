"""What a table and its rows are, before anything is known about data, seed or machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from imagefolder.config import GeneratorConfig, LossConfig, SamplingConfig, TokenizerConfig, TrainingConfig, to_dict
from imagefolder.kinds import ORDERS
from reproductions.scales import SCALES, Scale

Measure = Literal["reconstruction", "perturbation", "probe", "generation", "evaluators"]


@dataclass(frozen=True)
class Recipe:
    """One row: a tokenizer, how its objective differs from the scale's, and a generator on its tokens (None:
    reconstruction only)."""

    row: str
    label: str
    note: str
    tokenizer: TokenizerConfig
    generator: GeneratorConfig | None = None
    loss: dict[str, Any] = field(default_factory=dict)
    """fields of LossConfig that differ from the scale's"""
    weight_decay: float | None = None
    """of the tokenizer's training, where it differs from the scale's (binary models)"""
    reported: str | None = None
    """the row's counterpart among the reported systems"""
    measures: tuple[Measure, ...] = ("reconstruction", "generation")
    sampling: dict[str, Any] = field(default_factory=dict)
    """fields of SamplingConfig that replace the scale's, in a row that is about sampling: it is measured with these
    settings alone, and not timed"""


@dataclass(frozen=True)
class Table:
    """A table of the paper, or another experiment.

    `rows` lists its recipes in order, given a scale and the number of classes of the data. `scales` are the scales it
    runs at, by name; a table may have its own budget.
    """

    name: str
    title: str
    rows: Callable[[Scale, int], list[Recipe]]
    scales: dict[str, Scale] = field(default_factory=lambda: SCALES)


def loss_of(recipe: Recipe, scale: Scale) -> LossConfig:
    """Training objective of a row's tokenizer at a scale."""
    return replace(scale.loss, **recipe.loss)


def training_of(recipe: Recipe, scale: Scale) -> TrainingConfig:
    """Training of a row's tokenizer at a scale."""
    training, decay = scale.tokenizer_training, recipe.weight_decay
    return training if decay is None else replace(training, weight_decay=decay)


def sampling_of(recipe: Recipe, scale: Scale) -> SamplingConfig:
    """Sampling settings that a row is measured with at a scale."""
    return replace(usual_sampling(recipe, scale), **recipe.sampling)


def usual_sampling(recipe: Recipe, scale: Scale) -> SamplingConfig:
    """Sampling settings of a row's generator at a scale, which are stored with it."""
    if recipe.generator is None:
        return scale.sampling
    return replace(scale.sampling, guidance=ORDERS[recipe.generator.order].guidance * scale.sampling.guidance)


def resolved(recipe: Recipe, scale: Scale) -> dict[str, Any]:
    """Everything that decides a row's numbers besides data and seed, as JSON types."""
    config: dict[str, Any] = {
        "tokenizer": to_dict(recipe.tokenizer),
        "tokenizer_training": to_dict(training_of(recipe, scale)),
        "loss": to_dict(loss_of(recipe, scale)),
        "measures": list(recipe.measures),
        "published": scale.published,
        "proxy_steps": scale.proxy_steps,
    }
    if "probe" in recipe.measures:
        config |= {"probe_epochs": scale.probe_epochs, "probe_batch": scale.probe_batch}
    if recipe.generator is not None:
        config |= {
            "generator": to_dict(recipe.generator),
            "generator_training": to_dict(scale.generator_training),
            "views": scale.views,
            "sampling": to_dict(sampling_of(recipe, scale)),
            "samples": scale.samples,
            "sampling_seeds": scale.sampling_seeds,
        }
    return config
