"""The order in which tokens are predicted, and what the transformer sees while doing so.

A sequence is a list of blocks. All tokens of a block are predicted in one forward pass, each seeing its own and all
earlier blocks. The input of a block is the quantized map built from everything predicted before it:

    folded    one block per scale, all branches in it: L positions, S passes
    unfolded  one block per scale and branch: P*L positions, P*S passes
    raster    one block per position of a single-scale map, all branches in it: L positions, L passes
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from imagefolder.config import GeneratorConfig
from imagefolder.tokenizer.quantizers import ProductQuantizer


@dataclass(frozen=True)
class Block:
    """Positions `start:stop` of the sequence; they predict tokens `first:last` of every branch in `branches`."""

    start: int
    stop: int
    branches: tuple[int, ...]
    scale: int
    first: int
    last: int


def build_blocks(config: GeneratorConfig) -> list[Block]:
    """Blocks of a configuration in the order of prediction."""
    blocks, start, first = [], 0, 0
    every = tuple(range(config.branches))
    for scale, side in enumerate(config.scales):
        size = 1 if config.order == "raster" else side * side
        for _ in range(side * side // size):
            for branches in [(p,) for p in every] if config.order == "unfolded" else [every]:
                blocks.append(Block(start, start + size, branches, scale, first, first + size))
                start += size
            first += size
    return blocks


class Sequence:
    """Blocks of one configuration with the derived tables: level per position, attention mask, logits layout."""

    def __init__(self, config: GeneratorConfig) -> None:
        self.config = config
        self.blocks = build_blocks(config)
        self.length = self.blocks[-1].stop
        self.raster = config.order == "raster"
        # One level embedding per block of a next-scale sequence; raster positions differ by position alone.
        self.levels = 1 if self.raster else len(self.blocks)
        self.block_of_position = torch.tensor([i for i, b in enumerate(self.blocks) for _ in range(b.start, b.stop)])
        self.level_of_position = torch.zeros_like(self.block_of_position) if self.raster else self.block_of_position

    def mask(self) -> Tensor:
        """bool (length, length): row may attend to column; a position sees its own and earlier blocks."""
        return self.block_of_position[:, None] >= self.block_of_position[None, :]

    def guidance(self, block: int, strength: float) -> float:
        """Guidance of a block: grows linearly over scales from 0 to `strength`; constant in raster order."""
        if self.raster:
            return strength
        return strength * self.blocks[block].scale / max(len(self.config.scales) - 1, 1)

    def inputs(self, quantizer: ProductQuantizer, tokens: Tensor) -> Tensor:
        """Teacher-forcing inputs of all blocks but the first.

        Args:
            quantizer: of the tokenizer that made the tokens.
            tokens: int64 (B, P, L).

        Returns:
            float32 (B, length - first block, P*C).
        """
        state = State(self, quantizer, len(tokens))
        parts = []
        for i, block in enumerate(self.blocks[:-1]):
            state.add(block, tokens[:, block.branches, block.first : block.last])
            parts.append(state.input(self.blocks[i + 1]))
        return torch.cat(parts, dim=1)

    def select_logits(self, logits: Tensor) -> Tensor:
        """Logits (B, length, P, V) of the sequence -> (B, P, L, V) of the tokens."""
        if self.config.order != "unfolded":
            return logits.transpose(1, 2)
        by_branch: list[list[Tensor]] = [[] for _ in range(self.config.branches)]
        for block in self.blocks:
            for p in block.branches:
                by_branch[p].append(logits[:, block.start : block.stop, p])
        return torch.stack([torch.cat(parts, dim=1) for parts in by_branch], dim=1)


class State:
    """The quantized maps (B, P, C, K, K) built from the tokens known so far."""

    def __init__(self, sequence: Sequence, quantizer: ProductQuantizer, batch: int) -> None:
        self.sequence = sequence
        self.quantizer = quantizer
        self.side = quantizer.scales[-1]
        hits = quantizer.branches[0].codebook.hits  # float32, on the quantizer's device
        self.f_hat = [hits.new_zeros(batch, q.codebook.dim, self.side, self.side) for q in quantizer.branches]

    def add(self, block: Block, tokens: Tensor) -> None:
        """Add the tokens (B, branches of the block, size) of a block to the maps."""
        for row, p in enumerate(block.branches):
            if self.sequence.raster:
                codes = self.quantizer.branches[p].vectors(tokens[:, row])[:, 0]
                # Out of place, since earlier inputs may still be views of the map
                self.f_hat[p] = (
                    self.f_hat[p]
                    .flatten(2)
                    .index_copy(2, torch.tensor([block.first], device=codes.device), codes[:, :, None])
                    .view_as(self.f_hat[p])
                )
            else:
                self.f_hat[p] = self.f_hat[p] + self.quantizer.contribution(p, block.scale, tokens[:, row])

    def input(self, block: Block) -> Tensor:
        """Input of a block (not the first): float32 (B, size, P*C)."""
        if self.sequence.raster:
            return torch.cat([f.flatten(2)[:, :, block.first - 1] for f in self.f_hat], dim=-1)[:, None]
        side = self.sequence.config.scales[block.scale]
        f_hat = torch.cat(self.f_hat, dim=1)
        return (f_hat if side == self.side else F.interpolate(f_hat, size=(side, side), mode="area")).flatten(2).mT

    def map(self) -> Tensor:
        """All branches on channels: (B, P*C, K, K)."""
        return torch.cat(self.f_hat, dim=1)
