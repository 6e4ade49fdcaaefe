"""The tokenizer: ViT encoder, product quantizer, ViT decoder (docs/method.md, "The tokenizer")."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imagefolder.checkpoints.hub import HubModel
from imagefolder.config import TokenizerConfig
from imagefolder.errors import InputError
from imagefolder.tokenizer.quantizers import Perturbation, ProductQuantizer, Quantized
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
            perturbation: of the first images' codes, with u (P, 2, T, L); None: no code is perturbed.
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

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Tokens of images.

        Args:
            images: float (B, 3, H, W) in [-1, 1], H = W = config.image_size.

        Returns:
            int64 (B, branches, L), scales concatenated small to large.
        """
        return self.quantizer.encode(self.latents(self._check_images(images)))

    @torch.no_grad()
    def neighbours(self, images: Tensor, number: int) -> Tensor:
        """The codes nearest to the vector that each token of images quantizes, nearest first: the token itself leads.

        Args:
            images: as for `encode`.
            number: in 1..codebook_size.

        Returns:
            int64 (B, branches, L, number).
        """
        return self.quantizer.neighbours(self.latents(self._check_images(images)), number)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Images of tokens: int64 (B, branches, L) in [0, codebook_size) -> (B, 3, H, W) in [-1, 1]."""
        return self.decode_map(self.quantizer.decode(self.check_tokens(tokens)))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """`decode(encode(images))`: (B, 3, H, W) in [-1, 1] -> the same."""
        return self.decode(self.encode(images))

    def decode_map(self, f_hat: Tensor) -> Tensor:
        """Images in [-1, 1] of a quantized map (B, P*C, K, K)."""
        return self.pixels(f_hat).float().clamp(-1, 1)

    def check_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens on this device, or `InputError` if shape, dtype or range is wrong."""
        shape = (self.config.branches, self.config.length)
        if tokens.dtype != torch.int64 or tokens.ndim != 3 or tuple(tokens.shape[1:]) != shape:
            raise InputError(
                f"tokens must be int64 of shape (B, {shape[0]}, {shape[1]}) for {self.config.name}, "
                f"not {tokens.dtype} {tuple(tokens.shape)}"
            )
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.codebook_size:
            raise InputError(
                f"tokens must lie in 0..{self.config.codebook_size - 1}, the codebook of {self.config.name}"
            )
        return tokens.to(self.device)

    def _check_images(self, images: Tensor) -> Tensor:
        side = self.config.image_size
        if not images.is_floating_point() or images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side):
            raise InputError(
                f"images must be float of shape (B, 3, {side}, {side}) for {self.config.name}, "
                f"not {images.dtype} {tuple(images.shape)}"
            )
        if images.numel() and not images.abs().max() <= 1.001:
            raise InputError("images must lie in [-1, 1]; scale 8-bit pixels by x / 127.5 - 1")
        return images.to(self.device, self.quant_conv.weight.dtype)
