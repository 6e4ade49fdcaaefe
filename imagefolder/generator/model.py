"""The generator: a block-causal transformer on the tokens of one tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from imagefolder.checkpoints.hub import HubModel
from imagefolder.config import TOKEN_FIELDS, GeneratorConfig
from imagefolder.errors import InputError
from imagefolder.generator.graphs import replayed
from imagefolder.generator.origin import (
    checked_classes,
    require_own_tokenizer,
    stored_classes,
    stored_sampling,
    tokenizer_sha256,
)
from imagefolder.generator.sampling import Drawing, Sampling, check_sampling, check_seed, draw, draw_joint, uniforms
from imagefolder.generator.transformer import Transformer
from imagefolder.tokenizer.model import Tokenizer

Labels = Tensor | Sequence[int | None]


@dataclass
class Samples:
    """`tokens` int64 (B, branches, L) and `images` float32 (B, 3, H, W) in [0, 1]."""

    tokens: Tensor
    images: Tensor


class Generator(HubModel):
    """Class labels to images. `tokenizer` is frozen and not part of the generator's weights.

    `classes` are the names of its classes (None: not known) and `sampling` its own settings, both stored with it.
    """

    config: GeneratorConfig
    config_type = GeneratorConfig

    def __init__(
        self,
        config: GeneratorConfig,
        tokenizer: Tokenizer,
        *,
        classes: Sequence[str] | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__()
        for field in TOKEN_FIELDS:
            ours, theirs = getattr(config, field), getattr(tokenizer.config, field)
            if ours != theirs:
                raise InputError(
                    f"generator {config.name} expects {field} {ours}, tokenizer {tokenizer.config.name} has {theirs}"
                )
        self.config = config
        self.classes = None if classes is None else checked_classes(classes, config, config.name)
        self.sampling = sampling or Sampling()
        check_sampling(config, **asdict(self.sampling), joint=False)
        self.transformer = Transformer(config)
        self.tokenizer = tokenizer.eval().requires_grad_(False)

    def weights_module(self) -> nn.Module:
        return self.transformer

    def about(self) -> dict[str, Any]:
        known = {"tokenizer_sha256": tokenizer_sha256(self.tokenizer), "classes": self.classes}
        return {
            "tokenizer_name": self.tokenizer.config.name,
            **{name: value for name, value in known.items() if value is not None},
            "sampling": asdict(self.sampling),
        }

    def adopt(self, about: dict[str, Any], origin: str) -> None:
        """Take over classes and sampling settings; `InputError` if it was trained with another tokenizer."""
        require_own_tokenizer(about, self.tokenizer, origin)
        self.classes = stored_classes(about, self.config, origin)
        self.sampling = stored_sampling(about, self.config, origin)

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Teacher forcing.

        Args:
            labels: int64 (B,) in [0, num_classes]; num_classes stands for "no class".
            tokens: int64 (B, branches, L).

        Returns:
            float32 (B, branches, L, codebook_size); logits of a token depend only on tokens of earlier blocks.
        """
        tokens = self.tokenizer.check_tokens(tokens)
        if labels.shape[:1] != tokens.shape[:1]:
            raise InputError(f"{tuple(labels.shape)} labels do not fit the tokens of {len(tokens)} images")
        inputs = self.transformer.sequence.inputs(self.tokenizer.quantizer, tokens)
        return self.transformer(self._check_labels(labels), inputs.to(self.transformer.head.weight.dtype))

    @torch.no_grad()
    def sample(
        self,
        labels: Labels,
        *,
        guidance: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        indices: list[int] | None = None,
        temperature: float | Sequence[float] | None = None,
        joint: bool = False,
        batch_size: int | None = None,
        given: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Samples:
        """Generate one image per label.

        Guidance, top_k, top_p and temperature are the model's own (`self.sampling`) unless they are given here. A model
        without settings of its own has those of the released one: 3.25, 750, 0.95 and 1.

        Args:
            labels: int64 (B,), or a list of ints; num_classes, in a list also None, means "no class" (guidance then
                changes nothing).
            guidance: strength of classifier-free guidance at the last scale; 0: none.
            top_k: number of tokens kept; 0: all.
            top_p: nucleus probability; 0 or 1: all tokens are kept.
            seed: of the run, any integer.
            indices: number of each image within the run (default 0..B-1). An image depends only on (seed, its index,
                its label), not on the batch it is made in.
            temperature: divides the logits after guidance; a sequence holds one value per scale.
            joint: draw the tokens of all branches of a position from the product of their distributions (see
                `sampling.draw_joint`): different samples of the same distribution. No effect with one branch.
            batch_size: images made at a time (default: all at once). Tokens do not depend on it; images may differ by
                float32 rounding.
            given: tokens of which some are kept, int64 (B, branches, L), or (1, branches, L) for all labels. What is
                sampled sees them as it sees its own earlier tokens, and uses the same random numbers as without them.
            keep: which ones, bool (L,), (branches, L) or (B, branches, L); `Tokenizer.positions_inside` makes a mask of
                a region of the image.

        Raises:
            InputError: labels, settings or tokens are of the wrong shape or out of range, joint sampling of an unfolded
                model, or logits or images are not finite.
        """
        labels = self.label_tensor(labels)
        indices = list(range(len(labels))) if indices is None else list(indices)
        if len(indices) != len(labels):
            raise InputError(f"{len(indices)} indices for {len(labels)} labels")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        settings = self.settings(guidance, top_k, top_p, temperature)
        temperatures = check_sampling(self.config, **settings, joint=joint)
        drawing = Drawing(settings["guidance"], settings["top_k"], settings["top_p"], tuple(temperatures), joint)
        kept = self._kept(given, keep, len(labels))
        seed, step = check_seed(seed), batch_size or len(labels)
        parts = []
        for start in range(0, len(labels), step):
            part = slice(start, start + step)
            parts.append(self._sample(labels[part], indices[part], seed, drawing, None if kept is None else kept[part]))
        return Samples(torch.cat([part.tokens for part in parts]), torch.cat([part.images for part in parts]))

    def _sample(self, labels: Tensor, indices: list[int], seed: int, drawing: Drawing, kept: Tensor | None) -> Samples:
        """One batch of `sample`, after its arguments were checked; `kept` as from `_kept`."""
        config = self.config
        u = uniforms(seed, indices, config.branches, self.tokenizer.config.length).to(labels.device)
        inputs = (labels, u) if kept is None else (labels, u, kept)
        tokens, pixels, finite = replayed(self, partial(self._drawn, drawing), inputs, drawing)
        logits_finite, pixels_finite = finite.tolist()
        if not logits_finite:
            raise InputError(
                f"{config.name}: its logits are not finite (guidance {drawing.guidance}); its weights cannot be used"
            )
        if not pixels_finite:
            raise InputError(f"{self.tokenizer.config.name}: its images are not finite; its weights cannot be used")
        return Samples(tokens=tokens, images=(pixels.clamp(-1, 1) + 1) / 2)

    def _drawn(
        self, drawing: Drawing, labels: Tensor, u: Tensor, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens int64 and images float32 not clamped, and whether all logits and all images are finite, bool (2,).

        Args:
            labels, u: classes int64 (B,), and the uniform numbers of their tokens (B, P, L).

        Nothing in here may wait for a GPU: see `graphs.replayed`.
        """
        transformer, config, batch = self.transformer, self.config, len(labels)
        sequence, quantizer = transformer.sequence, self.tokenizer.quantizer
        if drawing.guidance:
            labels = torch.cat([labels, torch.full_like(labels, config.num_classes)])
        embedding, layers, head = transformer.condition(labels)
        cache = transformer.empty_cache(embedding)
        tokens = torch.empty(u.shape, dtype=torch.int64, device=labels.device)
        maps = sequence.empty_maps(quantizer, batch)
        finite = torch.ones((), dtype=torch.bool, device=labels.device)
        for i, block in enumerate(sequence.blocks):
            inputs = None
            if i > 0:
                inputs = sequence.input(maps, block).to(embedding.dtype).repeat(len(labels) // batch, 1, 1)
            x = transformer.embed(inputs, embedding, block.start, block.stop)
            t = sequence.guidance(i, drawing.guidance)
            wanted = None if t else batch  # without guidance the unconditional logits are not used
            logits = transformer.run(x, layers, head, cache=cache, wanted=wanted, branches=block.branches)
            if t:
                conditional, unconditional = logits.chunk(2)
                logits = (1 + t) * conditional - t * unconditional
            finite &= logits.amax(-1).isfinite().all()  # drawing from NaN would not fail
            temperature = drawing.temperatures[block.scale]
            if temperature != 1:
                # The largest logit becomes 0, so that a small temperature does not overflow
                logits = (logits - logits.amax(-1, keepdim=True)) / temperature
            if drawing.joint and config.branches > 1:
                drawn = draw_joint(logits, u[:, 0, block.tokens], drawing.top_k, drawing.top_p).mT
            else:
                drawn = draw(logits.transpose(1, 2), u[:, block.rows, block.tokens], drawing.top_k, drawing.top_p)
            if kept is not None:
                fixed = kept[:, block.rows, block.tokens]
                drawn = torch.where(fixed < 0, drawn, fixed)
            tokens[:, block.rows, block.tokens] = drawn
            sequence.add(maps, quantizer, block, drawn)
        pixels = self.tokenizer.pixels(torch.cat(maps, dim=1)).float()
        return tokens, pixels, torch.stack([finite, pixels.isfinite().all()])

    def settings(
        self,
        guidance: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | Sequence[float] | None = None,
    ) -> dict[str, Any]:
        """The sampling settings given here, and the model's own for those that are not, by name."""
        settings = asdict(self.sampling)
        chosen = {"guidance": guidance, "top_k": top_k, "top_p": top_p, "temperature": temperature}
        settings.update({name: value for name, value in chosen.items() if value is not None})
        return settings

    def _kept(self, given: Tensor | None, keep: Tensor | None, batch: int) -> Tensor | None:
        """The given tokens int64 (B, P, L), -1 where none is kept; None if there are none."""
        if given is None and keep is None:
            return None
        if given is None or keep is None:
            raise InputError("given and keep go together: the tokens, and a bool mask that is True where they are kept")
        if not isinstance(given, Tensor) or not isinstance(keep, Tensor):
            raise InputError(f"given and keep must be tensors, not {type(given).__name__} and {type(keep).__name__}")
        try:
            given = self.tokenizer.check_tokens(given)
        except InputError as error:
            raise InputError(f"given: {error}") from None
        if len(given) not in (1, batch):
            raise InputError(f"given: tokens of {len(given)} images for {batch} labels")
        shape = (batch, *given.shape[1:])
        fits = keep.dtype == torch.bool and keep.ndim in (1, 2, 3)
        fits = fits and all(n in (m, 1) for n, m in zip(keep.shape[::-1], shape[::-1], strict=False))
        if not fits or keep.shape[-1] != shape[-1]:
            raise InputError(
                f"keep must be bool of shape ({shape[2]},), ({shape[1]}, {shape[2]}) or {shape}, not {keep.dtype} "
                f"{tuple(keep.shape)}"
            )
        return torch.where(keep.to(given.device), given, -1).expand(shape)

    def label_tensor(self, labels: Labels) -> Tensor:
        """Labels in any form that `sample` takes, at least one, as int64 (B,) on the model's device."""
        none = self.config.num_classes
        if not isinstance(labels, Tensor):
            for label in labels:
                valid = isinstance(label, Integral) and not isinstance(label, bool) and 0 <= label <= none
                if label is not None and not valid:
                    raise InputError(f"labels must be integers in 0..{none} or None ({none} and None: no class)")
            labels = torch.tensor([none if label is None else int(label) for label in labels], dtype=torch.int64)
        if labels.numel() == 0:
            raise InputError("there are no labels to generate images for")
        return self._check_labels(labels)

    def _check_labels(self, labels: Tensor) -> Tensor:
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise InputError(f"labels must be int64 of shape (B,), not {labels.dtype} {tuple(labels.shape)}")
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= self.config.num_classes:
            raise InputError(f"labels must lie in 0..{self.config.num_classes} ({self.config.num_classes}: no class)")
        return labels.to(self.transformer.head.weight.device)
