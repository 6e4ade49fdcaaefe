"""Fused operations in bfloat16 on a CPU agree with torch's own."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imagefolder.fused as fused
from imagefolder import zoo
from imagefolder.generator.model import Generator
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.vit import run_blocks

pytestmark = pytest.mark.skipif(not fused._is_available(), reason="torch has no packed bfloat16 products on this CPU")
HALF = {"rtol": 2e-2, "atol": 2e-2}
TOKENIZER, GENERATOR = zoo.TOKENIZERS["mini-MSVR3P2-256"], zoo.GENERATORS["VAR-mini-MSVR3P2-256"]


def bf16(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 96).bfloat16()


KINDS = {
    "alone": {},
    "gelu": {"gelu": "none"},
    "tanh gelu": {"gelu": "tanh"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_packed_layer_computes_what_torch_does(layer: nn.Linear, kind: str, bias: bool) -> None:
    x, offset = bf16(3, 5, 64), layer.bias if bias else None
    with fused.plain():
        assert not fused.is_fused(x)
        expected = fused.linear(x, layer.weight, offset, **KINDS[kind])
    assert fused.is_fused(x)
    found = fused.linear(x, layer.weight, offset, **KINDS[kind])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, **HALF)


@torch.no_grad()
def test_changed_weights_are_packed_again(layer: nn.Linear) -> None:
    x = bf16(4, 64)

    def check() -> None:
        expected = F.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(fused.linear(x, layer.weight, layer.bias), expected, **HALF)

    check()
    layer.weight.mul_(-3)
    check()
    layer.load_state_dict({"weight": bf16(96, 64, seed=5), "bias": bf16(96, seed=6)})
    check()
    layer.weight.data = bf16(96, 64, seed=7)
    check()
    layer.bias.zero_()
    check()


def test_packed_weights_go_with_their_layer(layer: nn.Linear) -> None:
    before = len(fused._packed)
    with torch.no_grad():
        fused.linear(bf16(4, 64), layer.weight, layer.bias)
    assert len(fused._packed) == before + 1
    layer.weight = nn.Parameter(bf16(96, 64))
    assert len(fused._packed) == before


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (64, 1200), (1200, 64)])
def test_gradients_are_those_of_torch(shape: tuple[int, int]) -> None:
    width, out = shape
    gradients = {}
    for kind, context in (("fused", nullcontext), ("plain", fused.plain)):
        torch.manual_seed(0)
        layer, x = nn.Linear(width, out), torch.randn(3, 40, width, requires_grad=True)
        with context(), torch.autocast("cpu", torch.bfloat16):
            y = fused.linear(x, layer.weight, layer.bias, gelu="tanh")
        assert y.dtype == torch.bfloat16
        y.backward(bf16(3, 40, out, seed=3))
        gradients[kind] = [t.grad for t in (x, layer.weight, layer.bias)]
    for found, expected in zip(gradients["fused"], gradients["plain"], strict=True):
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        torch.testing.assert_close(found, expected, **HALF)


MASKS = {
    "none": None,
    "of added keys": fused.mask_added(21, 11),
    "of blocks": fused.additive(torch.arange(32)[:, None] // 8 >= torch.arange(32) // 8),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("scale", [None, 1.0])
def test_gradients_of_attention_are_those_of_float32(kind: str, scale: float | None) -> None:
    mask, gradients = MASKS[kind], {}
    given = [bf16(2, 32, 3, 16, seed=seed).transpose(1, 2) for seed in range(3)]  # not contiguous, as from a projection
    for dtype in (torch.bfloat16, torch.float32):
        inputs = [each.to(dtype).detach().requires_grad_() for each in given]
        out = fused.attention(*inputs, None if mask is None else mask.to(dtype), scale)
        assert type(out.grad_fn).__name__.startswith("_Attention") == (dtype == torch.bfloat16)
        out.backward(bf16(2, 3, 32, 16, seed=3).to(dtype))
        gradients[dtype] = [each.grad.float() for each in inputs]
    for found, expected in zip(gradients[torch.bfloat16], gradients[torch.float32], strict=True):
        assert (found - expected).norm() < 2e-2 * expected.norm()
    if kind == "of added keys":
        assert all(not each[:, :, 21:].any() for each in gradients[torch.bfloat16][1:])


def test_float32_is_not_touched() -> None:
    x, layer = torch.randn(3, 64), nn.Linear(64, 96)
    assert not fused.is_fused(x)
    assert fused.added_keys(379, x) == 0
    assert torch.equal(fused.linear(x, layer.weight, layer.bias), F.linear(x, layer.weight, layer.bias))


@torch.no_grad()
def test_added_keys_change_nothing() -> None:
    q, k, v = (bf16(2, 3, 37, 8, seed=seed) for seed in range(3))
    added = fused.added_keys(37, q)
    assert added == 11
    more = [F.pad(t, (0, 0, 0, added), value=9.0) for t in (k, v)]
    mask = fused.mask_added(37, added)
    torch.testing.assert_close(
        F.scaled_dot_product_attention(q, *more, attn_mask=mask), F.scaled_dot_product_attention(q, k, v), **HALF
    )


@pytest.mark.parametrize("training", [True, False])
def test_transformer_blocks_of_the_tokenizer(training: bool) -> None:
    """With LayerScale and stochastic depth; the last block at some positions only."""
    torch.manual_seed(0)
    vit = Tokenizer(replace(TOKENIZER, drop_path=0.2)).encoder.vit.train(training)
    for block in vit.blocks:
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.2)
    x, kept = torch.randn(2, 37, vit.embed_dim), slice(5, 30)
    found = {}
    for kind, context in (("fused", nullcontext), ("plain", fused.plain)):
        torch.manual_seed(1)
        model = copy.deepcopy(vit)
        with context(), torch.set_grad_enabled(training):
            if training:
                with torch.autocast("cpu", torch.bfloat16):
                    y = run_blocks(model, x, kept)
                (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y).sin()).sum().backward()
                found[kind] = y, *(parameter.grad for parameter in model.blocks.parameters())
            else:
                found[kind] = (run_blocks(model.bfloat16(), x.bfloat16(), kept),)
    assert found["fused"][0].shape == (2, 25, vit.embed_dim)
    for a, b in zip(found["fused"], found["plain"], strict=True):
        assert relative_error(a, b) < 0.03


@pytest.mark.parametrize("order", ["folded", "unfolded"])
def test_logits_of_the_generator(order: str) -> None:
    """Teacher forcing and its gradients, and the same logits block by block while sampling."""
    torch.manual_seed(0)
    generator = Generator(replace(GENERATOR, order=order), Tokenizer(TOKENIZER))
    for parameter in generator.transformer.layers.parameters():
        nn.init.normal_(parameter, std=0.1)
    labels, tokens = torch.tensor([1, 2]), torch.randint(TOKENIZER.codebook_size, (2, 2, TOKENIZER.length))
    found = {}
    for kind, context in (("fused", nullcontext), ("plain", fused.plain)):
        model = copy.deepcopy(generator).train()
        with context(), torch.autocast("cpu", torch.bfloat16):
            logits = model(labels, tokens)
        logits.square().mean().backward()
        found[kind] = logits, *(parameter.grad for parameter in model.transformer.layers.parameters())
        model = copy.deepcopy(generator).eval()
        model.transformer.bfloat16()
        with context(), torch.no_grad():
            found[kind] += (model(labels, tokens),)
    for a, b in zip(found["fused"], found["plain"], strict=True):
        assert relative_error(a, b) < 0.03


@torch.no_grad()
def test_sampling_sees_what_teacher_forcing_saw() -> None:
    """The cache holds added keys, too: tokens that were sampled have the logits that sampling drew them from."""
    torch.manual_seed(0)
    generator = Generator(GENERATOR, Tokenizer(TOKENIZER)).eval()
    generator.transformer.bfloat16()
    samples = generator.sample([0, 1, 2], guidance=0.0, top_k=1, seed=3)
    logits = generator(torch.tensor([0, 1, 2]), samples.tokens)
    top = logits.topk(2, dim=-1)
    clear = top.values[..., 0] - top.values[..., 1] > 0.02 * logits.abs().max()  # not decided by rounding
    assert clear.float().mean() > 0.5
    assert torch.equal(top.indices[..., 0][clear], samples.tokens[clear])


def relative_error(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().float(), b.detach().float()
    return float((a - b).norm() / b.norm().clamp(min=1e-9))
