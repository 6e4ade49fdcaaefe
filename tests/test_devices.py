"""Other dtypes and devices agree with float32 on the CPU, within their precision."""

from __future__ import annotations

import pytest
import torch

import imagefolder

TOKENIZER, GENERATOR = "mini-MSVR3P2-256", "VAR-mini-MSVR3P2-256"
gpu = pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
OTHERS = [
    pytest.param("cpu", torch.bfloat16, id="cpu-bfloat16"),
    pytest.param("cuda", torch.float32, id="cuda-float32", marks=gpu),
    pytest.param("cuda", torch.bfloat16, id="cuda-bfloat16", marks=gpu),
]


def models(device: str, dtype: torch.dtype) -> imagefolder.Generator:
    """The same weights every time, large enough that the class and all tokens matter."""
    tokenizer = imagefolder.load_tokenizer(TOKENIZER)
    generator = imagefolder.load_generator(GENERATOR, tokenizer=tokenizer)
    weights = torch.Generator().manual_seed(0)
    for module in (tokenizer, generator.transformer):
        for parameter in module.parameters():
            parameter.data.normal_(std=0.1, generator=weights)
    tokenizer.to(device=device, dtype=dtype).quantizer.float()
    generator.transformer.to(device=device, dtype=dtype)
    return generator


@pytest.mark.parametrize(("device", "dtype"), OTHERS)
def test_other_devices_and_dtypes_agree_with_float32_on_the_cpu(device, dtype):
    reference, other = models("cpu", torch.float32), models(device, dtype)
    tolerance = 0.2 if dtype == torch.bfloat16 else 1e-3
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    tokens = reference.tokenizer.encode(images)
    decoded, decoded_other = reference.tokenizer.decode(tokens), other.tokenizer.decode(tokens).cpu()
    assert (decoded - decoded_other).abs().max() < tolerance * decoded.std()
    agreement = (other.tokenizer.encode(images).cpu() == tokens).float().mean()
    assert agreement > (0.7 if dtype == torch.bfloat16 else 0.99)
    labels = torch.tensor([1, 2, 3, 4])
    with torch.no_grad():
        logits, logits_other = reference(labels, tokens), other(labels, tokens).cpu()
    assert logits_other.dtype == torch.float32
    assert (logits - logits_other).abs().max() < tolerance * logits.std()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_seed_gives_the_same_tokens_on_the_gpu():
    labels = torch.arange(8)
    ours, theirs = (models(device, torch.float32).sample(labels, seed=3).tokens.cpu() for device in ("cpu", "cuda"))
    assert (ours == theirs).float().mean() > 0.99
