"""The generator's stages: teacher forcing, training step, sampling end to end and its parts."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from benchmark_models import DEVICES, DTYPES, fast, generator_of, passes_of_a_sample, require_fast

from imagefolder.config import TrainingConfig
from imagefolder.flops import BACKWARD, decode_flops, pixels_flops, sample_flops, transformer_flops
from imagefolder.generator.sampling import draw
from imagefolder.training.generator import GeneratorTask
from imagefolder.training.task import Step

MINI = ("VAR-mini-MSVR3P2-256", "mini-MSVR3P2-256")
RELEASED = ("VAR-d17-MSVR10P2-4096", "MSVR10P2-4096")
CASES = [
    pytest.param(MINI, 1, id="mini-1"),
    pytest.param(MINI, 64, id="mini-64"),
    pytest.param(RELEASED, 1, id="released-1"),
    pytest.param(RELEASED, 8, id="released-8", marks=pytest.mark.large),
    pytest.param(RELEASED, 16, id="released-16", marks=pytest.mark.large),
]
devices = pytest.mark.parametrize("device", DEVICES)
dtypes = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
cases = pytest.mark.parametrize(("names", "batch"), CASES)


def inputs_for(names: tuple[str, str], batch: int, device: str, dtype: str):
    generator = generator_of(*names, device, dtype)
    config = generator.config
    torch.manual_seed(0)
    labels = torch.randint(config.num_classes, (batch,), device=device)
    shape = (batch, config.branches, generator.tokenizer.config.length)
    return generator, labels, torch.randint(config.codebook_size, shape, device=device)


@devices
@dtypes
@cases
def test_teacher_forcing(measure, names, batch, device, dtype):
    require_fast(device, dtype)
    generator, labels, tokens = inputs_for(names, batch, device, dtype)
    with torch.no_grad():
        logits = measure(
            lambda: generator(labels, tokens), "teacher forcing", batch, device, dtype,
            batch * transformer_flops(generator.transformer), model=names[0], tokens=tokens.numel(),
        )  # fmt: skip
    assert logits.dtype == torch.float32


@devices
@pytest.mark.parametrize(
    ("names", "batch"),
    [pytest.param(MINI, 64, id="mini-64"), pytest.param(RELEASED, 8, id="released-8", marks=pytest.mark.large)],
)
def test_training_step(measure, names, batch, device):
    dtype = fast(device)
    generator, labels, tokens = inputs_for(names, batch, device, "float32")
    task = GeneratorTask(generator, TrainingConfig(steps=10, clip=2.0))
    task.model.train()
    accelerator = Accelerator(mixed_precision="bf16" if dtype == "bfloat16" else "no", cpu=device == "cpu")
    first = Step(0, 1, accelerator, torch.Generator())
    flops = (1 + BACKWARD) * batch * transformer_flops(generator.transformer)
    losses = measure(
        lambda: task.step([(tokens, labels)], first), "train generator", batch, device, dtype, flops, rounds=2,
        model=names[0], tokens=tokens.numel(),
    )  # fmt: skip
    assert bool(torch.isfinite(losses["cross_entropy"]))
    task.model.eval()


@devices
@dtypes
@cases
def test_sample(measure, names, batch, device, dtype):
    require_fast(device, dtype)
    generator, labels, tokens = inputs_for(names, batch, device, dtype)
    out = measure(
        lambda: generator.sample(labels), "sample", batch, device, dtype, batch * sample_flops(generator),
        rounds=2 if names is RELEASED else 5, model=names[0], order="folded", tokens=tokens.numel(),
        positions=generator.transformer.sequence.length,
    )  # fmt: skip
    assert out.tokens.shape == tokens.shape


@devices
@dtypes
@cases
def test_sample_transformer_part(measure, names, batch, device, dtype):
    """All passes of a sample with guidance, on made-up inputs: what `sample` costs beside drawing and decoding."""
    require_fast(device, dtype)
    generator, labels, _ = inputs_for(names, batch, device, dtype)
    flops = batch * (sample_flops(generator) - decode_flops(generator.tokenizer))
    logits = measure(
        lambda: passes_of_a_sample(generator.transformer, labels), "sample: transformer", batch, device, dtype, flops,
        rounds=2, model=names[0],
    )  # fmt: skip
    assert logits.shape[0] == 2 * batch


@devices
@pytest.mark.parametrize("batch", [1, 16])
def test_sample_draw_part(measure, batch, device):
    """Top-k 750 and top-p 0.95 over all positions of the released model."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(batch, 2, 286, 4096, device=device)
    u = torch.rand(batch, 2, 286, dtype=torch.float64, device=device)
    tokens = measure(
        lambda: draw(logits, u, 750, 0.95), "sample: draw", batch, device, model=RELEASED[0], tokens=u.numel()
    )
    assert tokens.shape == u.shape


@devices
@dtypes
@cases
def test_sample_decoder_part(measure, names, batch, device, dtype):
    require_fast(device, dtype)
    generator, _, tokens = inputs_for(names, batch, device, dtype)
    tokenizer = generator.tokenizer
    with torch.no_grad():
        f_hat = tokenizer.quantizer.decode(tokens)
        images = measure(
            lambda: tokenizer.decode_map(f_hat), "sample: decode", batch, device, dtype,
            batch * pixels_flops(tokenizer), model=names[0],
        )  # fmt: skip
    assert images.dtype == torch.float32
    assert DTYPES[dtype] == tokenizer.quant_conv.weight.dtype
