"""The authors' whole zoo: every released tokenizer trained by its own recipe, with a generator on its tokens.

python reproductions/zoo.py                                                     # mini: a small counterpart of each
python reproductions/zoo.py --rows MSBR10P2-4096 RobustTok --seeds 0 1 2
python reproductions/zoo.py --scale full --data IMAGENET --rows VP2-16384       # as released

At full, tokenizer, objective and optimiser of every row are the released ones, as far as the release states them
(docs/zoo.md sets them beside the published configurations). The generators are not: the release trains VAR on
ImageFolder's tokens alone and a RAR on those of some single-scale tokenizers. Here multi-scale tokens are predicted
scale by scale, single-scale ones in raster order, by transformers of one shape.
"""

from __future__ import annotations

from dataclasses import replace

from imagefolder.config import TokenizerConfig
from imagefolder.zoo import OBJECTIVES, TOKENIZERS
from reproductions.recipe import Recipe
from reproductions.systems import SYSTEMS, generator_on

TITLE = "The authors' zoo of tokenizers"

REPORTED = {
    "MSVR10P2-4096": "ImageFolder (VAR-d17, MSVR10P2-4096)",
    "MSVR10P2-8192": "XQ-GAN MSVR10P2-8192 (tokenizer only)",
    "MSVR10P2-16384": "XQ-GAN MSVR10P2-16384 (tokenizer only)",
    "MSBR10P2-4096": "XQ-GAN MSBR10P2-4096 (tokenizer only)",
    "MSBR10P2-16384": "XQ-GAN MSBR10P2-16384 (tokenizer only)",
    "VP2-4096": "XQ-GAN VP2-4096 (tokenizer only)",
    "VP2-16384": "XQ-GAN VP2-16384 (tokenizer only)",
    "VQ-4096": "XQ-GAN V-4096 (tokenizer only)",
    "VQ-8192": "XQGAN-8192 + RAR (size not stated)",
    "RobustTok": "RobustTok + RAR-L",
}
"""the rows' names in reported/imagenet256.csv"""


def rows(scale: str, classes: int) -> list[Recipe]:
    """A row for every released tokenizer, for a data set of `classes` classes."""
    systems, recipes = SYSTEMS[scale], []
    for name, objective in OBJECTIVES.items():
        tokenizer = counterpart(name, scale)
        generator = systems.generator if len(tokenizer.scales) > 1 else systems.raster
        recipes.append(
            Recipe(
                name,
                name if scale == "full" else f"as {name}",
                _note(tokenizer),
                tokenizer,
                generator_on(generator, tokenizer, classes),
                loss=objective.loss,
                weight_decay=objective.weight_decay,
                reported=REPORTED[name],
                measures=("reconstruction", "perturbation", "generation"),
            )
        )
    return recipes


def counterpart(name: str, scale: str) -> TokenizerConfig:
    """What stands for a released tokenizer at a scale: itself, or a small one of its kind with a codebook smaller by as
    much as that of the scale's ImageFolder."""
    released, base = TOKENIZERS[name], SYSTEMS[scale].tokenizer
    if scale == "full":
        return released
    size = base.codebook_size * released.codebook_size // TOKENIZERS["MSVR10P2-4096"].codebook_size
    config = replace(
        base,
        quantizer=released.quantizer,
        branches=released.branches,
        scales=base.scales if len(released.scales) > 1 else SYSTEMS[scale].single_scale.scales,
        codebook_size=size,
        code_dim=base.code_dim if released.quantizer == "vq" else size.bit_length() - 1,
        quantizer_dropout=released.quantizer_dropout,
        perturbed_images=released.perturbed_images,
    )
    if config.perturbed_images:
        depth = released.perturbation_depth * size // released.codebook_size
        return replace(config, perturbation_depth=depth, name=f"{scale}-{name}")
    scales = f"MS{'V' if config.quantizer == 'vq' else 'B'}R{len(config.scales)}" if len(config.scales) > 1 else "V"
    branches = f"P{config.branches}" if config.branches > 1 else "" if len(config.scales) > 1 else "Q"
    return replace(config, name=f"{scale}-{scales}{branches}-{size}")


def _note(config: TokenizerConfig) -> str:
    """A row in one line."""
    kind = "binary spherical codes" if config.quantizer == "bsq" else "learned codes"
    scales = f"{len(config.scales)} scales of residuals" if len(config.scales) > 1 else "a single scale"
    branches = f"{config.branches} branches, " if config.branches > 1 else ""
    perturbed = ", codes perturbed while training" if config.perturbed_images else ""
    return f"{branches}{scales}, {config.codebook_size} {kind}{perturbed}"


if __name__ == "__main__":
    from reproductions.runner import main  # here, because worker processes import this file and do not need it

    main("zoo", TITLE, rows)
