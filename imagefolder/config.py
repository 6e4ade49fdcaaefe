"""Configurations: frozen dataclasses, checked on construction, stored as JSON next to every weight file.

The defaults are the released ImageFolder models (MSVR10P2-4096 and VAR-d17) and their training; docs/method.md explains
every field. A configuration may come from an untrusted file: each field's annotation holds its type and range, and
`__post_init__` bounds combinations of fields, so that nothing impossible is ever built. The ranges are far beyond any
published model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from imagefolder.errors import InputError, one_line
from imagefolder.kinds import LARGEST_CODEBOOK, ORDERS, QUANTIZERS
from imagefolder.validation import ListToTuple, check_kind, check_name, check_scales, checked, require, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RELEASED_SCALES = (1, 1, 2, 3, 3, 4, 5, 6, 8, 11)

# Fields that only affect training: they do not change what trained weights compute
TRAINING_ONLY = {
    "drop_path", "commitment", "commitment_over_scales", "quantizer_dropout", "dropout_start", "semantic", "detail",
    "perturbed_images", "perturbed_codes", "perturbation_depth", "class_dropout", "gamma_init",
}  # fmt: skip

# Fields that earlier versions did not store; the defaults are what they did
LATER = {"temperature"}

# Fields of a generator that describe its tokens and are copied from its tokenizer
TOKEN_FIELDS = ("branches", "scales", "codebook_size", "code_dim")

FROM_DEPTH: Any = None  # default of generator fields that are derived from the depth

_Config = TypeVar("_Config", bound="DataclassInstance")

Name = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, le=1e300)]  # weights of losses, learning rates and shares of them, ...
Count = Annotated[int, Field(ge=1, le=2**40)]
Shares = Annotated[tuple[Share, Share], ListToTuple]
Batch = Annotated[int, Field(ge=1, le=2**20)]
Branches = Annotated[int, Field(ge=1, le=64)]
Scales = Annotated[tuple[Annotated[int, Field(le=256)], ...], Field(max_length=64), ListToTuple]
CodebookSize = Annotated[int, Field(ge=1, le=LARGEST_CODEBOOK)]
CodeDim = Annotated[int, Field(ge=1, le=2**12)]
Width = Annotated[int, Field(ge=1, le=2**15)]
Heads = Annotated[int, Field(ge=1, le=2**10)]

# Upper bounds on combinations of fields
MOST_PATCHES = 2**18  # of an image, and latent tokens of all branches
MOST_POSITIONS = 2**14  # of a generator's sequence; its attention mask has the square of this many entries
MOST_PHIS = 2**10  # of all branches
MOST_CODE_NUMBERS = 2**31  # in the codes of all branches and their statistics; in their convolutions
MOST_LAYER_NUMBERS = 2**36  # in the layers of a transformer; in its head


@checked
class TokenizerConfig:
    """Shape of a tokenizer. `width`, `depth` and `heads`, if given, override those of the timm backbone."""

    name: Name = "custom"
    image_size: Annotated[int, Field(ge=1, le=8192)] = 256
    patch_size: Annotated[int, Field(ge=1, le=256)] = 16
    backbone: str = "vit_base_patch14_dinov2.lvd142m"
    width: Width | None = None
    depth: Annotated[int, Field(ge=1, le=96)] | None = None
    heads: Heads | None = None
    drop_path: Share = 0.1
    """stochastic depth rate of the last block during training, rising linearly from 0 in the first"""
    branches: Branches = 2
    scales: Scales = RELEASED_SCALES
    quantizer: str = "vq"
    """vq: learned codes; bsq: signs / sqrt(code_dim) of an input on the unit sphere; lfq: signs of the input itself
    (both have 2^code_dim codes); fsq: evenly spaced levels per channel, codebook_size in all (`kinds.fsq_levels`)"""
    codebook_size: CodebookSize = 4096
    code_dim: CodeDim = 32
    cosine: bool = True
    """vq: nearest code by cosine; False: by Euclidean distance"""
    binary_base: Annotated[float, Field(gt=0, le=16)] = 1.0
    """bsq, lfq: codes of scale k are multiplied by binary_base^k"""
    shared_phi: Annotated[int, Field(ge=0, le=64)] = 4
    """number of phi convolutions: n partially shared between scales, 1 shared by all, 0 one per scale"""
    phi_ratio: Share = 0.5
    commitment: Factor = 0.25
    commitment_over_scales: Literal["mean", "sum"] = "mean"
    """vq: ImageFolder's own release averages the commitment loss over scales, the later XQ-GAN release sums it; binary
    quantizers average it in both"""
    quantizer_dropout: Share = 0.1
    """share of a training batch whose last scales are dropped and which the contrastive losses skip; a single-scale
    tokenizer (VP2) has no scale to drop but still skips that share"""
    dropout_start: Annotated[int, Field(ge=1, le=64)] = 3
    """minimum number of scales that quantizer dropout keeps"""
    semantic: Literal["none", "last", "all"] = "last"
    """branches regularised towards the teacher: none, the last one, or all jointly"""
    detail: bool = False
    """regularise the first branch towards the patch features of a second teacher (detail guidance)"""
    perturbed_images: Share = 0.0
    """share of a training batch whose codes are perturbed (RobustTok's beta; single-scale vq)"""
    perturbed_codes: Share = 1.0
    """share of a perturbed image's codes that are redrawn (alpha)"""
    perturbation_depth: Annotated[int, Field(ge=1, le=2**26)] = 100
    """codes are redrawn from this many nearest to the encoder's output (delta)"""

    def __post_init__(self) -> None:
        check_name(self.name)
        require(
            re.fullmatch(r"[A-Za-z0-9_.]{1,100}", self.backbone) is not None,
            f"backbone {shown(self.backbone)} is not the name of a timm architecture (letters, digits, _ and .)",
        )
        require(
            self.image_size % self.patch_size == 0,
            f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
        )
        require(
            self.width is None or self.heads is None or self.width % self.heads == 0,
            f"width {self.width} is not a multiple of heads {self.heads}",
        )
        check_scales(self.scales)
        check_kind("quantizer", self.quantizer, QUANTIZERS)
        kind = QUANTIZERS[self.quantizer]
        kind.check(self.codebook_size, self.code_dim)
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
            self.perturbed_images == 0 or (len(self.scales) == 1 and kind.learned),
            "latent perturbation (perturbed_images) is defined for single-scale vector quantizers",
        )
        require(
            self.perturbation_depth <= self.codebook_size or self.perturbed_images == 0,
            f"perturbation_depth {self.perturbation_depth} is not within 1..{self.codebook_size}",
        )
        self._check_size()

    def _check_size(self) -> None:
        """Refuse what no machine could hold, before anything is built."""
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


@checked
class GeneratorConfig:
    """Shape of a generator. The fields from `branches` on describe the tokens and are copied from its tokenizer."""

    name: Name = "custom"
    depth: Annotated[int, Field(ge=1, le=256)] = 17
    width: Width = FROM_DEPTH
    """default: 64 x depth"""
    heads: Heads = FROM_DEPTH
    """default: depth"""
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    num_classes: Annotated[int, Field(ge=1, le=2**20)] = 1000
    token_dropout: Share = 0.0
    """share of input positions replaced by a learned empty embedding during training (p_drop)"""
    order: str = "folded"
    """folded: all branches of a scale at once; unfolded: branch after branch within a scale; raster: position by
    position (single-scale tokenizers)"""
    qk_norm: bool = True
    class_dropout: Share = 0.1
    drop_path: Share = FROM_DEPTH
    """stochastic depth rate of the last layer, rising linearly from 0 in the first; default: 0.1 x depth / 24"""
    gamma_init: Factor = 1e-4
    """factor on the initial weights of the gammas, which scale the two branches of every layer"""
    branches: Branches = 2
    scales: Scales = RELEASED_SCALES
    codebook_size: CodebookSize = 4096
    code_dim: CodeDim = 32

    @field_validator("width", "heads", "drop_path", mode="before")
    @classmethod
    def _from_depth(cls, value: Any, info: ValidationInfo) -> Any:
        depth = info.data.get("depth", 1)  # missing if it is itself invalid
        defaults = {"width": 64 * depth, "heads": depth, "drop_path": 0.1 * depth / 24}
        return defaults.get(info.field_name or "") if value is None else value

    def __post_init__(self) -> None:
        check_name(self.name)
        require(self.width % self.heads == 0, f"width {self.width} is not a multiple of heads {self.heads}")
        require(int(self.width * self.mlp_ratio) >= 1, f"mlp_ratio {self.mlp_ratio} leaves no channel of {self.width}")
        require(self.drop_path < 1, f"drop_path must be in [0, 1), not {self.drop_path}")
        check_scales(self.scales)
        check_kind("order", self.order, ORDERS)
        kind = ORDERS[self.order]
        require(
            len(self.scales) == 1 or not kind.single_scale,
            f"order {self.order!r} needs a single-scale tokenizer, not scales {self.scales}",
        )
        length = sum(side * side for side in self.scales) * (1 if kind.folded else self.branches)
        layers = self.depth * self.width**2 * int(10 + 2 * self.mlp_ratio)
        head = self.branches * self.codebook_size * self.width
        for what, number, most in (
            (f"{self.order} sequence of scales {shown(self.scales)}", length, MOST_POSITIONS),
            (f"depth {self.depth} x width {self.width}", layers, MOST_LAYER_NUMBERS),
            (f"head of {self.branches} x {self.codebook_size} logits of width {self.width}", head, MOST_LAYER_NUMBERS),
        ):
            require(number <= most, f"{what}: too large, {number:,} of at most {most:,}")


Config = TokenizerConfig | GeneratorConfig
"""of a model with weights"""


@checked
class TrainingConfig:
    """How one model is trained. The defaults are the released tokenizer's optimiser."""

    steps: Count
    batch_size: Batch = 1024
    """global batch, over all processes"""
    learning_rate: Factor = 2.4e-4
    betas: Shares = (0.9, 0.95)
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
    """number of steps over which learning rates and annealed values stay constant"""
    clip: Factor = 0.0
    """largest gradient norm; 0: no clipping"""
    ema: Share = 0.9999
    """decay of the averaged weights; averaging starts at the first step"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """the released generator uses fp16, which needs a GPU"""
    checkpoint_every: Count = 1000
    """steps between saved states, from which an interrupted run resumes"""
    evaluate_every: Annotated[int, Field(ge=0, le=2**40)] = 0
    """steps between evaluations that choose the best averaged weights; 0: use those of the last step"""
    select_by: Literal["averaged", "raw"] = "averaged"
    """which weights these evaluations use; the release keeps the averaged weights of the step with the best raw ones"""

    def __post_init__(self) -> None:
        require(max(self.betas) < 1, f"betas must be in [0, 1), not {self.betas}")


Logger = Literal["tensorboard", "wandb", "trackio"]


@checked
class Execution:
    """How training runs on the available machines: speed, memory and logs, not what is trained.

    Results change only by rounding and by the noise drawn inside the networks (stochastic depth, the discriminator's
    augmentation). The exception is which images a discriminator normalises together: see
    `imagefolder.tokenizer.discriminator.images_normalised_together`.
    """

    micro_batch: Annotated[int, Field(ge=0, le=2**20)] = 0
    """largest batch a process computes at once, the rest by gradient accumulation; 0: its whole share of the batch"""
    activation_checkpointing: bool = False
    """recompute the activations of transformer blocks in the backward pass: less memory, about a third more compute"""
    compile: bool = False
    """apply torch.compile to the model being trained"""
    logger: Logger = "tensorboard"
    """where the losses go besides `curve.jsonl`"""


@checked
class LossConfig:
    """The tokenizer's objective (see docs/method.md). A weight of 0 turns a term off."""

    reconstruction: Factor = 1.0
    codebook: Factor = 1.0
    perceptual: Factor = 1.0
    """LPIPS with VGG16"""
    semantic: Factor = 0.1
    semantic_normalise: bool = False
    """project both sides of the contrastive losses onto the unit sphere (binary models)"""
    semantic_scale: Annotated[tuple[Factor, Factor], ListToTuple] = (1.0, 1.0)
    """logit scale at the start and end of training, linear in between (binary models: 1 to 100)"""
    detail: Factor = 0.1
    """contrastive loss of the first branch, used if `TokenizerConfig.detail`"""
    entropy: Factor = 0.1
    """binary quantizers"""
    adversarial: Factor = 0.5
    adversarial_kind: Literal["hinge", "vanilla", "non-saturating"] = "hinge"
    adversarial_start: Share = 0.28
    """share of the steps after which the adversarial term starts (released: epoch 56 of 200)"""
    discriminator: Literal["patch", "dino"] = "dino"
    """PatchGAN (ablation rows 1 to 6), or heads on a frozen DINO ViT-S/16 (rows 7 and 8, released models)"""
    patch_width: Annotated[int, Field(ge=1, le=1024)] = 64
    patch_layers: Annotated[int, Field(ge=1, le=16)] = 3
    """shape of the PatchGAN"""
    lecam: Factor = 0.001
    discriminator_rate: Factor = 8e-4
    """peak learning rate of the discriminator; its cosine schedule starts with the adversarial term"""
    discriminator_warmup: Share = 4 / 144
    """share of the remaining steps over which its learning rate rises"""
    discriminator_initial_rate: Factor = 1e-5 / 8e-4
    """its learning rate at and before that start, as a share of the peak"""
    discriminator_final_rate: Factor = 5e-5 / 8e-4
    """its learning rate at the end, as a share of the peak"""
    discriminator_weight_decay: Factor = 5e-4
    perturbation_anneal: Shares = (0.2, 0.6)
    """shares of training between which the perturbation's alpha and delta are halved (RobustTok: epochs 40 to 120 of
    200)"""

    def __post_init__(self) -> None:
        start, stop = self.perturbation_anneal
        require(start < stop, f"perturbation_anneal must start before it ends, not {self.perturbation_anneal}")


@checked
class SamplingConfig:
    """Sampling settings; the defaults are those of the released 2.60 gFID."""

    guidance: Factor = 3.25
    top_k: Annotated[int, Field(ge=0, le=2**26)] = 750
    """0: all tokens"""
    top_p: Share = 0.95
    """0 or 1: all tokens"""
    batch_size: Batch = 100
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """divides the logits after guidance, at all scales"""


UNGUIDED: dict[str, Any] = {"guidance": 0.0, "top_k": 0, "top_p": 0.0, "temperature": 1.0}
"""Sampling as the model predicts: without guidance, all tokens possible, at temperature 1."""


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON types; tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[_Config], values: Any, origin: str) -> _Config:
    """Build a configuration from the content of a JSON document.

    Training-only fields and those of `LATER` may be missing (older versions had fewer). All others are required: a
    default in place of a lost value could change what trained weights compute.

    Raises:
        InputError: not an object, unknown or missing fields, or values out of range; the message names `origin`.
    """
    what = kind.__name__
    if not isinstance(values, dict):
        raise InputError(f"{origin}: expected a {what}, not {shown(values)}")
    fields = [field.name for field in dataclasses.fields(kind)]
    unknown = [name for name in values if name not in fields]
    missing = [name for name in fields if name not in values and name not in TRAINING_ONLY | LATER]
    for problem, names in (("unknown", unknown), ("missing", missing)):
        if names:
            listed = ", ".join(one_line(name)[:50] for name in names[:10])
            more = f" and {len(names) - 10} more" if len(names) > 10 else ""
            raise InputError(f"{origin}: {problem} {what} field(s) {listed}{more}; was it written by another version?")
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def config_hash(values: dict[str, Any]) -> str:
    """sha256 of the canonical JSON of a configuration: its identity."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
