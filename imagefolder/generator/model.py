"""The generator: a block-causal transformer on the tokens of one tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imagefolder.checkpoints.hub import HubModel
from imagefolder.config import GeneratorConfig
from imagefolder.errors import InputError
from imagefolder.generator.sampling import draw, uniforms
from imagefolder.generator.sequence import State
from imagefolder.generator.transformer import Cache, Transformer
from imagefolder.tokenizer.model import Tokenizer

TOKEN_FIELDS = ("branches", "scales", "codebook_size", "code_dim")


@dataclass
class Samples:
    """`tokens` int64 (B, branches, L) and `images` float32 (B, 3, H, W) in [0, 1]."""

    tokens: Tensor
    images: Tensor


class Generator(nn.Module, HubModel):
    """Class labels to images. `tokenizer` is frozen and not part of the generator's weights."""

    config_type = GeneratorConfig

    def __init__(self, config: GeneratorConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        for field in TOKEN_FIELDS:
            ours, theirs = getattr(config, field), getattr(tokenizer.config, field)
            if ours != theirs:
                raise InputError(
                    f"generator {config.name} expects {field} {ours}, tokenizer {tokenizer.config.name} has {theirs}"
                )
        self.config = config
        self.transformer = Transformer(config)
        self.tokenizer = tokenizer.eval().requires_grad_(False)

    def weights_module(self) -> nn.Module:
        return self.transformer

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Teacher forcing.

        Args:
            labels: int64 (B,) in [0, num_classes]; num_classes stands for "no class".
            tokens: int64 (B, branches, L).

        Returns:
            float32 (B, branches, L, codebook_size); logits of a token see only tokens of earlier blocks.
        """
        tokens = self.tokenizer.check_tokens(tokens)
        inputs = self.transformer.sequence.inputs(self.tokenizer.quantizer, tokens)
        return self.transformer(self._check_labels(labels), inputs.to(self.transformer.head.weight.dtype))

    @torch.no_grad()
    def sample(
        self,
        labels: Tensor,
        guidance: float = 3.25,
        top_k: int = 750,
        top_p: float = 0.95,
        seed: int = 0,
        indices: list[int] | None = None,
    ) -> Samples:
        """Generate one image per label.

        Args:
            labels: int64 (B,).
            guidance: classifier-free guidance reached at the last scale; 0: conditional logits alone.
            top_k: tokens kept, 0 for all.
            top_p: nucleus probability in (0, 1]; 1 for all.
            seed: of the run.
            indices: number of each image within the run (default 0..B-1). An image depends on (seed, its index, its
                label) only, not on the batch it is made in.
        """
        labels = self._check_labels(labels)
        batch = len(labels)
        indices = list(range(batch)) if indices is None else list(indices)
        if len(indices) != batch:
            raise InputError(f"{len(indices)} indices for {batch} labels")
        if not 0 < top_p <= 1 or top_k < 0 or guidance < 0:
            raise InputError(f"need 0 < top_p <= 1, top_k >= 0, guidance >= 0; got {top_p}, {top_k}, {guidance}")

        transformer, config = self.transformer, self.config
        sequence, quantizer = transformer.sequence, self.tokenizer.quantizer
        if guidance:
            labels = torch.cat([labels, torch.full_like(labels, config.num_classes)])
        embedding, layers, head = transformer.condition(labels)
        head_dim = config.width // config.heads
        cache = Cache(config.depth, len(labels), config.heads, sequence.length, head_dim, like=embedding)
        u = uniforms(seed, indices, config.branches, self.tokenizer.config.length).to(labels.device)
        tokens = torch.empty(u.shape, dtype=torch.int64, device=labels.device)
        state = State(sequence, quantizer, batch)
        for i, block in enumerate(sequence.blocks):
            inputs = None
            if i > 0:
                inputs = state.input(block).to(embedding.dtype).repeat(len(labels) // batch, 1, 1)
            x = transformer.embed(inputs, embedding, block.start, block.stop)
            logits = transformer.run(x, layers, head, cache=cache)[:, :, block.branches]
            if guidance:
                conditional, unconditional = logits.chunk(2)
                t = sequence.guidance(i, guidance)
                logits = (1 + t) * conditional - t * unconditional
            span = slice(block.first, block.last)
            drawn = draw(logits.transpose(1, 2), u[:, block.branches, span], top_k, top_p)
            tokens[:, block.branches, span] = drawn
            state.add(block, drawn)
        images = (self.tokenizer.decode_map(state.map()) + 1) / 2
        return Samples(tokens=tokens, images=images)

    def _check_labels(self, labels: Tensor) -> Tensor:
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise InputError(f"labels must be int64 of shape (B,), not {labels.dtype} {tuple(labels.shape)}")
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= self.config.num_classes:
            raise InputError(f"labels must lie in 0..{self.config.num_classes} (the last one means no class)")
        return labels.to(self.transformer.head.weight.device)
