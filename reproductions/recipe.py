"""What a row of a table is, and at which scales rows run.

A `Recipe` says what is built, a `Scale` how long it is trained and how it is evaluated. Rows of one table at one scale
share the scale, so that all train on equal budgets: the same steps, batch, optimiser and data order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from imagefolder.config import GeneratorConfig, LossConfig, SamplingConfig, TokenizerConfig, TrainingConfig, to_dict
from imagefolder.zoo import GENERATORS, TOKENIZERS


@dataclass(frozen=True)
class Recipe:
    """One row: a tokenizer and a generator by their names in the zoo."""

    row: str
    label: str
    note: str
    reported: str | None
    """the row's counterpart in reported/imagenet256.csv"""
    tokenizer: TokenizerConfig
    generator: GeneratorConfig


@dataclass(frozen=True)
class Scale:
    """Training budget and evaluation of every row."""

    name: str
    tokenizer_training: TrainingConfig
    generator_training: TrainingConfig
    loss: LossConfig
    sampling: SamplingConfig
    samples: int
    proxy_steps: int
    """training steps of the semantic teacher (from scratch) and of the proxy extractor"""
    pretrained: bool = False
    """encoder, decoder and teacher start from the backbone's published weights"""
    threads: int | None = None
    """CPU threads of a job (one job per that many cores); None: one job with all"""


SCALES = {
    scale.name: scale
    for scale in (
        # Digits are easy, so plain L2 does: no perceptual network and no discriminator. Its weight of 10 makes up for
        # the missing terms against the quantizer's losses; the semantic weight keeps its released ratio to it.
        Scale(
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
            proxy_steps=500,
            threads=1,
        ),
        Scale(
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
            loss=LossConfig(reconstruction=10.0, perceptual=0.0, semantic=0.1, adversarial=0.1),
            sampling=SamplingConfig(guidance=2.0, top_k=0, top_p=0.95, batch_size=50),
            samples=5000,
            proxy_steps=5000,
        ),
    )
}

# Raster order has no scales to grow guidance over; it gets the mean of the ramp throughout.
RASTER_GUIDANCE = 0.5


def on_this_machine(scale: Scale) -> Scale:
    """The scale with bfloat16 off where there is no GPU: many CPUs only emulate it, a hundred times slower."""
    if torch.cuda.is_available():
        return scale
    tokenizer = replace(scale.tokenizer_training, precision="no")
    return replace(
        scale, tokenizer_training=tokenizer, generator_training=replace(scale.generator_training, precision="no")
    )


def sampling_of(recipe: Recipe, scale: Scale) -> SamplingConfig:
    """Sampling settings of a row at a scale."""
    if recipe.generator.order == "raster":
        return replace(scale.sampling, guidance=RASTER_GUIDANCE * scale.sampling.guidance)
    return scale.sampling


def resolved(recipe: Recipe, scale: Scale) -> dict[str, object]:
    """Everything that decides a row's numbers besides data and seed, as JSON types."""
    return {
        "tokenizer": to_dict(recipe.tokenizer),
        "generator": to_dict(recipe.generator),
        "tokenizer_training": to_dict(scale.tokenizer_training),
        "generator_training": to_dict(scale.generator_training),
        "loss": to_dict(scale.loss),
        "sampling": to_dict(sampling_of(recipe, scale)),
        "samples": scale.samples,
        "proxy_steps": scale.proxy_steps,
        "pretrained": scale.pretrained,
    }


def make(
    row: str, label: str, note: str, tokenizer: str, generator: str, classes: int, reported: str | None = None
) -> Recipe:
    """A recipe from zoo names for a data set of `classes` classes."""
    config = TOKENIZERS[tokenizer]
    tokens = {name: getattr(config, name) for name in ("branches", "scales", "codebook_size", "code_dim")}
    return Recipe(row, label, note, reported, config, replace(GENERATORS[generator], num_classes=classes, **tokens))
