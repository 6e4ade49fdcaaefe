"""The tokenizer's two transformers and its input checks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import imagefolder
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.vit import with_positions

NAME = "mini-MSVR3P2-256"


@pytest.fixture
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return imagefolder.load_tokenizer(NAME)


def images(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def sequence_length(vit: nn.Module, run) -> int:
    """Length of the sequence that enters the first block during `run`."""
    lengths = []
    handle = vit.blocks[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    run()
    handle.remove()
    return lengths[0]


def test_sequences_of_encoder_and_decoder(tokenizer):
    assert sequence_length(tokenizer.encoder.vit, lambda: tokenizer.encode(images())) == 1 + 16 + 2 * 9
    tokens = tokenizer.encode(images())
    # the decoder's latents add a second class token
    assert sequence_length(tokenizer.decoder.vit, lambda: tokenizer.decode(tokens)) == 1 + 16 + 1 + 9


@pytest.mark.parametrize("backbone", ["vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_reg4_dinov2.lvd142m"])
def test_dinov2_backbones_with_and_without_registers(backbone):
    tokenizer = imagefolder.load_tokenizer(
        "MSVR10P2-4096", backbone=backbone, depth=1, image_size=64, scales=(1, 2, 3), codebook_size=16
    )
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    tokens = tokenizer.encode(picture)
    assert tokens.shape == (1, 2, 14)
    assert tokenizer.decode(tokens).shape == picture.shape


def test_positions_of_latents_are_the_resampled_table(tokenizer):
    vit = tokenizer.encoder.vit
    table = vit.pos_embed[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(table, (3, 3), mode="bicubic", antialias=True).flatten(2).mT
    found = with_positions(vit, torch.zeros(1, 9, vit.embed_dim), 3)
    torch.testing.assert_close(found[:, 1:], expected)
    torch.testing.assert_close(found[:, :1], vit.cls_token + vit.pos_embed[:, :1])


def test_pixels_of_a_patch_are_ordered_row_column_channel(tokenizer):
    decoder = tokenizer.decoder
    with torch.no_grad():
        decoder.to_pixels.weight.zero_()
        decoder.to_pixels.bias.copy_(torch.arange(8 * 8 * 3.0))
    picture = decoder.images(decoder(torch.zeros(1, 9, 64)))[0]
    patch = torch.arange(8 * 8 * 3.0).view(8, 8, 3)
    for row in range(0, 32, 8):
        for column in range(0, 32, 8):
            assert torch.equal(picture[:, row : row + 8, column : column + 8], patch.permute(2, 0, 1))


def test_patches_are_laid_out_row_by_row(tokenizer):
    decoder = tokenizer.decoder
    decoder.vit.norm = nn.Identity()
    decoder.vit.blocks = nn.Sequential(nn.Identity())
    with torch.no_grad():
        for parameter in (decoder.mask_token, decoder.level_embed.weight, decoder.vit.pos_embed):
            parameter.zero_()
        decoder.vit.pos_embed[0, 1:, 0] = torch.arange(16.0)
        decoder.to_pixels.weight.zero_()
        decoder.to_pixels.weight[:, 0] = 1
        decoder.to_pixels.bias.zero_()
    picture = decoder.images(decoder(torch.zeros(1, 9, 64)))[0, 0]
    assert torch.equal(picture[::8, ::8], torch.arange(16.0).view(4, 4))


def test_images_are_clamped_at_inference_only(tokenizer):
    with torch.no_grad():
        tokenizer.decoder.to_pixels.bias.fill_(3.0)
    assert tokenizer.reconstruct(images()).max() <= 1
    assert tokenizer(images()).images.max() > 1


def test_reconstruct_is_decode_of_encode(tokenizer):
    assert torch.equal(tokenizer.reconstruct(images()), tokenizer.decode(tokenizer.encode(images())))


def test_one_image_does_not_depend_on_its_batch(tokenizer):
    together = tokenizer.encode(images(4))
    assert torch.equal(together, torch.cat([tokenizer.encode(images(4)[i : i + 1]) for i in range(4)]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 3, 16, 16), r"\(B, 3, 32, 32\).*\(2, 3, 16, 16\)"),
        (torch.zeros(3, 32, 32), r"\(3, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "uint8"),
        (torch.full((2, 3, 32, 32), 255.0), r"\[-1, 1\]"),
        (torch.full((2, 3, 32, 32), torch.nan), r"\[-1, 1\]"),
    ],
)
def test_wrong_images_are_refused(tokenizer, bad, message):
    with pytest.raises(imagefolder.InputError, match=message):
        tokenizer.encode(bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 2, 13, dtype=torch.int64), r"\(B, 2, 14\)"),
        (torch.zeros(2, 2, 14), "int64"),
        (torch.full((2, 2, 14), 256), r"0\.\.255"),
        (torch.full((2, 2, 14), -1), r"0\.\.255"),
    ],
)
def test_wrong_tokens_are_refused(tokenizer, bad, message):
    with pytest.raises(imagefolder.InputError, match=message):
        tokenizer.decode(bad)


@pytest.mark.parametrize("semantic", ["last", "all"])
def test_contrastive_pairs_of_teacher_features_and_pooled_codes(semantic):
    torch.manual_seed(0)
    tokenizer = imagefolder.load_tokenizer(NAME, semantic=semantic, detail=True).train()
    features, detail = torch.randn(4, 64), torch.randn(4, 64)
    output = tokenizer(images(4), semantic=features, detail=detail)
    joint = output.quantized.z.mean((2, 3))
    projected, pooled = output.semantic
    assert projected.shape == pooled.shape == (4, 16)
    torch.testing.assert_close(projected, tokenizer.quant_conv(features))
    expected = joint[:, 16:] if semantic == "last" else tokenizer.semantic_projection(joint)
    torch.testing.assert_close(pooled, expected)
    projected, pooled = output.detail
    torch.testing.assert_close(projected, tokenizer.quant_conv(detail))
    torch.testing.assert_close(pooled, joint[:, :16])
