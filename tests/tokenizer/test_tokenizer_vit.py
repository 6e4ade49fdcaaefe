"""The shortened last block gives the same outputs as the whole block at the positions that are used."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from imagefolder.tokenizer.vit import run_blocks

VITS = {
    "dinov2": ("vit_small_patch14_dinov2.lvd142m", {}),
    "registers": ("vit_small_patch14_reg4_dinov2.lvd142m", {}),
    "no bias": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "normalised attention": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "other blocks": ("vit_tiny_patch16_224", {"block_fn": timm.models.vision_transformer.ResPostBlock}),
}


def build(name: str) -> nn.Module:
    backbone, options = VITS[name]
    torch.manual_seed(0)
    vit = timm.create_model(backbone, num_classes=0, embed_dim=48, depth=3, num_heads=4, **options)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("kept", [slice(7, None), slice(1, 9), slice(None)])
def test_kept_positions_are_those_of_the_whole_network(name, kept):
    vit, x = build(name).eval(), torch.randn(2, 20, 48)
    with torch.no_grad():
        expected = vit.norm(vit.blocks(vit.norm_pre(x)))[:, kept]
        torch.testing.assert_close(run_blocks(vit, x, kept), expected, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_whole_network():
    vit = build("dinov2").train()
    gradients = []
    for shortened in (True, False):
        vit.zero_grad()
        x = torch.randn(2, 20, 48, generator=torch.Generator().manual_seed(1)).requires_grad_()
        kept = slice(5, 15)
        out = run_blocks(vit, x, kept) if shortened else vit.norm(vit.blocks(vit.norm_pre(x)))[:, kept]
        out.square().mean().backward()
        gradients.append([x.grad, *(p.grad.clone() for p in vit.blocks.parameters())])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_last_block_does_less_work():
    from imagefolder.flops import counted_flops, vit_flops

    vit, x = build("dinov2").eval(), torch.randn(1, 20, 48)
    assert counted_flops(lambda: run_blocks(vit, x, slice(15, None))) == vit_flops(vit, 20, 5)
    assert counted_flops(lambda: vit.blocks(x)) == vit_flops(vit, 20, 20)
    assert vit_flops(vit, 20, 5) < vit_flops(vit, 20, 20)
