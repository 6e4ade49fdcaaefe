"""Linear probing (the ablation's ACC): how well a linear classifier predicts the class from the tokenizer's features.

python reproductions/linear_probe.py --seeds 0 1 2 3 4

The paper does not say whether its probe uses the features before or after quantization, and the released script cannot
run on the two-branch model. Both are measured here, on the last branch, with the script's recipe. The rows are the
ablation's tokenizers from product quantization on; those already trained for it are reused.
"""

from __future__ import annotations

from dataclasses import replace

from reproductions import ablation
from reproductions.options import run_script
from reproductions.recipe import Recipe, Table
from reproductions.scales import Scale


def rows(scale: Scale, classes: int) -> list[Recipe]:
    """Tokenizers of the ablation's steps 4 to 8."""
    recipes = ablation.rows(scale, classes)[3:]
    return [replace(recipe, generator=None, measures=("reconstruction", "probe")) for recipe in recipes]


TABLE = Table("linear_probe", "Linear probing of the last branch", rows, ablation.TABLE.scales)


def main() -> None:
    run_script(TABLE)


if __name__ == "__main__":
    main()
