"""What a row of a table is, and at which scales rows run.

A `Recipe` says what is built, a `Scale` how long it is trained and how it is evaluated. Rows of one table at one scale
share the scale, so that all train on equal budgets: the same steps, batch, optimiser and data order.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from imagefolder.config import GeneratorConfig, LossConfig, SamplingConfig, TokenizerConfig, TrainingConfig, to_dict
from imagefolder.zoo import RELEASED_GENERATOR_TRAINING, RELEASED_TRAINING

Measure = Literal["reconstruction", "perturbation", "probe", "generation"]


@dataclass(frozen=True)
class Recipe:
    """One row: a tokenizer, what its objective changes, and a generator on its tokens (None: reconstruction only)."""

    row: str
    label: str
    note: str
    tokenizer: TokenizerConfig
    generator: GeneratorConfig | None = None
    loss: dict[str, Any] = field(default_factory=dict)
    """fields of LossConfig that differ from the scale's"""
    weight_decay: float | None = None
    """of the tokenizer's training, where it is not the scale's (binary models)"""
    reported: str | None = None
    """the row's counterpart in reported/imagenet256.csv"""
    measures: tuple[Measure, ...] = ("reconstruction", "generation")


@dataclass(frozen=True)
class Scale:
    """Training budget and evaluation of every row."""

    name: str
    tokenizer_training: TrainingConfig
    generator_training: TrainingConfig
    loss: LossConfig
    sampling: SamplingConfig
    samples: int
    views: int
    """augmented views of every training image, encoded once, whose tokens the generator learns from in turns; 0: every
    epoch sees a new crop, which is encoded as it comes"""
    probe_epochs: int
    probe_batch: int
    published: bool = False
    """published weights everywhere: the backbone's in encoder, decoder and teacher, Inception in the metrics; else the
    models start from scratch, and teacher and extractor are small networks trained on the data (proxies)"""
    proxy_steps: int = 0
    """training steps of the proxies"""
    threads: int | None = None
    """CPU threads of a job (one job per that many cores); None: one job with all"""


# Digits are easy, so plain L2 does: no perceptual network and no discriminator. Its weight of 10 makes up for the
# missing terms against the quantizer's losses; the semantic weight keeps its released ratio to it.
_MINI = Scale(
    name="mini",
    tokenizer_training=TrainingConfig(
        steps=1000, batch_size=32, learning_rate=3e-3, warmup=0.05, clip=1.0, ema=0.99, checkpoint_every=250
    ),
    generator_training=TrainingConfig(
        steps=500,
        batch_size=64,
        learning_rate=2e-3,
        weight_decay=0.05,
        schedule="linear",
        warmup=0.05,
        clip=2.0,
        ema=0.99,
        checkpoint_every=250,
    ),
    loss=LossConfig(reconstruction=10.0, perceptual=0.0, semantic=0.1, adversarial=0.0),
    sampling=SamplingConfig(guidance=2.0, top_k=0, top_p=0.95),
    samples=1000,
    views=1,
    probe_epochs=100,  # 1347 images are few: 10 epochs at the published rate would leave the probe where it began
    probe_batch=32,
    proxy_steps=500,
    threads=1,
)

_SMALL = Scale(
    name="small",
    tokenizer_training=TrainingConfig(
        steps=60_000, batch_size=128, learning_rate=3e-4, warmup=0.02, clip=1.0, ema=0.999, precision="bf16"
    ),
    generator_training=TrainingConfig(
        steps=60_000,
        batch_size=256,
        learning_rate=2e-4,
        weight_decay=0.05,
        schedule="linear",
        warmup=0.02,
        clip=2.0,
        ema=0.999,
        precision="bf16",
    ),
    loss=LossConfig(reconstruction=10.0, perceptual=0.0, semantic=0.1, adversarial=0.1, discriminator="patch"),
    sampling=SamplingConfig(guidance=2.0, top_k=0, top_p=0.95, batch_size=50),
    samples=5000,
    views=4,
    probe_epochs=10,
    probe_batch=256,
    proxy_steps=5000,
)

# As released, but for one thing: the generator learns from the tokens of ten views per image, encoded once, where the
# release encodes a new crop in each of its epochs (--views 0).
_FULL = Scale(
    name="full",
    tokenizer_training=RELEASED_TRAINING,
    generator_training=RELEASED_GENERATOR_TRAINING,
    loss=LossConfig(),
    sampling=SamplingConfig(),
    samples=50_000,
    views=10,
    probe_epochs=10,
    probe_batch=256,
    published=True,
)

SCALES = {scale.name: scale for scale in (_MINI, _SMALL, _FULL)}

# Raster order has no scales to grow guidance over; it gets the mean of the ramp throughout.
RASTER_GUIDANCE = 0.5


def on_this_machine(scale: Scale) -> Scale:
    """The scale with half precision off where there is no GPU: many CPUs only emulate it, a hundred times slower."""
    if torch.cuda.is_available():
        return scale
    tokenizer = replace(scale.tokenizer_training, precision="no")
    return replace(
        scale, tokenizer_training=tokenizer, generator_training=replace(scale.generator_training, precision="no")
    )


def loss_of(recipe: Recipe, scale: Scale) -> LossConfig:
    """Training objective of a row's tokenizer at a scale."""
    return replace(scale.loss, **recipe.loss)


def training_of(recipe: Recipe, scale: Scale) -> TrainingConfig:
    """Training of a row's tokenizer at a scale."""
    training, decay = scale.tokenizer_training, recipe.weight_decay
    return training if decay is None else replace(training, weight_decay=decay)


def sampling_of(recipe: Recipe, scale: Scale) -> SamplingConfig:
    """Sampling settings of a row at a scale."""
    if recipe.generator is not None and recipe.generator.order == "raster":
        return replace(scale.sampling, guidance=RASTER_GUIDANCE * scale.sampling.guidance)
    return scale.sampling


def resolved(recipe: Recipe, scale: Scale) -> dict[str, object]:
    """Everything that decides a row's numbers besides data and seed, as JSON types."""
    config = {
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
        }
    return config
