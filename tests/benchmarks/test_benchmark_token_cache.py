"""A training step of the generator on cached tokens, and on images that it encodes itself: what the cache saves."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from benchmark_models import DEVICES, fast, generator_of

from imagefolder.config import TrainingConfig
from imagefolder.data.images import ArrayImages
from imagefolder.data.order import training_batches
from imagefolder.flops import BACKWARD, encode_flops, transformer_flops
from imagefolder.training.generator import GeneratorTask
from imagefolder.training.task import Step
from imagefolder.training.token_cache import build_token_cache

MINI = ("VAR-mini-MSVR3P2-256", "mini-MSVR3P2-256")
RELEASED = ("VAR-d17-MSVR10P2-4096", "MSVR10P2-4096")
MANY_STEPS = 1000


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("source", ["from cache", "encoding images"])
@pytest.mark.parametrize(
    ("names", "batch"),
    [pytest.param(MINI, 64, id="mini-64"), pytest.param(RELEASED, 8, id="released-8", marks=pytest.mark.large)],
)
def test_training_step(measure, tmp_path, names, batch, source, device):
    """Fetching a batch included; the images lie in memory, so that no decoding of files is measured."""
    dtype = fast(device)
    generator = generator_of(*names, device, "float32")
    tokenizer, config = generator.tokenizer, generator.tokenizer.config
    pixels = torch.randint(256, (2 * batch, 3, config.image_size, config.image_size), dtype=torch.uint8)
    images = ArrayImages(pixels, torch.randint(generator.config.num_classes, (2 * batch,)))
    flops = (1 + BACKWARD) * transformer_flops(generator.transformer)
    if source == "from cache":
        images = build_token_cache(
            tokenizer, images, tmp_path, tokenizer_sha256="", views=1, title="encoding", batch_size=batch
        )
    else:
        flops += encode_flops(tokenizer)
    task = GeneratorTask(generator, TrainingConfig(steps=MANY_STEPS, clip=2.0))
    task.model.train()
    accelerator = Accelerator(mixed_precision="bf16" if dtype == "bfloat16" else "no", cpu=device == "cpu")
    first = Step(0, 1, accelerator, torch.Generator())
    batches = iter(training_batches(images, batch, 0, 0, MANY_STEPS))

    def step() -> dict[str, torch.Tensor]:
        inputs, labels = next(batches)
        return task.step([(inputs.to(device), labels.to(device))], first)

    losses = measure(
        step, f"train generator: {source}", batch, device, dtype, batch * flops, rounds=2, model=names[0],
        tokens=batch * config.branches * config.length,
    )  # fmt: skip
    assert bool(torch.isfinite(losses["cross_entropy"]))
    task.model.eval()
