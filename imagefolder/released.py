"""The authors' released configurations next to ours, field by field: `python -m imagefolder.released docs/zoo.md`.

The values in their YAML files, commands and documents are data here, in their notation. Ours are read from the zoo and
translated to that notation, so that a test can compare the two. Where the release does not specify a value, the table
documents our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

from tyro.conf import Positional

from imagefolder.cli import command_line
from imagefolder.config import LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.files import write_text
from imagefolder.kinds import QUANTIZERS
from imagefolder.zoo import OBJECTIVES, RELEASED_TRAINING, TOKENIZERS

EPOCHS, STEPS_PER_EPOCH = 200, 1251
MULTI_SCALE = ("MSVR10P2-4096", "MSVR10P2-8192", "MSVR10P2-16384", "MSBR10P2-4096", "MSBR10P2-16384")
BINARY = ("MSBR10P2-4096", "MSBR10P2-16384")
PRODUCT = (*MULTI_SCALE, "VP2-4096", "VP2-16384")
ONE_BRANCH = ("VQ-4096", "VQ-8192", "RobustTok")
LEARNED = tuple(name for name in OBJECTIVES if name not in BINARY)


@dataclass(frozen=True)
class Model:
    """Our configuration of one released tokenizer."""

    name: str
    tokenizer: TokenizerConfig
    loss: LossConfig
    training: TrainingConfig


def model(name: str) -> Model:
    """A tokenizer of the authors' zoo with our objective and training."""
    objective = OBJECTIVES[name]
    training = replace(RELEASED_TRAINING, weight_decay=objective.weight_decay)
    return Model(name, TOKENIZERS[name], LossConfig(**objective.loss), training)


@dataclass(frozen=True)
class FieldSource:
    """One of our fields and its published value."""

    field: str
    """part and name, such as "tokenizer.scales\""""
    published: str = ""
    """the authors' name for it in their YAML files, or a description if they state it elsewhere"""
    value: Any = None
    """the published value, for all models or by model name; the release does not specify it for models without one"""
    remark: str = ""
    """our choice for those models"""
    ours: Callable[[Model], Any] | None = None
    """our value in the authors' notation; None: the field itself"""

    def our_value(self, m: Model) -> Any:
        part, name = self.field.split(".")
        return getattr(getattr(m, part), name)

    def translated(self, m: Model) -> Any:
        """Our value in the authors' notation."""
        return self.our_value(m) if self.ours is None else self.ours(m)

    def published_value(self, name: str) -> Any:
        """None if the release does not specify it."""
        return self.value.get(name) if isinstance(self.value, dict) else self.value


def _by(names: tuple[str, ...], value: Any) -> dict[str, Any]:
    return dict.fromkeys(names, value)


_SIZES = _by(("MSVR10P2-4096", "MSBR10P2-4096", "VP2-4096", "VQ-4096", "RobustTok"), 4096)
_SIZES |= _by(("MSVR10P2-8192", "VQ-8192"), 8192) | _by(("MSVR10P2-16384", "MSBR10P2-16384", "VP2-16384"), 16384)
_DIMS = _by(PRODUCT, 32) | {"VQ-4096": 64, "VQ-8192": 32, "RobustTok": 64}
_DIMS |= {"MSBR10P2-4096": 12, "MSBR10P2-16384": 14}
_SINGLE = tuple(name for name in OBJECTIVES if name not in MULTI_SCALE)

ROWS: tuple[FieldSource, ...] = (
    FieldSource("tokenizer.image_size", "image size", 256),
    FieldSource("tokenizer.patch_size", "patch size", 16),
    FieldSource("tokenizer.backbone", "encoder_model, decoder_model", "vit_base_patch14_dinov2.lvd142m"),
    FieldSource("tokenizer.width", remark="the backbone's own, 768"),
    FieldSource("tokenizer.depth", remark="the backbone's own, 12"),
    FieldSource("tokenizer.heads", remark="the backbone's own, 12"),
    FieldSource("tokenizer.drop_path", "drop path", 0.1),
    FieldSource("tokenizer.branches", "product_quant", _by(PRODUCT, 2) | _by(ONE_BRANCH, 1)),
    FieldSource(
        "tokenizer.scales",
        "v_patch_nums, num_latent_tokens",
        _by(MULTI_SCALE, ([1, 1, 2, 3, 3, 4, 5, 6, 8, 11], 121)) | _by(_SINGLE, ([16], 256)),
        ours=lambda m: (list(m.tokenizer.scales), m.tokenizer.latent_side**2),
    ),
    FieldSource(
        "tokenizer.quantizer",
        "lfq",
        _by(BINARY, True) | _by(LEARNED, False),
        ours=lambda m: not QUANTIZERS[m.tokenizer.quantizer].learned,
    ),
    FieldSource("tokenizer.codebook_size", "codebook_size", _SIZES),
    FieldSource("tokenizer.code_dim", "codebook_embed_dim", _DIMS),
    FieldSource("tokenizer.cosine", "recorded outputs", _by(LEARNED, True), "does not apply to binary codes"),
    FieldSource("tokenizer.binary_base", "scale", _by(BINARY, 1.0), "does not apply to learned codes"),
    FieldSource("tokenizer.shared_phi", "share_quant_resi", _by(MULTI_SCALE, 4), "does not apply to a single scale"),
    FieldSource("tokenizer.phi_ratio", "recorded outputs", _by(MULTI_SCALE, 0.5), "does not apply to a single scale"),
    FieldSource("tokenizer.commitment", "commit_loss_beta", 0.25),
    FieldSource(
        "tokenizer.commitment_over_scales",
        "ImageFolder's own release averages, the later XQ-GAN release sums",
        _by(MULTI_SCALE[:3], "mean"),
        "does not apply to binary codes, which average, or to a single scale",
    ),
    FieldSource("tokenizer.quantizer_dropout", "codebook_drop", _by(PRODUCT, 0.1) | _by(ONE_BRANCH, 0.0)),
    FieldSource("tokenizer.dropout_start", "start_drop", 3),
    FieldSource(
        "tokenizer.semantic",
        "semantic_guide, half_sem",
        _by(PRODUCT, ("dinov2", True)) | _by(ONE_BRANCH, ("dinov2", False)),
        ours=lambda m: ("none" if m.tokenizer.semantic == "none" else "dinov2", m.tokenizer.branches > 1),
    ),
    FieldSource("tokenizer.detail", "detail_guide", "none", ours=lambda m: "dinov2" if m.tokenizer.detail else "none"),
    FieldSource(
        "tokenizer.perturbed_images",
        "beta of the latent perturbation",
        _by(tuple(OBJECTIVES), 0.0) | {"RobustTok": 0.1},
    ),
    FieldSource("tokenizer.perturbed_codes", "alpha", {"RobustTok": 1.0}, "does not apply without perturbation"),
    FieldSource("tokenizer.perturbation_depth", "delta", {"RobustTok": 100}, "does not apply without perturbation"),
    FieldSource("loss.reconstruction", "weight of the squared error", 1.0),
    FieldSource("loss.codebook", "weight of the codebook loss", 1.0),
    FieldSource("loss.perceptual", "weight of LPIPS", 1.0),
    FieldSource("loss.semantic", "sem_loss_weight", 0.1),
    FieldSource("loss.semantic_normalise", "clip_norm", _by(BINARY, True) | _by(LEARNED, False)),
    FieldSource(
        "loss.semantic_scale", "logit scale, first and last", _by(BINARY, (1.0, 100.0)) | _by(LEARNED, (1.0, 1.0))
    ),
    FieldSource("loss.detail", "weight of detail guidance", 0.1),
    FieldSource("loss.entropy", "entropy_loss_ratio", _by(BINARY, 0.1), "does not apply to learned codes"),
    FieldSource("loss.adversarial", "weight of the adversarial term", 0.5),
    FieldSource("loss.adversarial_kind", "adversarial loss", "hinge"),
    FieldSource(
        "loss.adversarial_start",
        "first epoch with a discriminator",
        _by(LEARNED, 56) | _by(BINARY, 64),
        ours=lambda m: round(m.loss.adversarial_start * EPOCHS, 6),
    ),
    FieldSource("loss.discriminator", "discriminator", "dino", "frozen DINO ViT-S/16 with five heads"),
    FieldSource("loss.patch_width", remark="does not apply to this discriminator"),
    FieldSource("loss.patch_layers", remark="does not apply to this discriminator"),
    FieldSource("loss.lecam", "weight of LeCAM", 0.001),
    FieldSource(
        "loss.discriminator_rate",
        "learning rate of the discriminator for a batch of 128",
        1e-4,
        ours=lambda m: m.loss.discriminator_rate * 128 / m.training.batch_size,
    ),
    FieldSource(
        "loss.discriminator_warmup",
        "warm-up epochs of the discriminator",
        _by(MULTI_SCALE[:3], 4.0),
        "four of the remaining epochs, as in ImageFolder",
        ours=lambda m: m.loss.discriminator_warmup * (EPOCHS - m.loss.adversarial_start * EPOCHS),
    ),
    FieldSource(
        "loss.discriminator_initial_rate",
        "its first learning rate",
        1e-5,
        ours=lambda m: m.loss.discriminator_initial_rate * m.loss.discriminator_rate,
    ),
    FieldSource(
        "loss.discriminator_final_rate",
        "its last learning rate",
        5e-5,
        ours=lambda m: m.loss.discriminator_final_rate * m.loss.discriminator_rate,
    ),
    FieldSource("loss.discriminator_weight_decay", "its weight decay", 5e-4),
    FieldSource(
        "loss.perturbation_anneal",
        "epochs between which the perturbation is halved",
        {"RobustTok": (40, 120)},
        "does not apply without perturbation",
        ours=lambda m: tuple(round(share * EPOCHS) for share in m.loss.perturbation_anneal),
    ),
    FieldSource("training.steps", "epochs", 200, ours=lambda m: m.training.steps // m.training.epoch_steps),
    FieldSource("training.batch_size", "global batch", 1024),
    FieldSource(
        "training.learning_rate",
        "learning rate for a batch of 128",
        3e-5,
        ours=lambda m: m.training.learning_rate * 128 / m.training.batch_size,
    ),
    FieldSource("training.betas", "betas of AdamW", (0.9, 0.95)),
    FieldSource("training.weight_decay", "weight decay", _by(LEARNED, 0.0) | _by(BINARY, 5e-5)),
    FieldSource("training.schedule", "schedule", "cosine"),
    FieldSource("training.warmup", "warm-up epochs", 1.0, ours=lambda m: m.training.warmup * EPOCHS),
    FieldSource(
        "training.initial_rate",
        "first learning rate",
        1e-5,
        ours=lambda m: m.training.initial_rate * m.training.learning_rate,
    ),
    FieldSource(
        "training.final_rate",
        "last learning rate",
        5e-5,
        ours=lambda m: m.training.final_rate * m.training.learning_rate,
    ),
    FieldSource("training.epoch_steps", "the learning rate changes once an epoch", STEPS_PER_EPOCH),
    FieldSource("training.clip", "gradient clipping", 0.0),
    FieldSource("training.ema", "decay of the averaged weights", 0.9999),
    FieldSource("training.precision", "mixed precision", "bf16"),
    FieldSource("training.checkpoint_every", remark="steps between saved states; does not affect results"),
    FieldSource("training.evaluate_every", "steps between evaluations of rFID", 10_000),
    FieldSource("training.select_by", "weights whose rFID selects the best", "raw"),
)
"""Every field of TokenizerConfig, LossConfig and TrainingConfig except the name."""


def render() -> str:
    """The tables as Markdown: first the fields that all models share, then those of each model."""
    models = [model(name) for name in OBJECTIVES]
    shared, own = [], []
    for row in ROWS:
        cells = {(_text(row.our_value(m)), _text(row.translated(m)), _published(row, m)) for m in models}
        (shared if len(cells) == 1 else own).append(row)
    parts = [_HEAD, "## Shared by all\n", _table(shared, models[0])]
    parts += [f"## {m.name}\n\n{_table(own, m)}" for m in models]
    return "\n".join(parts)


def _published(row: FieldSource, m: Model) -> str:
    value = row.published_value(m.name)
    return "-" if value is None else _text(value)


def _table(rows: list[FieldSource], m: Model) -> str:
    lines = ["| our field | ours | published as | published value | remark |", "|---" * 5 + "|"]
    for row in rows:
        silent = row.published_value(m.name) is None
        remark = row.remark if silent or not isinstance(row.value, dict) else ""
        ours = _text(row.our_value(m))
        if row.ours is not None and (translated := _text(row.translated(m))) != ours:
            ours = f"{ours} (= {translated})"
        cells = (f"`{row.field}`", ours, "-" if silent else row.published, _published(row, m), remark)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def fields() -> list[str]:
    """All fields to compare with published ones."""
    parts = {"tokenizer": TokenizerConfig, "loss": LossConfig, "training": TrainingConfig}
    every = [f"{part}.{field.name}" for part, kind in parts.items() for field in dataclasses.fields(kind)]
    return [name for name in every if name != "tokenizer.name"]


_HEAD = """# The authors' zoo, field by field

Every field of every released tokenizer: our value (translated in brackets if the notations differ) next to the
published one. This page is generated by `python -m imagefolder.released docs/zoo.md` and checked by a test. *Published
as* gives the name in the authors' YAML files, or describes a value stated in their commands or documents. A dash means
that the release does not specify the value; the remark explains our choice. [method.md](method.md) explains the fields.

The only released generator is `VAR-d17-MSVR10P2-4096`; [method.md](method.md) describes its training. The generators
for the other tokenizers (`reproductions/zoo.py`) are ours.
"""


def write(path: Annotated[Path, Positional]) -> None:
    """Write the page.

    Args:
        path: file to write
    """
    write_text(path, render())


def main() -> NoReturn:
    """Entry point."""
    command_line(write, prog="python -m imagefolder.released")


if __name__ == "__main__":
    main()
