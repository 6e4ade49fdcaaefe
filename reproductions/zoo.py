"""The authors' whole zoo: every released tokenizer, trained with its own recipe, and a generator on its tokens.

python reproductions/zoo.py                                                     # mini: a small counterpart of each
python reproductions/zoo.py --rows MSBR10P2-4096 RobustTok --seeds 0 1 2 3 4
python reproductions/zoo.py --scale full --data IMAGENET --rows VP2-16384       # as released

At full, the tokenizer, objective and optimiser of every row are the released ones, as far as the release states them
(docs/zoo.md compares them with the published configurations). The generators are not: the release trains VAR only on
ImageFolder's tokens, and a RAR on those of some single-scale tokenizers. Here multi-scale tokens are predicted scale by
scale and single-scale ones in raster order, by transformers of one shape.
"""

from __future__ import annotations

from imagefolder.config import TokenizerConfig
from imagefolder.kinds import QUANTIZERS
from imagefolder.zoo import OBJECTIVES, TOKENIZERS, for_tokenizer, variant
from reproductions.options import run_script
from reproductions.recipe import Recipe, Table
from reproductions.scales import Scale


def rows(scale: Scale, classes: int) -> list[Recipe]:
    """A row for every released tokenizer, for a data set of `classes` classes."""
    recipes = []
    for name, objective in OBJECTIVES.items():
        tokenizer = counterpart(name, scale)
        generator = scale.generator if len(tokenizer.scales) > 1 else scale.raster
        recipes.append(
            Recipe(
                name,
                name if tokenizer is TOKENIZERS[name] else f"as {name}",
                _note(tokenizer),
                tokenizer,
                for_tokenizer(generator, tokenizer, num_classes=classes),
                loss=objective.loss,
                weight_decay=objective.weight_decay,
                reported=name,
                measures=("reconstruction", "perturbation", "generation"),
            )
        )
    return recipes


def counterpart(name: str, scale: Scale) -> TokenizerConfig:
    """What stands for a released tokenizer at a scale: at full itself, else a small one of its kind, its codebook
    smaller by the same factor as that of the scale's ImageFolder."""
    released, base = TOKENIZERS[name], scale.tokenizer
    if base is TOKENIZERS["MSVR10P2-4096"]:
        return released
    size = base.codebook_size * released.codebook_size // TOKENIZERS["MSVR10P2-4096"].codebook_size
    return variant(
        base,
        quantizer=released.quantizer,
        branches=released.branches,
        scales=base.scales if len(released.scales) > 1 else scale.single_scale.scales,
        codebook_size=size,
        code_dim=base.code_dim if QUANTIZERS[released.quantizer].learned else size.bit_length() - 1,
        quantizer_dropout=released.quantizer_dropout,
        perturbed_images=released.perturbed_images,
        perturbation_depth=released.perturbation_depth * size // released.codebook_size
        if released.perturbed_images
        else base.perturbation_depth,
    )


def _note(config: TokenizerConfig) -> str:
    """A row in one line."""
    quantizer = QUANTIZERS[config.quantizer]
    kind = "learned" if quantizer.learned else quantizer.title
    scales = f"{len(config.scales)} scales of residuals" if len(config.scales) > 1 else "a single scale"
    branches = f"{config.branches} branches, " if config.branches > 1 else ""
    perturbed = ", codes perturbed while training" if config.perturbed_images else ""
    return f"{branches}{scales}, {config.codebook_size} {kind} codes{perturbed}"


TABLE = Table("zoo", "The authors' zoo of tokenizers", rows)


def main() -> None:
    run_script(TABLE)


if __name__ == "__main__":
    main()
