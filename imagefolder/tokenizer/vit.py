"""Encoder and decoder: timm vision transformers with latent tokens (docs/method.md, "The tokenizer").

Unlike a plain ViT, the latents get the backbone's own position table resampled to their grid, so that latent (i, j) of
every branch is aligned with the image; a learned level embedding tells image and latent tokens apart; and the decoder's
sequence holds a second class token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import is_model_in_modules
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imagefolder.config import TokenizerConfig
from imagefolder.errors import InputError, reason
from imagefolder.fused import added_keys, attention, is_fused, linear, mask_added
from imagefolder.numerics import without_tf32

VIT_MODULES = ("vision_transformer", "deit")  # of timm; their transformers have the parts used here
TOKEN_STD = 1e-6  # initial standard deviation of the learned latent and mask tokens


class ViT(VisionTransformer):
    """The parts used here of a timm vision transformer, with the types that timm leaves open; for annotations only."""

    embed_dim: int
    num_prefix_tokens: int
    pos_embed: Tensor
    patch_embed: Any
    blocks: Sequence[Any]
    pretrained_cfg: dict[str, Any]


def build_vit(config: TokenizerConfig) -> ViT:
    """The timm backbone of a configuration, freshly initialised, without classifier head.

    Raises:
        InputError: timm has no such vision transformer, cannot build it in this shape, or it lacks the parts used here.
    """
    if not is_model_in_modules(config.backbone, VIT_MODULES):
        raise InputError(f"backbone {config.backbone!r} is not a plain vision transformer of timm")
    shape: dict[str, Any] = {"embed_dim": config.width, "depth": config.depth, "num_heads": config.heads}
    try:
        vit = timm.create_model(
            config.backbone,
            pretrained=False,
            num_classes=0,
            img_size=config.image_size,
            patch_size=config.patch_size,
            drop_path_rate=config.drop_path,
            **{name: value for name, value in shape.items() if value is not None},
        )
    except Exception as error:  # timm raises many kinds, assertions among them
        raise InputError(f"backbone {config.backbone!r} cannot be built by timm: {reason(error)}") from None
    sound = (
        type(vit) is VisionTransformer
        and type(vit.patch_embed) is PatchEmbed
        and vit.patch_embed.flatten
        and vit.patch_embed.grid_size == (config.image_size // config.patch_size,) * 2
        and vit.pos_embed is not None
    )
    if not sound:
        raise InputError(
            f"backbone {config.backbone!r} is not a vision transformer on a sequence of patches with positions"
        )
    return cast("ViT", vit)


def with_positions(vit: ViT, tokens: Tensor, side: int) -> Tensor:
    """Prefix tokens (class, registers) and positions of `vit` for a square map.

    Args:
        tokens: (B, side*side, D).

    Returns:
        (B, prefix + side*side, D); the position table is resampled (bicubic, antialias) if `side` differs from the
        backbone's own grid.
    """
    prefix = [t.expand(len(tokens), -1, -1) for t in (vit.cls_token, vit.reg_token) if t is not None]
    grid_prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    positions = resample_abs_pos_embed(vit.pos_embed, new_size=[side, side], num_prefix_tokens=grid_prefix)
    if vit.no_embed_class:
        return torch.cat([*prefix, tokens + positions], dim=1)
    return torch.cat([*prefix, tokens], dim=1) + positions


def run_blocks(vit: ViT, x: Tensor, kept: slice) -> Tensor:
    """Blocks and final norm of a timm vision transformer, at the positions `kept` only.

    The last block computes queries, projection and MLP for these positions only; keys and values come from all.
    While training, `vit.grad_checkpointing` makes the backward pass recompute every block.
    """
    recomputed = vit.training and vit.grad_checkpointing

    def run(block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=False) if recomputed else block(x)

    x = vit.norm_pre(x)
    if is_fused(x) and all(_is_fusible(block) for block in vit.blocks):
        length, start, stop = x.shape[1], *kept.indices(x.shape[1])[:2]
        added = added_keys(length, x)
        mask, everything = mask_added(length, added), slice(None)
        x = F.pad(x, (0, 0, 0, added)) if added else x
        for block in vit.blocks[:-1]:
            x = run(partial(_fused_block, block, mask=mask, kept=everything), x)
        return vit.norm(run(partial(_fused_block, vit.blocks[-1], mask=mask, kept=slice(start, stop)), x))
    for block in vit.blocks[:-1]:
        x = run(block, x)
    return vit.norm(run(partial(_last_block, vit.blocks[-1], kept=kept), x))


def _is_fusible(block: nn.Module) -> bool:
    """Whether `_fused_block` computes what a block of timm does."""
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return False
    attn, mlp = block.attn, block.mlp
    if block._compiled_call_impl is not None or any(
        type(layer) is not nn.Linear for layer in (attn.qkv, attn.proj, mlp.fc1, mlp.fc2)
    ):
        return False
    parts = attn.q_norm, attn.k_norm, attn.norm, mlp.norm
    return (
        getattr(attn, "gate", None) is None
        and isinstance(mlp.act, nn.GELU)
        and all(isinstance(part, nn.Identity) for part in parts)
        and not any(drop.p for drop in (attn.attn_drop, attn.proj_drop, mlp.drop1, mlp.drop2))
    )


def _fused_block(block: Any, x: Tensor, *, mask: Tensor | None, kept: slice) -> Tensor:
    """A block of timm at the positions `kept`, with attention to the keys that `mask` shows."""
    attn, mlp = block.attn, block.mlp
    qkv = linear(block.norm1(x), attn.qkv.weight, attn.qkv.bias)
    q, k, v = qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    h = attention(q[:, :, kept], k, v, mask).transpose(1, 2).flatten(2)
    x = _add(x[:, kept], linear(h, attn.proj.weight, attn.proj.bias), block.ls1, block.drop_path1)
    h = linear(block.norm2(x), mlp.fc1.weight, mlp.fc1.bias, gelu=mlp.act.approximate)
    return _add(x, linear(h, mlp.fc2.weight, mlp.fc2.bias), block.ls2, block.drop_path2)


def _add(x: Tensor, h: Tensor, scale: nn.Module, drop_path: nn.Module) -> Tensor:
    """x + drop_path(scale(h)), in one operation if no path is dropped."""
    gamma = getattr(scale, "gamma", None)  # LayerScale's; or Identity
    if gamma is None or (drop_path.training and isinstance(drop_path, DropPath)):
        return x + drop_path(scale(h))
    return torch.addcmul(x, h, gamma)


def _last_block(block: nn.Module, x: Tensor, kept: slice) -> Tensor:
    if type(block) is not Block or type(block.attn) is not Attention or getattr(block.attn, "gate", None) is not None:
        # Other kinds of blocks are run as a whole
        return block(x)[:, kept]
    x, h = x[:, kept], block.norm1(x)
    x = x + block.drop_path1(block.ls1(_attend(block.attn, h, kept)))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _attend(attn: Attention, h: Tensor, kept: slice) -> Tensor:
    """timm's attention for the queries `kept`."""
    width, heads = attn.num_heads * attn.head_dim, attn.num_heads
    bias = (None, None) if attn.qkv.bias is None else attn.qkv.bias.split([width, 2 * width])
    q = F.linear(h[:, kept], attn.qkv.weight[:width], bias[0]).unflatten(-1, (heads, -1)).transpose(1, 2)
    k, v = F.linear(h, attn.qkv.weight[width:], bias[1]).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    dropout = attn.attn_drop.p if attn.training else 0.0
    out = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v, dropout_p=dropout)
    return attn.proj_drop(attn.proj(attn.norm(out.transpose(1, 2).flatten(2))))


class Encoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to latents (B, branches*K*K, D)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.vit = build_vit(config)
        self.branches = config.branches
        self.side = config.latent_side
        width = self.vit.embed_dim
        self.latent_tokens = nn.Parameter(torch.randn(1, self.branches * self.side**2, width) * TOKEN_STD)
        self.level_embed = nn.Embedding(1 + self.branches, width)
        nn.init.trunc_normal_(self.level_embed.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        vit = self.vit
        with without_tf32(images.device):
            patches = vit.patch_embed(images)
        image_tokens = with_positions(vit, patches, vit.patch_embed.grid_size[0]) + self.level_embed.weight[0]
        sequence = [image_tokens]
        # All branches use the same positions; the prefix (class slot) of this routine is computed and dropped
        latents = self.latent_tokens.view(self.branches, self.side**2, -1)
        latents = with_positions(vit, latents, self.side)[:, vit.num_prefix_tokens :]
        latents = latents + self.level_embed.weight[1:, None]
        sequence.append(latents.reshape(1, -1, latents.shape[-1]).expand(len(images), -1, -1))
        return run_blocks(vit, torch.cat(sequence, dim=1), slice(image_tokens.shape[1], None))


class Decoder(nn.Module):
    """Quantized latents (B, K*K, D) to the input of `images`: (B, grid*grid, D)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.vit = build_vit(config)
        del self.vit.patch_embed  # the decoder reads no pixels
        self.grid = config.image_size // config.patch_size
        self.side = config.latent_side
        self.patch_size = config.patch_size
        width = self.vit.embed_dim
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * TOKEN_STD)
        self.level_embed = nn.Embedding(2, width)
        nn.init.trunc_normal_(self.level_embed.weight, std=0.02)
        self.to_pixels = nn.Linear(width, 3 * config.patch_size**2)

    def forward(self, latents: Tensor) -> Tensor:
        vit = self.vit
        queries = self.mask_token.expand(len(latents), self.grid**2, -1)
        queries = with_positions(vit, queries, self.grid) + self.level_embed.weight[0]
        latents = with_positions(vit, latents, self.side) + self.level_embed.weight[1]
        kept = slice(vit.num_prefix_tokens, queries.shape[1])
        return run_blocks(vit, torch.cat([queries, latents], dim=1), kept)

    def images(self, hidden: Tensor) -> Tensor:
        """The last layer: (B, grid*grid, D) -> (B, 3, H, W), not clamped."""
        # (row, column) of patches, each (p_row, p_col, channel)
        p, g = self.patch_size, self.grid
        patches = self.to_pixels(hidden).view(-1, g, g, p, p, 3)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, g * p, g * p)
