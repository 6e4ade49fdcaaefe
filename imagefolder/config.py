"""Configurations: frozen dataclasses, checked on construction, stored as JSON beside every weight file.

The defaults are the released ImageFolder models (MSVR10P2-4096 and VAR-d17) and their training; docs/method.md says
what every field stands for. A configuration may come from a stranger's file: type and range of every field are part of
its annotation, and what fields amount to together is bounded, so that nothing impossible is ever built. The ranges are
far beyond any published model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from imagefolder.errors import InputError, one_line
from imagefolder.validation import check_fields, require, shown

RELEASED_SCALES = (1, 1, 2, 3, 3, 4, 5, 6, 8, 11)

# Fields that say how a model is trained: trained weights mean the same with others
TRAINING_ONLY = {
    "drop_path", "commitment", "commitment_over_scales", "quantizer_dropout", "dropout_start", "semantic", "detail",
    "perturbed_images", "perturbed_codes", "perturbation_depth", "class_dropout", "gamma_init",
}  # fmt: skip

# Fields of a generator that describe its tokens: they are its tokenizer's
TOKEN_FIELDS = ("branches", "scales", "codebook_size", "code_dim")

_Config = TypeVar("_Config")

Name = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, le=1e300)]  # weights of losses, learning rates and shares of them, ...
Count = Annotated[int, Field(ge=1, le=2**40)]
Batch = Annotated[int, Field(ge=1, le=2**20)]
Branches = Annotated[int, Field(ge=1, le=64)]
Scales = Annotated[tuple[Annotated[int, Field(le=256)], ...], Field(max_length=64)]
CodebookSize = Annotated[int, Field(ge=1, le=2**26)]
CodeDim = Annotated[int, Field(ge=1, le=2**12)]
Width = Annotated[int, Field(ge=1, le=2**15)]
Heads = Annotated[int, Field(ge=1, le=2**10)]

# What fields may amount to together
MOST_PATCHES = 2**18  # of an image, and latent tokens of all branches
MOST_POSITIONS = 2**14  # of a generator's sequence: its attention mask has the square of it
MOST_PHIS = 2**10  # of all branches
MOST_CODE_NUMBERS = 2**31  # in the codes of all branches with their statistics; in their convolutions
MOST_LAYER_NUMBERS = 2**36  # in the layers of a transformer; in its head


@dataclass(frozen=True)
class TokenizerConfig:
    """Shape of a tokenizer. `width`, `depth`, `heads` override the timm backbone's own where given."""

    name: Name = "custom"
    image_size: Annotated[int, Field(ge=1, le=8192)] = 256
    patch_size: Annotated[int, Field(ge=1, le=256)] = 16
    backbone: str = "vit_base_patch14_dinov2.lvd142m"
    width: Width | None = None
    depth: Annotated[int, Field(ge=1, le=96)] | None = None
    heads: Heads | None = None
    drop_path: Share = 0.1
    """stochastic depth of the last block while training; it grows linearly from 0 in the first"""
    branches: Branches = 2
    scales: Scales = RELEASED_SCALES
    quantizer: Literal["vq", "bsq", "lfq"] = "vq"
    """vq: learned codes; bsq: signs / sqrt(code_dim) of an input on the unit sphere; lfq: signs of the input as it is
    (both have 2^code_dim codes)"""
    codebook_size: CodebookSize = 4096
    code_dim: CodeDim = 32
    cosine: bool = True
    """vq: nearest code by cosine; False: by Euclidean distance"""
    binary_base: Annotated[float, Field(gt=0, le=16)] = 1.0
    """bsq, lfq: codes of scale k are multiplied by binary_base^k"""
    shared_phi: Annotated[int, Field(ge=0, le=64)] = 4
    """convolutions phi shared over the scales: n partially shared, 1 one for all, 0 one per scale"""
    phi_ratio: Share = 0.5
    commitment: Factor = 0.25
    commitment_over_scales: Literal["mean", "sum"] = "mean"
    """vq: ImageFolder's own release averages the commitment loss over the scales, the later XQ-GAN release sums it;
    binary quantizers average it in both"""
    quantizer_dropout: Share = 0.1
    """share of a batch whose last scales are dropped while training, and which the contrastive losses leave out; a
    single-scale tokenizer has no scale to drop, and leaves that share out all the same (VP2)"""
    dropout_start: Annotated[int, Field(ge=1, le=64)] = 3
    """smallest number of scales kept by quantizer dropout"""
    semantic: Literal["none", "last", "all"] = "last"
    """branch regularised towards the teacher: none, the last one, or all jointly"""
    detail: bool = False
    """regularise the first branch towards the patch features of a second teacher (detail guidance)"""
    perturbed_images: Share = 0.0
    """share of a batch whose codes are perturbed while training (beta of RobustTok; single-scale vq)"""
    perturbed_codes: Share = 1.0
    """share of such an image's codes that are drawn anew (alpha)"""
    perturbation_depth: Annotated[int, Field(ge=1, le=2**26)] = 100
    """from this many codes nearest to the encoder's output (delta)"""

    def __post_init__(self) -> None:
        check_fields(self)
        _check_name(self.name)
        require(
            re.fullmatch(r"[A-Za-z0-9_.]{1,100}", self.backbone) is not None,
            f"backbone {shown(self.backbone)} is not the name of a timm architecture (letters, digits, _ and .)",
        )
        require(
            self.image_size % self.patch_size == 0,
            f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
        )
        require(
            None in (self.width, self.heads) or self.width % self.heads == 0,
            f"width {self.width} is not a multiple of heads {self.heads}",
        )
        _check_scales(self.scales)
        require(
            self.quantizer == "vq" or self.codebook_size == 2**self.code_dim,
            f"a binary quantizer has 2^code_dim codes: codebook_size {self.codebook_size} does not fit code_dim "
            f"{self.code_dim}",
        )
        require(
            abs(math.log10(self.binary_base)) * (len(self.scales) - 1) <= 30,
            f"binary_base {self.binary_base} is too far from 1 for {len(self.scales)} scales",
        )
        require(self.quantizer_dropout < 1, f"quantizer_dropout must be in [0, 1), not {self.quantizer_dropout}")
        require(self.drop_path < 1, f"drop_path must be in [0, 1), not {self.drop_path}")
        if len(self.scales) > 1 and self.quantizer_dropout > 0:
            require(
                self.dropout_start <= len(self.scales),
                f"dropout_start {self.dropout_start} is not within 1..{len(self.scales)} (the number of scales)",
            )
        require(
            self.perturbed_images == 0 or (len(self.scales) == 1 and self.quantizer == "vq"),
            "latent perturbation (perturbed_images) is defined for single-scale vector quantizers",
        )
        require(
            self.perturbation_depth <= self.codebook_size or self.perturbed_images == 0,
            f"perturbation_depth {self.perturbation_depth} is not within 1..{self.codebook_size}",
        )
        self._check_size()

    def _check_size(self) -> None:
        """What no machine could hold is refused here, before anything is built."""
        patches, latents = (self.image_size // self.patch_size) ** 2, self.branches * self.latent_side**2
        codes = self.branches * self.codebook_size * (self.code_dim + len(self.scales))
        phis = self.branches * (self.shared_phi or len(self.scales))
        layers = 12 * (self.depth or 1) * (self.width or 1) ** 2
        for what, number, most in (
            (f"image_size {self.image_size} in patches of {self.patch_size}", patches, MOST_PATCHES),
            (f"{self.branches} branches of latent maps of side {self.latent_side}", latents, MOST_PATCHES),
            (f"{self.branches} branches of scales {shown(self.scales)}", self.branches * self.length, 2 * MOST_PATCHES),
            (f"{self.branches} codebooks of {self.codebook_size} x {self.code_dim}", codes, MOST_CODE_NUMBERS),
            (f"{self.branches} branches of {phis // self.branches} phi", phis, MOST_PHIS),
            (f"{phis} phi for code_dim {self.code_dim}", phis * 9 * self.code_dim**2, MOST_CODE_NUMBERS),
            (f"depth {self.depth} x width {self.width}", layers, MOST_LAYER_NUMBERS),
        ):
            require(number <= most, f"{what}: too large, {number:,} of at most {most:,}")

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

    name: Name = "custom"
    depth: Annotated[int, Field(ge=1, le=256)] = 17
    width: Width | None = None
    """None: 64 x depth"""
    heads: Heads | None = None
    """None: depth"""
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    num_classes: Annotated[int, Field(ge=1, le=2**20)] = 1000
    token_dropout: Share = 0.0
    """share of input positions replaced by a learned empty embedding while training (p_drop)"""
    order: Literal["folded", "unfolded", "raster"] = "folded"
    """folded: all branches of a scale at once; unfolded: branch after branch within a scale; raster: position by
    position (single-scale tokenizers)"""
    qk_norm: bool = True
    class_dropout: Share = 0.1
    drop_path: Share | None = None
    """stochastic depth of the last layer while training, rising linearly from 0 in the first; None: 0.1 x depth / 24"""
    gamma_init: Factor = 1e-4
    """factor on the initial weights of the gammas, which weigh every layer's two branches"""
    branches: Branches = 2
    scales: Scales = RELEASED_SCALES
    codebook_size: CodebookSize = 4096
    code_dim: CodeDim = 32

    def __post_init__(self) -> None:
        check_fields(self)
        _check_name(self.name)
        object.__setattr__(self, "width", 64 * self.depth if self.width is None else self.width)
        object.__setattr__(self, "heads", self.depth if self.heads is None else self.heads)
        object.__setattr__(self, "drop_path", 0.1 * self.depth / 24 if self.drop_path is None else self.drop_path)
        require(self.width % self.heads == 0, f"width {self.width} is not a multiple of heads {self.heads}")
        require(int(self.width * self.mlp_ratio) >= 1, f"mlp_ratio {self.mlp_ratio} leaves nothing of {self.width}")
        require(self.drop_path < 1, f"drop_path must be in [0, 1), not {self.drop_path}")
        _check_scales(self.scales)
        require(
            self.order != "raster" or len(self.scales) == 1,
            f"order 'raster' needs a single-scale tokenizer, not scales {self.scales}",
        )
        length = sum(side * side for side in self.scales) * (self.branches if self.order == "unfolded" else 1)
        layers = self.depth * self.width**2 * int(10 + 2 * self.mlp_ratio)
        head = self.branches * self.codebook_size * self.width
        for what, number, most in (
            (f"{self.order} sequence of scales {shown(self.scales)}", length, MOST_POSITIONS),
            (f"depth {self.depth} x width {self.width}", layers, MOST_LAYER_NUMBERS),
            (f"head of {self.branches} x {self.codebook_size} logits of width {self.width}", head, MOST_LAYER_NUMBERS),
        ):
            require(number <= most, f"{what}: too large, {number:,} of at most {most:,}")


@dataclass(frozen=True)
class TrainingConfig:
    """How one model is trained. Defaults: the released tokenizer's optimiser."""

    steps: Count
    batch_size: Batch = 1024
    """global batch, over all processes"""
    learning_rate: Factor = 2.4e-4
    betas: tuple[Share, Share] = (0.9, 0.95)
    weight_decay: Factor = 0.0
    schedule: Literal["cosine", "linear"] = "cosine"
    """after warm-up; linear stays flat for 5 % of the steps first"""
    warmup: Share = 0.005
    """share of the steps over which the learning rate rises"""
    initial_rate: Factor = 0.005
    """learning rate of the first step, as a share of the peak"""
    final_rate: Factor = 0.01
    """learning rate towards which the schedule falls, as a share of the peak"""
    epoch_steps: Count = 1
    """steps during which the learning rates and all that is annealed stay as they were at the first of them"""
    clip: Factor = 0.0
    """largest gradient norm; 0: no clipping"""
    ema: Share = 0.9999
    """decay of the averaged weights, from the first step on"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """fp16 is the released generator's; it needs a GPU"""
    checkpoint_every: Count = 1000
    """steps between saved states, from which an interrupted training continues"""
    evaluate_every: Annotated[int, Field(ge=0, le=2**40)] = 0
    """steps between evaluations that choose the best averaged weights; 0: those of the last step are taken"""
    select_by: Literal["averaged", "raw"] = "averaged"
    """evaluated for that; the release keeps the averaged weights of the step with the best raw ones"""

    def __post_init__(self) -> None:
        check_fields(self)
        require(max(self.betas) < 1, f"betas must be in [0, 1), not {self.betas}")


@dataclass(frozen=True)
class Execution:
    """How a training is carried out on the machines at hand: speed and memory, not what is trained.

    Numbers change in rounding, and in which noise is drawn inside the networks (stochastic depth, augmentation of what
    a discriminator sees). What a discriminator normalises together is the exception: see
    `imagefolder.tokenizer.discriminator.images_normalised_together`.
    """

    micro_batch: Annotated[int, Field(ge=0, le=2**20)] = 0
    """largest batch of a process at a time, the rest by gradient accumulation; 0: its whole share of the batch"""
    activation_checkpointing: bool = False
    """recompute activations of transformer blocks in the backward pass: less memory, about a third more work"""
    compile: bool = False
    """torch.compile the trained model"""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class LossConfig:
    """The tokenizer's training objective (docs/method.md, "The tokenizer's objective"). A weight of 0 switches a term
    off."""

    reconstruction: Factor = 1.0
    codebook: Factor = 1.0
    perceptual: Factor = 1.0
    """LPIPS with VGG16"""
    semantic: Factor = 0.1
    semantic_normalise: bool = False
    """both sides of the contrastive losses on the unit sphere (binary models)"""
    semantic_scale: tuple[Factor, Factor] = (1.0, 1.0)
    """logit scale at the start and at the end of the training, linear in between (binary models: 1 to 100)"""
    detail: Factor = 0.1
    """contrastive loss of the first branch, where `TokenizerConfig.detail` asks for it"""
    entropy: Factor = 0.1
    """binary quantizers"""
    adversarial: Factor = 0.5
    adversarial_kind: Literal["hinge", "vanilla", "non-saturating"] = "hinge"
    adversarial_start: Share = 0.28
    """share of the steps after which the adversarial term sets in (released: epoch 56 of 200)"""
    discriminator: Literal["patch", "dino"] = "dino"
    """PatchGAN (ablation rows 1 to 6), or heads on a frozen DINO ViT-S/16 (rows 7 and 8, released models)"""
    patch_width: Annotated[int, Field(ge=1, le=1024)] = 64
    patch_layers: Annotated[int, Field(ge=1, le=16)] = 3
    """shape of the PatchGAN"""
    lecam: Factor = 0.001
    discriminator_rate: Factor = 8e-4
    """peak learning rate of the discriminator, whose schedule (a cosine) begins with the adversarial term"""
    discriminator_warmup: Share = 4 / 144
    """share of the steps from there on over which its learning rate rises"""
    discriminator_initial_rate: Factor = 1e-5 / 8e-4
    """before and at its start, as a share of the peak"""
    discriminator_final_rate: Factor = 5e-5 / 8e-4
    """at its end, as a share of the peak"""
    discriminator_weight_decay: Factor = 5e-4
    perturbation_anneal: tuple[Share, Share] = (0.2, 0.6)
    """shares of the training between which alpha and delta of the perturbation fall to half (RobustTok: epochs 40 to
    120 of 200)"""

    def __post_init__(self) -> None:
        check_fields(self)
        start, stop = self.perturbation_anneal
        require(start < stop, f"perturbation_anneal must begin before it ends, not {self.perturbation_anneal}")


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling settings; the defaults are those of the released 2.60 gFID."""

    guidance: Factor = 3.25
    top_k: Annotated[int, Field(ge=0, le=2**26)] = 750
    """0: all tokens"""
    top_p: Share = 0.95
    """0 or 1: all tokens"""
    batch_size: Batch = 100

    def __post_init__(self) -> None:
        check_fields(self)


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON types (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[_Config], values: Any, origin: str) -> _Config:
    """Build a configuration from whatever a JSON document holds.

    Fields that only say how a model was trained may be missing (older versions knew fewer). All others must be there: a
    default in place of one that was lost could change what trained weights mean.

    Raises:
        InputError: naming `origin` and what is wrong: no object, unknown or missing fields, values out of range.
    """
    what = kind.__name__
    if not isinstance(values, dict):
        raise InputError(f"{origin}: no {what} but {shown(values)}")
    fields = [field.name for field in dataclasses.fields(kind)]
    unknown = [name for name in values if name not in fields]
    missing = [name for name in fields if name not in values and name not in TRAINING_ONLY]
    for problem, names in (("unknown", unknown), ("missing", missing)):
        if names:
            listed = ", ".join(one_line(name)[:50] for name in names[:10])
            more = f" and {len(names) - 10} more" if len(names) > 10 else ""
            raise InputError(f"{origin}: {problem} {what} field(s) {listed}{more}; written by another version?")
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def _check_name(name: str) -> None:
    require(name == one_line(name), f"name {shown(name)} is not one line of plain text")


def _check_scales(scales: tuple[int, ...]) -> None:
    require(len(scales) > 0 and min(scales) > 0, f"scales must be positive integers, not {shown(scales)}")
    require(list(scales) == sorted(scales), f"scales must not shrink: {shown(scales)}")


def config_hash(values: dict[str, Any]) -> str:
    """sha256 of the canonical JSON of a configuration: its identity."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
