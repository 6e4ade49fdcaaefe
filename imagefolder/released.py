"""The authors' released configurations, field by field beside ours: `python -m imagefolder.released docs/zoo.md`.

What their YAML files, commands and documents say is data here, in their notation; ours is read from the zoo and
expressed in the same notation, so that a test can hold one to the other. Where the release says nothing, the table says
what we take.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imagefolder.config import LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.errors import one_line
from imagefolder.files import write_atomically
from imagefolder.zoo import OBJECTIVES, RELEASED_TRAINING, TOKENIZERS

EPOCHS, STEPS_PER_EPOCH = 200, 1251
MULTI_SCALE = ("MSVR10P2-4096", "MSVR10P2-8192", "MSVR10P2-16384", "MSBR10P2-4096", "MSBR10P2-16384")
BINARY = ("MSBR10P2-4096", "MSBR10P2-16384")
PRODUCT = (*MULTI_SCALE, "VP2-4096", "VP2-16384")
ONE_BRANCH = ("VQ-4096", "VQ-8192", "RobustTok")
LEARNED = tuple(name for name in OBJECTIVES if name not in BINARY)


@dataclass(frozen=True)
class Model:
    """One released tokenizer as we have it."""

    name: str
    tokenizer: TokenizerConfig
    loss: LossConfig
    training: TrainingConfig


def model(name: str) -> Model:
    """A tokenizer of the authors' zoo with the objective and training it has here."""
    objective = OBJECTIVES[name]
    training = replace(RELEASED_TRAINING, weight_decay=objective.weight_decay)
    return Model(name, TOKENIZERS[name], LossConfig(**objective.loss), training)


@dataclass(frozen=True)
class Row:
    """One of our fields, and what the release says of it.

    `field`: e.g. "tokenizer.scales". `published`: the name of its value in the authors' YAML files, or in words where
    it stands elsewhere. `value`: of all models, or by name; for models without one the release says nothing, and
    `remark` says what is taken. `ours`: our value in the authors' notation; None: the field as it is.
    """

    field: str
    published: str = ""
    value: Any = None
    remark: str = ""
    ours: Callable[[Model], Any] | None = None

    def our_value(self, m: Model) -> Any:
        part, name = self.field.split(".")
        return getattr(getattr(m, part), name)

    def translated(self, m: Model) -> Any:
        """Our value in the authors' notation."""
        return self.our_value(m) if self.ours is None else self.ours(m)

    def published_value(self, name: str) -> Any:
        """None where the release says nothing."""
        return self.value.get(name) if isinstance(self.value, dict) else self.value


def _by(names: tuple[str, ...], value: Any) -> dict[str, Any]:
    return dict.fromkeys(names, value)


_SIZES = _by(("MSVR10P2-4096", "MSBR10P2-4096", "VP2-4096", "VQ-4096", "RobustTok"), 4096)
_SIZES |= _by(("MSVR10P2-8192", "VQ-8192"), 8192) | _by(("MSVR10P2-16384", "MSBR10P2-16384", "VP2-16384"), 16384)
_DIMS = _by(PRODUCT, 32) | {"VQ-4096": 64, "VQ-8192": 32, "RobustTok": 64}
_DIMS |= {"MSBR10P2-4096": 12, "MSBR10P2-16384": 14}
_SINGLE = tuple(name for name in OBJECTIVES if name not in MULTI_SCALE)

ROWS: tuple[Row, ...] = (
    Row("tokenizer.image_size", "image size", 256),
    Row("tokenizer.patch_size", "patch size", 16),
    Row("tokenizer.backbone", "encoder_model, decoder_model", "vit_base_patch14_dinov2.lvd142m"),
    Row("tokenizer.width", remark="the backbone's own, 768"),
    Row("tokenizer.depth", remark="the backbone's own, 12"),
    Row("tokenizer.heads", remark="the backbone's own, 12"),
    Row("tokenizer.drop_path", "drop path", 0.1),
    Row("tokenizer.branches", "product_quant", _by(PRODUCT, 2) | _by(ONE_BRANCH, 1)),
    Row(
        "tokenizer.scales",
        "v_patch_nums, num_latent_tokens",
        _by(MULTI_SCALE, ([1, 1, 2, 3, 3, 4, 5, 6, 8, 11], 121)) | _by(_SINGLE, ([16], 256)),
        ours=lambda m: (list(m.tokenizer.scales), m.tokenizer.latent_side**2),
    ),
    Row(
        "tokenizer.quantizer",
        "lfq",
        _by(BINARY, True) | _by(LEARNED, False),
        ours=lambda m: m.tokenizer.quantizer != "vq",
    ),
    Row("tokenizer.codebook_size", "codebook_size", _SIZES),
    Row("tokenizer.code_dim", "codebook_embed_dim", _DIMS),
    Row("tokenizer.cosine", "recorded outputs", _by(LEARNED, True), "does not apply to binary codes"),
    Row("tokenizer.binary_base", "scale", _by(BINARY, 1.0), "does not apply to learned codes"),
    Row("tokenizer.shared_phi", "share_quant_resi", _by(MULTI_SCALE, 4), "does not apply to a single scale"),
    Row("tokenizer.phi_ratio", "recorded outputs", _by(MULTI_SCALE, 0.5), "does not apply to a single scale"),
    Row("tokenizer.commitment", "commit_loss_beta", 0.25),
    Row(
        "tokenizer.commitment_over_scales",
        "ImageFolder's own release averages, the later XQ-GAN release sums",
        _by(MULTI_SCALE[:3], "mean"),
        "does not apply to binary codes, which average, nor to a single scale",
    ),
    Row("tokenizer.quantizer_dropout", "codebook_drop", _by(PRODUCT, 0.1) | _by(ONE_BRANCH, 0.0)),
    Row("tokenizer.dropout_start", "start_drop", 3),
    Row(
        "tokenizer.semantic",
        "semantic_guide, half_sem",
        _by(PRODUCT, ("dinov2", True)) | _by(ONE_BRANCH, ("dinov2", False)),
        ours=lambda m: ("none" if m.tokenizer.semantic == "none" else "dinov2", m.tokenizer.branches > 1),
    ),
    Row("tokenizer.detail", "detail_guide", "none", ours=lambda m: "dinov2" if m.tokenizer.detail else "none"),
    Row(
        "tokenizer.perturbed_images",
        "beta of the latent perturbation",
        _by(tuple(OBJECTIVES), 0.0) | {"RobustTok": 0.1},
    ),
    Row("tokenizer.perturbed_codes", "alpha", {"RobustTok": 1.0}, "does not apply without perturbation"),
    Row("tokenizer.perturbation_depth", "delta", {"RobustTok": 100}, "does not apply without perturbation"),
    Row("loss.reconstruction", "weight of the squared error", 1.0),
    Row("loss.codebook", "weight of the codebook loss", 1.0),
    Row("loss.perceptual", "weight of LPIPS", 1.0),
    Row("loss.semantic", "sem_loss_weight", 0.1),
    Row("loss.semantic_normalise", "clip_norm", _by(BINARY, True) | _by(LEARNED, False)),
    Row("loss.semantic_scale", "logit scale, first and last", _by(BINARY, (1.0, 100.0)) | _by(LEARNED, (1.0, 1.0))),
    Row("loss.detail", "weight of detail guidance", 0.1),
    Row("loss.entropy", "entropy_loss_ratio", _by(BINARY, 0.1), "does not apply to learned codes"),
    Row("loss.adversarial", "weight of the adversarial term", 0.5),
    Row("loss.adversarial_kind", "adversarial loss", "hinge"),
    Row(
        "loss.adversarial_start",
        "first epoch with a discriminator",
        _by(LEARNED, 56) | _by(BINARY, 64),
        ours=lambda m: round(m.loss.adversarial_start * EPOCHS, 6),
    ),
    Row("loss.discriminator", "discriminator", "dino", "frozen DINO ViT-S/16 with five heads"),
    Row("loss.patch_width", remark="does not apply to this discriminator"),
    Row("loss.patch_layers", remark="does not apply to this discriminator"),
    Row("loss.lecam", "weight of LeCAM", 0.001),
    Row(
        "loss.discriminator_rate",
        "learning rate of the discriminator for a batch of 128",
        1e-4,
        ours=lambda m: m.loss.discriminator_rate * 128 / m.training.batch_size,
    ),
    Row(
        "loss.discriminator_warmup",
        "warm-up epochs of the discriminator",
        _by(MULTI_SCALE[:3], 4.0),
        "four of the epochs that are left, as for ImageFolder",
        ours=lambda m: m.loss.discriminator_warmup * (EPOCHS - m.loss.adversarial_start * EPOCHS),
    ),
    Row(
        "loss.discriminator_initial_rate",
        "its first learning rate",
        1e-5,
        ours=lambda m: m.loss.discriminator_initial_rate * m.loss.discriminator_rate,
    ),
    Row(
        "loss.discriminator_final_rate",
        "its last learning rate",
        5e-5,
        ours=lambda m: m.loss.discriminator_final_rate * m.loss.discriminator_rate,
    ),
    Row("loss.discriminator_weight_decay", "its weight decay", 5e-4),
    Row(
        "loss.perturbation_anneal",
        "epochs between which the perturbation falls to half",
        {"RobustTok": (40, 120)},
        "does not apply without perturbation",
        ours=lambda m: tuple(round(share * EPOCHS) for share in m.loss.perturbation_anneal),
    ),
    Row("training.steps", "epochs", 200, ours=lambda m: m.training.steps // m.training.epoch_steps),
    Row("training.batch_size", "global batch", 1024),
    Row(
        "training.learning_rate",
        "learning rate for a batch of 128",
        3e-5,
        ours=lambda m: m.training.learning_rate * 128 / m.training.batch_size,
    ),
    Row("training.betas", "betas of AdamW", (0.9, 0.95)),
    Row("training.weight_decay", "weight decay", _by(LEARNED, 0.0) | _by(BINARY, 5e-5)),
    Row("training.schedule", "schedule", "cosine"),
    Row("training.warmup", "warm-up epochs", 1.0, ours=lambda m: m.training.warmup * EPOCHS),
    Row(
        "training.initial_rate",
        "first learning rate",
        1e-5,
        ours=lambda m: m.training.initial_rate * m.training.learning_rate,
    ),
    Row(
        "training.final_rate",
        "last learning rate",
        5e-5,
        ours=lambda m: m.training.final_rate * m.training.learning_rate,
    ),
    Row("training.epoch_steps", "the learning rate changes once an epoch", STEPS_PER_EPOCH),
    Row("training.clip", "gradient clipping", 0.0),
    Row("training.ema", "decay of the averaged weights", 0.9999),
    Row("training.precision", "mixed precision", "bf16"),
    Row("training.checkpoint_every", remark="steps between saved states; decides nothing"),
    Row("training.evaluate_every", "steps between evaluations of rFID", 10_000),
    Row("training.select_by", "weights by whose rFID the best are chosen", "raw"),
)
"""Every field of TokenizerConfig, LossConfig and TrainingConfig but the name."""


def render() -> str:
    """The table as Markdown: first what all models share, then each model's own."""
    models = [model(name) for name in OBJECTIVES]
    shared, own = [], []
    for row in ROWS:
        cells = {(_text(row.our_value(m)), _text(row.translated(m)), _published(row, m)) for m in models}
        (shared if len(cells) == 1 else own).append(row)
    parts = [_HEAD, "## What all of them share\n", _table(shared, models[0])]
    parts += [f"## {m.name}\n\n{_table(own, m)}" for m in models]
    return "\n".join(parts)


def _published(row: Row, m: Model) -> str:
    value = row.published_value(m.name)
    return "-" if value is None else _text(value)


def _table(rows: list[Row], m: Model) -> str:
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
    """All fields there are to set beside published ones."""
    parts = {"tokenizer": TokenizerConfig, "loss": LossConfig, "training": TrainingConfig}
    every = [f"{part}.{field.name}" for part, kind in parts.items() for field in dataclasses.fields(kind)]
    return [name for name in every if name != "tokenizer.name"]


_HEAD = """# The authors' zoo, field by field

Every field of every released tokenizer: our value (where notations differ, translated in brackets) beside the one the
authors publish, generated by `python -m imagefolder.released docs/zoo.md` and held by a test. *Published as* gives the
name in their YAML files, or describes the value where it stands in their commands or documents. A dash means that the
release does not say; the remark says what is taken. [method.md](method.md) explains the fields.

Of the generators, `VAR-d17-MSVR10P2-4096` is released and trained as [method.md](method.md) says. What predicts the
tokens of the others here (`reproductions/zoo.py`) is ours.
"""


def write_page(render: Callable[[], str], usage: str) -> int:
    """The program of a generated page: write it to the path on the command line.

    Returns:
        Exit code: 0, or 2 after a line on what is wrong.
    """
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(f"usage: {usage}", file=sys.stderr)
        return 2
    try:
        write_atomically(Path(sys.argv[1]), lambda temporary: temporary.write_text(render(), encoding="utf-8"))
    except OSError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(write_page(render, "python -m imagefolder.released docs/zoo.md"))
