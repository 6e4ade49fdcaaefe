"""The authors' eight-step ablation, from the multi-scale baseline to the released model.

python reproductions/ablation.py --seeds 0 1 2 3 4

The paper leaves some choices open. Ours are: the training length (the released model's, or the scale's), the sampling
settings (the released ones), the discriminator of steps 1 to 6 (PatchGAN; step 7 has the released one on frozen
features: DINO at full, the semantic teacher at the other scales), and what "equilibrium enhancement" means (see step
8). The authors print 265 positions from step 3 on, which comes from an earlier last scale of 10 x 10; the released
models have 286.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from imagefolder.zoo import for_tokenizer, variant
from reproductions.options import run_script
from reproductions.recipe import Recipe, Table
from reproductions.scales import SCALES, Scale


@dataclass(frozen=True)
class AblationStep:
    """One row: what it changes relative to the row above."""

    label: str
    note: str
    tokenizer: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)


def steps(scale: Scale) -> list[AblationStep]:
    """The changes in their order."""
    return [
        AblationStep(
            "Multi-scale residual quantization",
            "the VAR baseline: one branch on the token maps of VAR, PatchGAN, no regularisation",
            {"branches": 1, "scales": scale.var_scales, "quantizer_dropout": 0.0, "semantic": "none"},
            {"discriminator": "patch", "lecam": 0.0},
        ),
        AblationStep(
            "+ quantizer dropout",
            "a tenth of the images keep only the first scales while training",
            {"quantizer_dropout": scale.tokenizer.quantizer_dropout},
        ),
        AblationStep("+ smaller K", "the last token maps are smaller", {"scales": scale.tokenizer.scales}),
        AblationStep(
            "+ product quantization, parallel decoding",
            "two branches whose tokens of a position are predicted at once",
            {"branches": scale.tokenizer.branches},
        ),
        AblationStep(
            "+ semantics on all branches", "the joint map is regularised towards the teacher", {"semantic": "all"}
        ),
        AblationStep("+ semantics on one branch", "only the last branch is regularised", {"semantic": "last"}),
        AblationStep(
            "+ stronger discriminator",
            "heads on frozen features instead of PatchGAN (as in the release; the document does not define it)",
            loss={"discriminator": "dino"},
        ),
        AblationStep(
            "+ equilibrium enhancement",
            "not described beyond its name: the released final configuration, which adds LeCAM regularisation to the "
            "discriminator; adaptive weight and late start of the adversarial term are in all rows",
            loss={"lecam": 0.001},
        ),
    ]


def rows(scale: Scale, classes: int) -> list[Recipe]:
    """Rows of the table in its order, for a data set of `classes` classes."""
    tokenizer, generator, loss = scale.tokenizer, scale.generator, {}
    recipes = []
    for number, step in enumerate(steps(scale), 1):
        tokenizer, loss = variant(tokenizer, **step.tokenizer), loss | step.loss
        recipes.append(
            Recipe(
                f"step{number}",
                f"{number}. {step.label}",
                step.note,
                tokenizer,
                for_tokenizer(generator, tokenizer, num_classes=classes),
                loss=loss,
                reported=f"ImageFolder ablation A{number}",
                measures=("reconstruction", "probe", "generation"),
            )
        )
    return recipes


# At mini every row has a discriminator (a narrow one), at a lower budget: eight rows in about ten minutes a seed.
_MINI = SCALES["mini"]
MINI = replace(
    _MINI,
    tokenizer_training=replace(_MINI.tokenizer_training, steps=700),
    generator_training=replace(_MINI.generator_training, steps=400),
    loss=replace(_MINI.loss, adversarial=0.1, patch_width=16, patch_layers=2),
)
# At laptop, too, but at the budget of the scale.
_LAPTOP = SCALES["laptop"]
LAPTOP = replace(_LAPTOP, loss=replace(_LAPTOP.loss, adversarial=0.1, patch_width=16, patch_layers=2))


TABLE = Table(
    "ablation",
    "Ablation: from the multi-scale baseline to ImageFolder",
    rows,
    SCALES | {"mini": MINI, "laptop": LAPTOP},
)


def main() -> None:
    run_script(TABLE)


if __name__ == "__main__":
    main()
