"""The tokenizer: ViT encoder, product quantizer, ViT decoder (docs/method.md, "The tokenizer")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imagefolder.checkpoints.hub import HubModel
from imagefolder.config import TokenizerConfig
from imagefolder.errors import InputError
from imagefolder.tokenizer.checks import check_images, check_tokens
from imagefolder.tokenizer.quantizers import Perturbation, ProductQuantizer, Quantized
from imagefolder.tokenizer.regions import positions_inside
from imagefolder.tokenizer.vit import Decoder, Encoder

Pair = tuple[Tensor, Tensor]


@dataclass
class TrainingOutput:
    """`images` (B, 3, H, W), not clamped, which the decoder's last layer makes from `hidden` (B, grid * grid, D);
    `quantized`; the two sides (B, C) of each contrastive loss, or None.

    A pair is (projected feature of the teacher, quantized map averaged over space).
    """

    images: Tensor
    hidden: Tensor
    quantized: Quantized
    semantic: Pair | None = None
    detail: Pair | None = None


class Tokenizer(HubModel):
    """Images in [-1, 1] to (branches, L) tokens and back.

    `quant_conv` (D -> C) is shared by the branches and, when training, also projects the teachers' features.
    """

    config: TokenizerConfig
    config_type = TokenizerConfig

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        width = self.encoder.vit.embed_dim
        self.quant_conv = nn.Linear(width, config.code_dim)
        self.post_quant_conv = nn.Linear(config.branches * config.code_dim, width)
        self.quantizer = ProductQuantizer(config)
        if config.semantic == "all":
            self.semantic_projection = nn.Linear(config.branches * config.code_dim, config.code_dim)

    def weights_module(self) -> nn.Module:
        return self

    @property
    def device(self) -> torch.device:
        return self.quant_conv.weight.device

    def latents(self, images: Tensor) -> Tensor:
        """Continuous latents before quantization: (B, 3, H, W) -> (B, P, C, K, K)."""
        config = self.config
        z = self.quant_conv(self.encoder(images))
        side, channels = config.latent_side, z.shape[-1]
        return z.view(len(images), config.branches, side, side, channels).movedim(-1, 2)

    def pixels(self, z: Tensor) -> Tensor:
        """Quantized map (B, P*C, K, K) -> images (B, 3, H, W), not clamped."""
        return self.decoder.images(self._hidden(z))

    def _hidden(self, z: Tensor) -> Tensor:
        """Quantized map (B, P*C, K, K) -> input of the decoder's last layer (B, grid * grid, D)."""
        return self.decoder(self.post_quant_conv(z.flatten(2).mT.to(self.post_quant_conv.weight.dtype)))

    @property
    def layers(self) -> list[nn.Module]:
        """The transformer blocks of both sides, which do nearly all the work."""
        return [*self.encoder.vit.blocks, *self.decoder.vit.blocks]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """While training, recompute the activations of the layers in the backward pass."""
        for side in (self.encoder, self.decoder):
            side.vit.grad_checkpointing = enable

    def forward(
        self,
        images: Tensor,
        *,
        semantic: Tensor | None = None,
        detail: Tensor | None = None,
        kept: Tensor | None = None,
        share: Tensor | None = None,
        perturbation: Perturbation | None = None,
    ) -> TrainingOutput:
        """Training pass. Its only randomness is stochastic depth, and it changes no buffer.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            semantic: class features (B, D) of the teacher of the last branch, or of all branches.
            detail: patch features of the teacher of the first branch, averaged over space (B, D).
            kept: int64 (B,), number of scales that each sample keeps, from `quantizer.draw_kept`; None: all.
            share: (S,), the share of the step's samples that keep each scale, if these images are only some of them;
                None: that of `kept`.
            perturbation: of the first images' codes, with u (2, T, P, L); None: no code is perturbed.
        """
        quantized = self.quantizer(self.latents(images), kept, share, perturbation)
        hidden = self._hidden(quantized.z)
        output = TrainingOutput(self.decoder.images(hidden), hidden, quantized)
        pooled = quantized.z.mean((2, 3))
        if semantic is not None:
            joint = self.config.semantic == "all"
            regularised = self.semantic_projection(pooled) if joint else pooled[:, -self.config.code_dim :]
            output.semantic = self.quant_conv(semantic), regularised
        if detail is not None:
            output.detail = self.quant_conv(detail), pooled[:, : self.config.code_dim]
        return output

    def encode(self, images: Tensor, *, check: bool = True) -> Tensor:
        """Tokens of images.

        Args:
            images: float (B, 3, H, W) in [-1, 1], H = W = config.image_size; on any device, in any precision.
            check: False skips the check, which waits for a GPU once, of images known to be right.

        Returns:
            int64 (B, branches, L) on the model's device, scales concatenated small to large.

        Raises:
            InputError: not such images; the message says how to convert them.

        Warns:
            UserWarning: no value is below 0, as in images in [0, 1].
        """
        if check:
            check_images(images, self.config)
        with torch.no_grad():
            return self.quantizer.encode(self.latents(self._placed(images)))

    def neighbours(self, images: Tensor, number: int, *, check: bool = True) -> Tensor:
        """The codes nearest to the vector that each token of images quantizes, nearest first: the token itself leads.

        Args:
            images, check: as for `encode`.
            number: in 1..codebook_size.

        Returns:
            int64 (B, branches, L, number).
        """
        if check:
            check_images(images, self.config)
        with torch.no_grad():
            return self.quantizer.neighbours(self.latents(self._placed(images)), number)

    @torch.no_grad()
    def decode(self, tokens: Tensor, *, check: bool = True) -> Tensor:
        """Images of tokens: int64 (B, branches, L) in [0, codebook_size) -> float32 (B, 3, H, W) in [-1, 1].

        `check`: False skips the check, as in `encode`. Otherwise wrong tokens are an `InputError`.
        """
        tokens = self.check_tokens(tokens) if check else tokens.to(self.device)
        return self.decode_map(self.quantizer.decode(tokens))

    @torch.no_grad()
    def decode_progressively(self, tokens: Tensor) -> Tensor:
        """How images grow scale by scale: each is decoded from the first 1, 2, ... S scales of its tokens.

        Args:
            tokens: as for `decode`.

        Returns:
            float32 (S, B, 3, H, W) in [-1, 1]; the last one is `decode(tokens)`. Early ones look like images if the
            tokenizer was trained with quantizer dropout from an early scale on.
        """
        tokens, number = self.check_tokens(tokens), len(self.config.scales)
        return torch.stack([self.decode_map(self.quantizer.decode(tokens, n)) for n in range(1, number + 1)])

    def swap_branches(self, a: Tensor, b: Tensor, branch: int = 0) -> tuple[Tensor, Tensor]:
        """Exchange one branch between images: tokens of `a` with the branch of `b`, and of `b` with that of `a`.

        Args:
            a, b: int64 (B, branches, L), as for `decode`.
            branch: which one; the last one (-1) is the semantic one, if the tokenizer has any.

        Raises:
            InputError: wrong or unequally many tokens, a branch that does not exist, or a tokenizer with only one.
        """
        a, b = self.check_tokens(a), self.check_tokens(b)
        number = self.config.branches
        if a.shape != b.shape:
            raise InputError(f"branches are swapped between as many images: {len(a)} and {len(b)} were given")
        if number == 1:
            raise InputError(f"{self.config.name} has one branch: there is nothing to swap")
        if not -number <= branch < number:
            raise InputError(f"branch must lie in 0..{number - 1} (or -1, the last one), not {branch}")
        a_swapped, b_swapped = a.clone(), b.clone()
        a_swapped[:, branch], b_swapped[:, branch] = b[:, branch], a[:, branch]
        return a_swapped, b_swapped

    def positions_inside(self, box: Sequence[float]) -> Tensor:
        """The positions that show a box (left, top, right, bottom) of the image, in pixels: bool (L,).

        At every scale those of which more than half lies in it; `InputError` for a wrong box, or one too small.
        """
        return positions_inside(box, self.config)

    def reconstruct(self, images: Tensor) -> Tensor:
        """`decode(encode(images))`: (B, 3, H, W) in [-1, 1] -> the same."""
        check_images(images, self.config)
        return self.decode(self.encode(images, check=False), check=False)

    def decode_map(self, f_hat: Tensor) -> Tensor:
        """Images in [-1, 1] of a quantized map (B, P*C, K, K)."""
        return self.pixels(f_hat).float().clamp(-1, 1)

    def check_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens on this device, or `InputError` if shape, dtype or range is wrong."""
        check_tokens(tokens, self.config)
        return tokens.to(self.device)

    def _placed(self, images: Tensor) -> Tensor:
        """Images on this device, in the precision of the weights."""
        return images.to(self.device, self.quant_conv.weight.dtype)
