"""The order in which tokens are predicted, and what the transformer sees while predicting them.

A sequence is a list of blocks. All tokens of a block are predicted in one forward pass, each seeing its own and all
earlier blocks. The input of a block comes from the quantized maps of everything predicted before it:

    folded    one block per scale, all branches in it: L positions, S passes
    unfolded  one block per scale and branch: P*L positions, P*S passes
    raster    one block per position of a single-scale map, all branches in it: L positions, L passes

`imagefolder.kinds.ORDERS` names the class of each order.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from imagefolder.config import GeneratorConfig
from imagefolder.kinds import ORDERS, imported
from imagefolder.tokenizer.quantizers import ProductQuantizer


@dataclass(frozen=True, kw_only=True)
class Block:
    """Positions `start:stop` of the sequence; they predict tokens `first:last` of every branch in `branches`, which are
    consecutive."""

    start: int
    stop: int
    branches: tuple[int, ...]
    scale: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.stop - self.start

    @property
    def rows(self) -> slice:
        """Index of its branches among the P of an image."""
        return slice(self.branches[0], self.branches[-1] + 1)

    @property
    def tokens(self) -> slice:
        """Index of its tokens among the L of a branch."""
        return slice(self.first, self.last)


class TokenSequence:
    """Blocks of one configuration, with what follows from them: levels, attention mask, inputs, logits layout.

    Maps are the quantized maps of the branches, float32, built from the tokens known so far: one map (B, P*C, K, K) if
    all branches are predicted at once, else one (B, C, K, K) per branch.
    Subclasses define `block_size`, `add` and `input`, and override whatever else differs.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        self.config = config
        self.folded = ORDERS[config.order].folded
        self.blocks = self._build_blocks()
        self.length = self.blocks[-1].stop
        self.block_of_position = torch.tensor([i for i, b in enumerate(self.blocks) for _ in range(b.size)])
        # One level embedding per block
        self.levels, self.level_of_position = len(self.blocks), self.block_of_position

    def _build_blocks(self) -> list[Block]:
        blocks, start, first = [], 0, 0
        every = tuple(range(self.config.branches))
        for scale, side in enumerate(self.config.scales):
            size = self.block_size(side)
            for _ in range(side * side // size):
                for branches in [every] if self.folded else [(p,) for p in every]:
                    blocks.append(
                        Block(
                            start=start,
                            stop=start + size,
                            branches=branches,
                            scale=scale,
                            first=first,
                            last=first + size,
                        )
                    )
                    start += size
                first += size
        return blocks

    def block_size(self, side: int) -> int:
        """Number of tokens that one block predicts in a token map of this side."""
        raise NotImplementedError

    @property
    def largest_block(self) -> int:
        """Most positions that are computed in one pass while sampling."""
        return max(block.size for block in self.blocks)

    @property
    def attended(self) -> int:
        """Pairs of positions of which the first attends to the second."""
        return sum(block.size * block.stop for block in self.blocks)

    def mask(self) -> Tensor:
        """bool (length, length): row may attend to column; a position sees its own and earlier blocks."""
        return self.block_of_position[:, None] >= self.block_of_position[None, :]

    def guidance(self, block: int, strength: float) -> float:
        """Guidance of a block: grows linearly over scales from 0 to `strength`."""
        return strength * self.blocks[block].scale / max(len(self.config.scales) - 1, 1)

    def empty_maps(self, quantizer: ProductQuantizer, batch: int) -> list[Tensor]:
        """Maps before any token is known."""
        like, side = quantizer.codes.hits, quantizer.side  # float32, on the quantizer's device
        number, branches = (1, self.config.branches) if self.folded else (self.config.branches, 1)
        return [like.new_zeros(batch, branches * quantizer.dim, side, side) for _ in range(number)]

    def add(self, maps: list[Tensor], quantizer: ProductQuantizer, block: Block, tokens: Tensor) -> None:
        """Replace the maps by those that include the tokens (B, branches of the block, size) of a block."""
        raise NotImplementedError

    def input(self, maps: list[Tensor], block: Block) -> Tensor:
        """Input of a block other than the first, from the maps before it: float32 (B, size, P*C)."""
        raise NotImplementedError

    def inputs(self, quantizer: ProductQuantizer, tokens: Tensor) -> Tensor:
        """Teacher-forcing inputs of all blocks but the first.

        Args:
            quantizer: of the tokenizer that made the tokens.
            tokens: int64 (B, P, L).

        Returns:
            float32 (B, length - first block, P*C).
        """
        maps = self.empty_maps(quantizer, len(tokens))
        parts = [torch.cat(maps, dim=1).flatten(2).mT[:, :0]]  # a sequence of one block has no inputs
        for block, following in itertools.pairwise(self.blocks):
            self.add(maps, quantizer, block, tokens[:, block.rows, block.tokens])
            parts.append(self.input(maps, following))
        return torch.cat(parts, dim=1)

    def select_logits(self, logits: Tensor) -> Tensor:
        """Logits (B, length, P, V) of the sequence -> (B, P, L, V) of the tokens."""
        if self.folded:
            return logits.transpose(1, 2)
        by_branch: list[list[Tensor]] = [[] for _ in range(self.config.branches)]
        for block in self.blocks:
            for p in block.branches:
                by_branch[p].append(logits[:, block.start : block.stop, p])
        return torch.stack([torch.cat(parts, dim=1) for parts in by_branch], dim=1)


class NextScale(TokenSequence):
    """Scale after scale; within a scale all branches at once (folded) or one after the other."""

    def block_size(self, side: int) -> int:
        return side * side

    def add(self, maps: list[Tensor], quantizer: ProductQuantizer, block: Block, tokens: Tensor) -> None:
        place = block.branches[0]
        maps[place] = maps[place] + quantizer.contribution(block.scale, tokens, block.branches)

    def input(self, maps: list[Tensor], block: Block) -> Tensor:
        f_hat, side = torch.cat(maps, dim=1), self.config.scales[block.scale]
        if side != f_hat.shape[-1]:
            f_hat = F.interpolate(f_hat, size=(side, side), mode="area")
        return f_hat.flatten(2).mT


class Raster(TokenSequence):
    """Position after position of a single-scale map, under constant guidance; positions share one level."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config)
        self.levels, self.level_of_position = 1, torch.zeros_like(self.block_of_position)

    def block_size(self, side: int) -> int:
        return 1

    def guidance(self, block: int, strength: float) -> float:
        return strength

    def add(self, maps: list[Tensor], quantizer: ProductQuantizer, block: Block, tokens: Tensor) -> None:
        maps[0].flatten(2)[:, :, block.first] = quantizer.vectors(tokens).flatten(1)

    def input(self, maps: list[Tensor], block: Block) -> Tensor:
        return maps[0].flatten(2)[:, None, :, block.first - 1]

    def inputs(self, quantizer: ProductQuantizer, tokens: Tensor) -> Tensor:
        return quantizer.vectors(tokens[..., :-1]).transpose(1, 2).flatten(2)


def build_sequence(config: GeneratorConfig) -> TokenSequence:
    """The sequence of a configuration."""
    return imported(ORDERS[config.order].sequence)(config)
