"""The tokenizer's stages: encode, decode, reconstruct, quantizers alone, and the training step."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from benchmark_models import DEVICES, fast, require_fast, tokenizer_of

from imagefolder.config import LossConfig, TrainingConfig
from imagefolder.flops import (
    BACKWARD,
    counted_flops,
    decode_flops,
    encode_flops,
    features_flops,
    pixels_flops,
    search_flops,
)
from imagefolder.tokenizer.semantic import blank_teacher
from imagefolder.training.task import Step
from imagefolder.training.tokenizer import TokenizerTask, new_tokenizer

MINI, RELEASED = "mini-MSVR3P2-256", "MSVR10P2-4096"
CASES = [
    pytest.param(MINI, 1, id="mini-1"),
    pytest.param(MINI, 64, id="mini-64"),
    pytest.param(RELEASED, 2, id="released-2"),
    pytest.param(RELEASED, 8, id="released-8", marks=pytest.mark.large),
    pytest.param(RELEASED, 16, id="released-16", marks=pytest.mark.large),
]
devices = pytest.mark.parametrize("device", DEVICES)
dtypes = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
cases = pytest.mark.parametrize(("name", "batch"), CASES)


def images_for(name: str, batch: int, device: str) -> torch.Tensor:
    side = tokenizer_of(name, device, "float32").config.image_size if name == MINI else 256
    return torch.rand(batch, 3, side, side, device=device) * 2 - 1


@devices
@dtypes
@cases
def test_encode(measure, name, batch, device, dtype):
    require_fast(device, dtype)
    tokenizer, images = tokenizer_of(name, device, dtype), images_for(name, batch, device)
    tokens = measure(
        lambda: tokenizer.encode(images), "encode", batch, device, dtype, batch * encode_flops(tokenizer),
        model=name, tokens=batch * tokenizer.config.branches * tokenizer.config.length,
    )  # fmt: skip
    assert tokens.shape == (batch, tokenizer.config.branches, tokenizer.config.length)


@devices
@dtypes
@cases
def test_decode(measure, name, batch, device, dtype):
    require_fast(device, dtype)
    tokenizer = tokenizer_of(name, device, dtype)
    config = tokenizer.config
    tokens = torch.randint(config.codebook_size, (batch, config.branches, config.length), device=device)
    images = measure(
        lambda: tokenizer.decode(tokens), "decode", batch, device, dtype, batch * decode_flops(tokenizer),
        model=name, tokens=tokens.numel(),
    )  # fmt: skip
    assert images.shape == (batch, 3, config.image_size, config.image_size)


@devices
@dtypes
@cases
def test_reconstruct(measure, name, batch, device, dtype):
    require_fast(device, dtype)
    tokenizer, images = tokenizer_of(name, device, dtype), images_for(name, batch, device)
    flops = batch * (encode_flops(tokenizer) + decode_flops(tokenizer))
    out = measure(lambda: tokenizer.reconstruct(images), "reconstruct", batch, device, dtype, flops, model=name)
    assert out.shape == images.shape


@devices
@pytest.mark.parametrize("name", [MINI, RELEASED, "MSVR10P2-16384", "MSBR10P2-16384", "VQ-4096"])
def test_quantize(measure, name, device):
    tokenizer = tokenizer_of(name, device, "float32", depth=1)
    config, batch = tokenizer.config, 16
    latents = torch.randn(
        batch, config.branches, config.code_dim, config.latent_side, config.latent_side, device=device
    )
    with torch.no_grad():
        tokens = measure(
            lambda: tokenizer.quantizer.encode(latents), "quantize", batch, device, "float32",
            batch * search_flops(tokenizer), model=name, tokens=batch * config.branches * config.length,
        )  # fmt: skip
    assert tokens.shape == (batch, config.branches, config.length)


@devices
@pytest.mark.parametrize("adversarial", [False, True], ids=["plain", "discriminator"])
@pytest.mark.parametrize(
    ("name", "batch"),
    [pytest.param(MINI, 64, id="mini-64"), pytest.param(RELEASED, 8, id="released-8", marks=pytest.mark.large)],
)
def test_training_step(measure, name, batch, adversarial, device):
    """Semantic teacher and PatchGAN with random weights; without LPIPS, whose weights are not part of this project."""
    dtype = fast(device)
    torch.manual_seed(0)
    config = tokenizer_of(name, "cpu", "float32").config
    weight = 0.5 if adversarial else 0.0
    loss = LossConfig(perceptual=0.0, adversarial=weight, adversarial_start=0.0, discriminator="patch")
    task = TokenizerTask(new_tokenizer(config), TrainingConfig(steps=10), loss, teacher=blank_teacher(config))
    for module in (task.model.train(), *task.modules.values(), *task.frozen):
        module.to(device)
    side = config.image_size
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    accelerator = Accelerator(mixed_precision="bf16" if dtype == "bfloat16" else "no", cpu=device == "cpu")
    first = Step(0, 1, accelerator, torch.Generator())
    flops = (1 + BACKWARD) * (encode_flops(task.model) + pixels_flops(task.model)) + features_flops(
        task.teachers[0].vit
    )
    if adversarial:
        # Generator's side: forward and gradient of the input; its own: forward and backward of real and fake
        flops += (2 + 2 * (1 + BACKWARD)) * counted_flops(lambda: task.discriminator(images[:1].float()))
    losses = measure(
        lambda: task.step([(images, torch.zeros(batch))], first),
        "train tokenizer with discriminator" if adversarial else "train tokenizer",
        batch, device, dtype, batch * flops, model=name,
    )  # fmt: skip
    assert ("discriminator" in losses) == adversarial
