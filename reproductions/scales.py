"""The scales at which rows run: how large their models are, how long they train, and how they are evaluated.

All rows of a table at one scale share it, so that they train on equal budgets: the same steps, batch, optimiser and
data order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from imagefolder.config import GeneratorConfig, LossConfig, SamplingConfig, TokenizerConfig, TrainingConfig
from imagefolder.zoo import GENERATORS, RELEASED_GENERATOR_TRAINING, RELEASED_TRAINING, TOKENIZERS, variant

PROXY_STEPS, PROXY_IMAGES = 500, 1347  # of the digits


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Model sizes, training budget and evaluation settings of every row."""

    name: str
    tokenizer: TokenizerConfig
    """ImageFolder's"""
    generator: GeneratorConfig
    """ImageFolder's"""
    single_scale: TokenizerConfig
    """the raster baseline's, without semantic regularisation (the released VQ models have it)"""
    raster: GeneratorConfig
    """the raster baseline's"""
    var_scales: tuple[int, ...]
    """token maps of VAR"""
    tokenizer_training: TrainingConfig
    generator_training: TrainingConfig
    loss: LossConfig
    sampling: SamplingConfig
    samples: int
    sampling_seeds: int
    """sets of samples of each model whose distances make the spread of gFID; the first one gives all values"""
    views: int
    """augmented views of every training image, encoded once, whose tokens the generator cycles through; 0: a new crop
    every epoch, encoded on the fly"""
    probe_epochs: int
    probe_batch: int
    preview_every: int = 0
    """training steps between measurements of a few images, for the curve only (`imagefolder.evaluation.preview`); 0:
    none"""
    preview_images: int = 0
    """how many images: samples of generators, test images that tokenizers reconstruct"""
    published: bool = False
    """use published weights: the backbone's in encoder, decoder and teacher, Inception for the metrics; otherwise
    models train from scratch, and teacher and extractor are small networks trained on the data (proxies)"""
    proxy_steps: int = 0
    """training steps of the proxies; 0: as many as the number of training images asks for (`proxy_steps_for`)"""
    threads: int | None = None
    """CPU threads of a stage (as many stages run at once as the machine has room for); None: one stage, all threads"""
    budget: tuple[tuple[str, int | float], ...] = ()
    """fields of `--budget` that differ from the scale's, with their values (`reproductions.budget`)"""

    @property
    def budget_text(self) -> str:
        """As on the command line: "steps=500 batch_size=16"; "" if nothing differs."""
        return " ".join(f"{name}={value!r}" for name, value in self.budget)


# Digits are easy, so plain L2 suffices: no perceptual network and no discriminator. Its weight of 10 makes up for the
# missing terms against the quantizer's losses; the semantic weight keeps its released ratio to it.
_MINI = Scale(
    name="mini",
    tokenizer=TOKENIZERS["mini-MSVR3P2-256"],
    generator=GENERATORS["VAR-mini-MSVR3P2-256"],
    single_scale=variant(TOKENIZERS["mini-VQ-256"], semantic="none"),
    raster=GENERATORS["AR-mini-VQ-256"],
    var_scales=(1, 2, 3, 4),
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
    sampling_seeds=3,
    views=1,
    probe_epochs=100,  # there are only 1347 images: after 10 epochs at the published rate the probe has barely moved
    probe_batch=32,
    preview_every=100,
    preview_images=200,
    threads=1,
)

# As mini: two ordinary cores have no time for a perceptual network or a discriminator. One row takes an hour
# there, proxies and evaluation included (with AMX). The tokenizer learns faster from many small batches: at equal cost,
# PSNR is 2 dB higher after 800 steps of 16 than after 400 of 32.
_LAPTOP = Scale(
    name="laptop",
    tokenizer=TOKENIZERS["laptop-MSVR4P2-4096"],
    generator=GENERATORS["VAR-laptop-MSVR4P2-4096"],
    single_scale=variant(TOKENIZERS["laptop-VQ-4096"], semantic="none"),
    raster=GENERATORS["AR-laptop-VQ-4096"],
    var_scales=(1, 2, 3, 4, 6, 8),
    tokenizer_training=TrainingConfig(
        steps=8000,
        batch_size=16,
        learning_rate=1e-3,
        warmup=0.05,
        clip=1.0,
        ema=0.99,
        checkpoint_every=500,
        precision="bf16",
    ),
    generator_training=TrainingConfig(
        steps=2000,
        batch_size=32,
        learning_rate=1e-3,
        weight_decay=0.05,
        schedule="linear",
        warmup=0.05,
        clip=2.0,
        ema=0.99,
        checkpoint_every=250,
        precision="bf16",
    ),
    loss=LossConfig(reconstruction=10.0, perceptual=0.0, semantic=0.1, adversarial=0.0),
    sampling=SamplingConfig(guidance=2.0, top_k=0, top_p=0.95),
    samples=1000,
    sampling_seeds=3,
    views=4,
    probe_epochs=50,
    probe_batch=64,
    preview_every=500,
    preview_images=100,
    threads=2,
)

_SMALL = Scale(
    name="small",
    tokenizer=TOKENIZERS["small-MSVR8P2-1024"],
    generator=GENERATORS["VAR-small-MSVR8P2-1024"],
    single_scale=variant(TOKENIZERS["small-VQ-1024"], semantic="none"),
    raster=GENERATORS["AR-small-VQ-1024"],
    var_scales=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
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
    sampling_seeds=2,
    views=4,
    probe_epochs=10,
    probe_batch=256,
    preview_every=5000,
    preview_images=500,
)

# As released, with one exception: the generator trains on the tokens of ten views per image, encoded once, where the
# release encodes a new crop every epoch (--views 0).
_FULL = Scale(
    name="full",
    tokenizer=TOKENIZERS["MSVR10P2-4096"],
    generator=GENERATORS["VAR-d17-MSVR10P2-4096"],
    single_scale=variant(TOKENIZERS["VQ-4096"], semantic="none"),
    raster=GENERATORS["AR-d17-VQ-4096"],
    var_scales=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    tokenizer_training=RELEASED_TRAINING,
    generator_training=RELEASED_GENERATOR_TRAINING,
    loss=LossConfig(),
    sampling=SamplingConfig(),
    samples=50_000,
    sampling_seeds=1,
    views=10,
    probe_epochs=10,
    probe_batch=256,
    preview_every=50_000,
    preview_images=1000,
    published=True,
)


def proxy_steps_for(images: int) -> int:
    """Training steps of the proxies for a number of training images.

    They grow with its square root: few images are soon learned by heart (320: 244 steps, 49 epochs), many need several
    times more steps, but fewer epochs (60,000: 3,337 steps, 4 epochs). The digits have 500 steps.
    """
    return round(PROXY_STEPS * math.sqrt(images / PROXY_IMAGES))


SCALES = {scale.name: scale for scale in (_MINI, _LAPTOP, _SMALL, _FULL)}
