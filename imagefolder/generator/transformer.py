"""The block-causal transformer (docs/method.md, "The generator"): AdaLN blocks, cosine attention, one head chunk per
branch.

It knows positions, levels and a mask, not what tokens mean: `sequence.py` decides what goes in and what is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imagefolder.config import GeneratorConfig
from imagefolder.fused import KEYS, added_keys, additive, attention, is_fused, linear, mask_added, through
from imagefolder.generator.sequence import build_sequence

MAX_LOG_SCALE = math.log(100)


class Attention(nn.Module):
    """Multi-head attention without key bias; q and k normalised per head and scaled by a learned factor (qk_norm)."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.qk_norm = config.qk_norm
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        if self.qk_norm:
            self.log_scale = nn.Parameter(torch.full((1, self.heads, 1, 1), math.log(4)))
            self.softmax_scale = 1.0
        else:
            self.softmax_scale = 0.25 / math.sqrt(width // self.heads)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = linear(x, self.qkv.weight, bias.to(self.qkv.weight.dtype))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, n, head dim)
        if self.qk_norm:
            scale = self.log_scale.clamp(max=MAX_LOG_SCALE).exp()
            q = (F.normalize(q, dim=-1) * scale).to(v.dtype)
            k = F.normalize(k, dim=-1).to(v.dtype)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        x = attention(q, k, v, mask, self.softmax_scale)
        return through(self.proj, x.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and MLP, each modulated by (gamma, scale, shift) of the class embedding."""

    def __init__(self, config: GeneratorConfig, drop_path: float) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.attn = Attention(config)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.ada = nn.Linear(width, 6 * width)
        self.drop_path = DropPath(drop_path)

    def modulations(self, condition: Tensor) -> Tensor:
        """SiLU of the class embedding (B, D) -> (6, B, 1, D): gamma1, gamma2, scale1, scale2, shift1, shift2."""
        return through(self.ada, condition).unflatten(-1, (6, 1, -1)).movedim(1, 0)

    def forward(self, x: Tensor, modulations: Tensor, mask: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulations
        x = self._add(x, self.attn(_modulate(x, scale1, shift1), mask, cache, layer), gamma1)
        up, _, down = self.mlp
        h = through(up, _modulate(x, scale2, shift2), gelu="tanh")
        return self._add(x, through(down, h), gamma2)

    def _add(self, x: Tensor, h: Tensor, gamma: Tensor) -> Tensor:
        if self.training or not is_fused(x):
            return x + self.drop_path(h * gamma)
        return torch.addcmul(x, h, gamma)


class Cache:
    """Keys and values of all layers, allocated once for the whole sequence."""

    def __init__(self, *, layers: int, batch: int, heads: int, length: int, head_dim: int, like: Tensor) -> None:
        self.padded = is_fused(like)  # not asked again: compiled layers would answer differently
        length += self._added(length)
        self.keys = like.new_empty(layers, batch, heads, length, head_dim)
        self.values = torch.empty_like(self.keys)
        self.filled = 0  # positions that every layer holds; the transformer advances it after its last layer

    def _added(self, length: int) -> int:
        return -length % KEYS if self.padded else 0

    def mask(self, new: int) -> Tensor | None:
        """Which keys the next positions attend to, `new` ones: all that `extend` returns but added ones."""
        stop = self.filled + new
        return mask_added(stop, self._added(stop))

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, heads, n, d) of a layer; returns all so far, followed by zeros if any are
        added."""
        stop = self.filled + k.shape[2]
        shown = stop + self._added(stop)
        for kept, new in ((self.keys[layer], k), (self.values[layer], v)):
            kept[:, :, self.filled : stop] = new
            kept[:, :, stop:shown] = 0
        return self.keys[layer, :, :, :shown], self.values[layer, :, :, :shown]


class Transformer(nn.Module):
    """Class labels and block inputs to logits.

    `condition` computes everything that depends on the class alone, once per batch; `run` processes consecutive
    positions, with all keys present (teacher forcing, `mask`) or with a cache (sampling).
    """

    layers: Sequence[Layer]
    mask: Tensor
    level_of_position: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.sequence = build_sequence(config)
        self.grad_checkpointing = False
        width, length = config.width, self.sequence.length
        self.first = self.sequence.blocks[0].stop
        self.input_embed = nn.Linear(config.branches * config.code_dim, width)
        self.class_embed = nn.Embedding(config.num_classes + 1, width)  # last row: no class
        self.start_position = nn.Parameter(torch.empty(1, self.first, width))
        self.position_embed = nn.Parameter(torch.empty(1, length, width))
        self.level_embed = nn.Embedding(self.sequence.levels, width)
        if config.token_dropout:
            self.empty_embed = nn.Parameter(torch.empty(1, 1, width))
        drop_paths = [config.drop_path * layer / max(config.depth - 1, 1) for layer in range(config.depth)]
        self.layers = cast("Sequence[Layer]", nn.ModuleList(Layer(config, drop_path) for drop_path in drop_paths))
        self.head_ada = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, config.branches * config.codebook_size)
        self.register_buffer("mask", self.sequence.mask(), persistent=False)
        self.register_buffer("level_of_position", self.sequence.level_of_position, persistent=False)
        self._init_weights()

    def _init_weights(self) -> None:
        std = math.sqrt(1 / (3 * self.config.width))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.start_position, std=std)
        nn.init.trunc_normal_(self.position_embed, std=std)
        if self.config.token_dropout:
            nn.init.trunc_normal_(self.empty_embed, std=std)
        self.head.weight.data.mul_(0.02)
        self.head_ada.weight.data.mul_(0.5)
        width = self.config.width
        for layer in self.layers:
            layer.ada.weight.data.mul_(0.5)
            # gamma_init is the whole factor on the gammas, not one on top of 0.5
            layer.ada.weight.data[: 2 * width].mul_(self.config.gamma_init / 0.5)
            for last in (layer.attn.proj, layer.mlp[2]):
                last.get_parameter("weight").data.div_(math.sqrt(2 * self.config.depth))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """While training, recompute the activations of the layers in the backward pass."""
        self.grad_checkpointing = enable

    def condition(self, labels: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Class embedding (B, D), modulations of every layer, and of the head (2, B, 1, D)."""
        embedding = self.class_embed(labels)
        activated = F.silu(embedding)
        head = self.head_ada(activated).unflatten(-1, (2, 1, -1)).movedim(1, 0)
        return embedding, [layer.modulations(activated) for layer in self.layers], head

    def empty_cache(self, embedding: Tensor) -> Cache:
        """For the whole sequences of samples with this class embedding (B, D)."""
        config = self.config
        shape = {"layers": config.depth, "heads": config.heads, "head_dim": config.width // config.heads}
        return Cache(**shape, batch=len(embedding), length=self.sequence.length, like=embedding)

    def embed(self, inputs: Tensor | None, class_embedding: Tensor, start: int, stop: int) -> Tensor:
        """Positions start:stop as (B, stop-start, D); `inputs` (B, n, P*C) covers those after the first block."""
        parts = []
        if start == 0:
            parts.append(class_embedding[:, None] + self.start_position)
        if inputs is not None:
            parts.append(self._drop(self.input_embed(inputs)))
        offset = self.position_embed[:, start:stop] + self.level_embed(self.level_of_position[start:stop])
        return torch.cat(parts, dim=1) + offset

    def _drop(self, embedded: Tensor) -> Tensor:
        """While training, replace a share of the input positions by the empty embedding; each process draws its own."""
        if not self.training or not self.config.token_dropout:
            return embedded
        dropped = torch.rand(embedded.shape[:2], device=embedded.device) < self.config.token_dropout
        return torch.where(dropped[..., None], self.empty_embed.to(embedded.dtype), embedded)

    def run(
        self,
        x: Tensor,
        layers: list[Tensor],
        head: Tensor,
        *,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        wanted: int | None = None,
        branches: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Embedded positions (B, n, D) to float32 logits (B, n, P, V).

        Args:
            x: the embedded positions.
            layers, head: modulations from `condition`.
            mask: which positions each one attends to; None: all.
            cache: of the earlier positions.
            wanted: return logits of the first so many samples; None: of all.
            branches: return logits of these, consecutive and ascending; None: of all.
        """
        recomputed, length = self.training and self.grad_checkpointing, x.shape[1]
        if cache is not None:
            mask = cache.mask(length)
        elif is_fused(x):
            added = added_keys(length, x)
            # What is added attends to everything, so that no row of the attention is empty, and nothing attends to it
            x = F.pad(x, (0, 0, 0, added))
            seen = None if mask is None else F.pad(F.pad(mask, (0, added)), (0, 0, 0, added), value=True)
            mask = mask_added(length, added) if seen is None else additive(seen)
        for i, layer in enumerate(self.layers):
            arguments = (x, layers[i], mask, cache, i)
            x = checkpoint(layer, *arguments, use_reentrant=False) if recomputed else layer(*arguments)
        if cache is not None:
            cache.filled += length
        scale, shift = head[:, :wanted]
        size, weight, bias = self.config.codebook_size, self.head.weight, self.head.bias
        if branches is not None and len(branches) < self.config.branches:
            rows = slice(branches[0] * size, (branches[-1] + 1) * size)
            weight, bias = weight[rows], bias[rows]
        logits = linear(_modulate(x[:wanted, :length], scale, shift), weight, bias)
        return logits.float().unflatten(-1, (-1, size))

    def forward(self, labels: Tensor, inputs: Tensor) -> Tensor:
        """Teacher forcing: int64 (B,), float (B, length - first, P*C) -> float32 (B, P, L, V)."""
        embedding, layers, head = self.condition(labels)
        x = self.embed(inputs, embedding, 0, self.sequence.length)
        return self.sequence.select_logits(self.run(x, layers, head, mask=self.mask))


def _modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    h = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return torch.addcmul(shift, h, 1 + scale) if is_fused(x) else h * (1 + scale) + shift
