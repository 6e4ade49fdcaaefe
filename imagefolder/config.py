"""Configurations: frozen dataclasses, checked on construction, stored as JSON beside every weight file.

The defaults are the released ImageFolder models (MSVR10P2-4096 and VAR-d17) and their training; docs/method.md says
what every field stands for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from imagefolder.errors import InputError

RELEASED_SCALES = (1, 1, 2, 3, 3, 4, 5, 6, 8, 11)

# Fields that say how a model is trained: trained weights mean the same with others
TRAINING_ONLY = {
    "drop_path", "commitment", "commitment_over_scales", "quantizer_dropout", "dropout_start", "semantic", "detail",
    "perturbed_images", "perturbed_codes", "perturbation_depth", "class_dropout", "gamma_init",
}  # fmt: skip

_Config = TypeVar("_Config")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


@dataclass(frozen=True)
class TokenizerConfig:
    """Shape of a tokenizer. `width`, `depth`, `heads` override the timm backbone's own where given."""

    name: str = "custom"
    image_size: int = 256
    patch_size: int = 16
    backbone: str = "vit_base_patch14_dinov2.lvd142m"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    drop_path: float = 0.1
    """stochastic depth of the last block while training; it grows linearly from 0 in the first"""
    branches: int = 2
    scales: tuple[int, ...] = RELEASED_SCALES
    quantizer: Literal["vq", "bsq", "lfq"] = "vq"
    """vq: learned codes; bsq: signs / sqrt(code_dim) of an input on the unit sphere; lfq: signs of the input as it is
    (both have 2^code_dim codes)"""
    codebook_size: int = 4096
    code_dim: int = 32
    cosine: bool = True
    """vq: nearest code by cosine; False: by Euclidean distance"""
    binary_base: float = 1.0
    """bsq, lfq: codes of scale k are multiplied by binary_base^k"""
    shared_phi: int = 4
    """convolutions phi shared over the scales: n partially shared, 1 one for all, 0 one per scale"""
    phi_ratio: float = 0.5
    commitment: float = 0.25
    commitment_over_scales: Literal["mean", "sum"] = "mean"
    """vq: ImageFolder's own release averages the commitment loss over the scales, the later XQ-GAN release sums it;
    binary quantizers average it in both"""
    quantizer_dropout: float = 0.1
    """share of a batch whose last scales are dropped while training, and which the contrastive losses leave out; a
    single-scale tokenizer has no scale to drop, and leaves that share out all the same (VP2)"""
    dropout_start: int = 3
    """smallest number of scales kept by quantizer dropout"""
    semantic: Literal["none", "last", "all"] = "last"
    """branch regularised towards the teacher: none, the last one, or all jointly"""
    detail: bool = False
    """regularise the first branch towards the patch features of a second teacher (detail guidance)"""
    perturbed_images: float = 0.0
    """share of a batch whose codes are perturbed while training (beta of RobustTok; single-scale vq)"""
    perturbed_codes: float = 1.0
    """share of such an image's codes that are drawn anew (alpha)"""
    perturbation_depth: int = 100
    """from this many codes nearest to the encoder's output (delta)"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        _require(
            self.image_size % self.patch_size == 0,
            f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
        )
        _require(len(self.scales) > 0 and min(self.scales) > 0, f"scales must be positive integers, not {self.scales}")
        _require(list(self.scales) == sorted(self.scales), f"scales must not shrink: {self.scales}")
        _require(self.quantizer in ("vq", "bsq", "lfq"), f"quantizer {self.quantizer!r} is not vq, bsq or lfq")
        _require(
            self.quantizer == "vq" or self.codebook_size == 2**self.code_dim,
            f"a binary quantizer has 2^code_dim codes: codebook_size {self.codebook_size} does not fit code_dim "
            f"{self.code_dim}",
        )
        _require(0 <= self.quantizer_dropout < 1, f"quantizer_dropout must be in [0, 1), not {self.quantizer_dropout}")
        _require(self.shared_phi >= 0, f"shared_phi must be 0 (one per scale) or more, not {self.shared_phi}")
        _require(self.branches >= 1, f"branches must be at least 1, not {self.branches}")
        _require(self.semantic in ("none", "last", "all"), f"semantic {self.semantic!r} is not none, last or all")
        _require(
            self.commitment_over_scales in ("mean", "sum"),
            f"commitment_over_scales {self.commitment_over_scales!r} is not mean or sum",
        )
        if len(self.scales) > 1 and self.quantizer_dropout > 0:
            _require(
                1 <= self.dropout_start <= len(self.scales),
                f"dropout_start {self.dropout_start} is not within 1..{len(self.scales)} (the number of scales)",
            )
        _require(
            self.perturbed_images == 0 or (len(self.scales) == 1 and self.quantizer == "vq"),
            "latent perturbation (perturbed_images) is defined for single-scale vector quantizers",
        )
        _require(
            0 < self.perturbation_depth <= self.codebook_size or self.perturbed_images == 0,
            f"perturbation_depth {self.perturbation_depth} is not within 1..{self.codebook_size}",
        )

    @property
    def latent_side(self) -> int:
        """K: side of the latent map, equal to the last scale."""
        return self.scales[-1]

    @property
    def length(self) -> int:
        """L: tokens per branch, the sum of the squared scales."""
        return sum(side * side for side in self.scales)


@dataclass(frozen=True)
class GeneratorConfig:
    """Shape of a generator. The fields from `branches` on describe the tokens and are taken from its tokenizer."""

    name: str = "custom"
    depth: int = 17
    width: int | None = None
    """None: 64 x depth"""
    heads: int | None = None
    """None: depth"""
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    token_dropout: float = 0.0
    """share of input positions replaced by a learned empty embedding while training (p_drop)"""
    order: Literal["folded", "unfolded", "raster"] = "folded"
    """folded: all branches of a scale at once; unfolded: branch after branch within a scale; raster: position by
    position (single-scale tokenizers)"""
    qk_norm: bool = True
    class_dropout: float = 0.1
    drop_path: float | None = None
    """stochastic depth of the last layer while training, rising linearly from 0 in the first; None: 0.1 x depth / 24"""
    gamma_init: float = 1e-4
    """factor on the initial weights of the gammas, which weigh every layer's two branches"""
    branches: int = 2
    scales: tuple[int, ...] = RELEASED_SCALES
    codebook_size: int = 4096
    code_dim: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        object.__setattr__(self, "width", 64 * self.depth if self.width is None else self.width)
        object.__setattr__(self, "heads", self.depth if self.heads is None else self.heads)
        object.__setattr__(self, "drop_path", 0.1 * self.depth / 24 if self.drop_path is None else self.drop_path)
        _require(self.width % self.heads == 0, f"width {self.width} is not a multiple of heads {self.heads}")
        _require(self.num_classes >= 1, f"num_classes must be at least 1, not {self.num_classes}")
        _require(self.order in ("folded", "unfolded", "raster"), f"order {self.order!r} is unknown")
        _require(
            self.order != "raster" or len(self.scales) == 1,
            f"order 'raster' needs a single-scale tokenizer, not scales {self.scales}",
        )


@dataclass(frozen=True)
class TrainingConfig:
    """How one model is trained. Defaults: the released tokenizer's optimiser."""

    steps: int
    batch_size: int = 1024
    """global batch, over all processes"""
    learning_rate: float = 2.4e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    schedule: Literal["cosine", "linear"] = "cosine"
    """after warm-up; linear stays flat for 5 % of the steps first"""
    warmup: float = 0.005
    """share of the steps over which the learning rate rises"""
    initial_rate: float = 0.005
    """learning rate of the first step, as a share of the peak"""
    final_rate: float = 0.01
    """learning rate towards which the schedule falls, as a share of the peak"""
    epoch_steps: int = 1
    """steps during which the learning rates and all that is annealed stay as they were at the first of them"""
    clip: float = 0.0
    """largest gradient norm; 0: no clipping"""
    ema: float = 0.9999
    """decay of the averaged weights, from the first step on"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """fp16 is the released generator's; it needs a GPU"""
    checkpoint_every: int = 1000
    """steps between saved states, from which an interrupted training continues"""
    evaluate_every: int = 0
    """steps between evaluations that choose the best averaged weights; 0: those of the last step are taken"""
    select_by: Literal["averaged", "raw"] = "averaged"
    """evaluated for that; the release keeps the averaged weights of the step with the best raw ones"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        _require(self.steps > 0 and self.batch_size > 0, "steps and batch_size must be positive")
        _require(self.epoch_steps > 0, f"epoch_steps must be positive, not {self.epoch_steps}")


@dataclass(frozen=True)
class Execution:
    """How a training is carried out on the machines at hand: speed and memory, not what is trained.

    Numbers change in rounding, and in which noise is drawn inside the networks (stochastic depth, augmentation of what
    a discriminator sees). What a discriminator normalises together is the exception: see
    `imagefolder.tokenizer.discriminator.images_normalised_together`.
    """

    micro_batch: int = 0
    """largest batch of a process at a time, the rest by gradient accumulation; 0: its whole share of the batch"""
    activation_checkpointing: bool = False
    """recompute activations of transformer blocks in the backward pass: less memory, about a third more work"""
    compile: bool = False
    """torch.compile the trained model"""

    def __post_init__(self) -> None:
        _require(
            self.micro_batch >= 0, f"micro_batch must be 0 (a process's whole share) or more, not {self.micro_batch}"
        )


@dataclass(frozen=True)
class LossConfig:
    """The tokenizer's training objective (docs/method.md, "The tokenizer's objective"). A weight of 0 switches a term
    off."""

    reconstruction: float = 1.0
    codebook: float = 1.0
    perceptual: float = 1.0
    """LPIPS with VGG16"""
    semantic: float = 0.1
    semantic_normalise: bool = False
    """both sides of the contrastive losses on the unit sphere (binary models)"""
    semantic_scale: tuple[float, float] = (1.0, 1.0)
    """logit scale at the start and at the end of the training, linear in between (binary models: 1 to 100)"""
    detail: float = 0.1
    """contrastive loss of the first branch, where `TokenizerConfig.detail` asks for it"""
    entropy: float = 0.1
    """binary quantizers"""
    adversarial: float = 0.5
    adversarial_kind: Literal["hinge", "vanilla", "non-saturating"] = "hinge"
    adversarial_start: float = 0.28
    """share of the steps after which the adversarial term sets in (released: epoch 56 of 200)"""
    discriminator: Literal["patch", "dino"] = "dino"
    """PatchGAN (ablation rows 1 to 6), or heads on a frozen DINO ViT-S/16 (rows 7 and 8, released models)"""
    patch_width: int = 64
    patch_layers: int = 3
    """shape of the PatchGAN"""
    lecam: float = 0.001
    discriminator_rate: float = 8e-4
    """peak learning rate of the discriminator, whose schedule (a cosine) begins with the adversarial term"""
    discriminator_warmup: float = 4 / 144
    """share of the steps from there on over which its learning rate rises"""
    discriminator_initial_rate: float = 1e-5 / 8e-4
    """before and at its start, as a share of the peak"""
    discriminator_final_rate: float = 5e-5 / 8e-4
    """at its end, as a share of the peak"""
    discriminator_weight_decay: float = 5e-4
    perturbation_anneal: tuple[float, float] = (0.2, 0.6)
    """shares of the training between which alpha and delta of the perturbation fall to half (RobustTok: epochs 40 to
    120 of 200)"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "semantic_scale", tuple(self.semantic_scale))
        object.__setattr__(self, "perturbation_anneal", tuple(self.perturbation_anneal))
        _require(self.discriminator in ("patch", "dino"), f"discriminator {self.discriminator!r} is not patch or dino")


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling settings; the defaults are those of the released 2.60 gFID."""

    guidance: float = 3.25
    top_k: int = 750
    """0: all tokens"""
    top_p: float = 0.95
    """0 or 1: all tokens"""
    batch_size: int = 100


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON types (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[_Config], values: dict[str, Any], origin: str) -> _Config:
    """Build a configuration from JSON; unknown or missing fields raise `InputError` naming `origin`."""
    fields = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - fields)
    if unknown:
        raise InputError(
            f"{origin}: unknown {kind.__name__} field(s) {', '.join(unknown)}; written by another version?"
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"{origin}: {error}") from None


def config_hash(values: dict[str, Any]) -> str:
    """sha256 of the canonical JSON of a configuration: its identity."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
