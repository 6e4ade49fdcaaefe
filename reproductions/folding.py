"""Folded versus unfolded at an equal number of tokens: the efficiency claim, and its effect on quality.

python reproductions/folding.py --seeds 0 1 2 3 4

The paper's numbers for this comparison are not known; it claims that folded tokens give better samples than the same
number of unfolded ones.
"""

from __future__ import annotations

from dataclasses import replace

from imagefolder.zoo import for_tokenizer, variant
from reproductions.options import run_script
from reproductions.recipe import Recipe, Table
from reproductions.scales import Scale

# Token maps of one branch with as many tokens as ImageFolder's two
EQUAL_TOKENS = {
    "mini": (1, 1, 1, 3, 4),  # 28
    "laptop": (1, 2, 3, 6, 8),  # 114
    "small": (1, 1, 2, 3, 4, 6, 7, 16),  # 372
    "full": (1, 1, 3, 6, 10, 13, 16),  # 572
}


def rows(scale: Scale, classes: int) -> list[Recipe]:
    """Rows of equal tokens, for a data set of `classes` classes."""
    two = scale.tokenizer
    sides = EQUAL_TOKENS[scale.name]
    one = variant(two, branches=1, scales=sides)
    unfolded = replace(scale.generator, order="unfolded")
    return [
        Recipe(
            "folded",
            "Folded",
            "two branches, both tokens of a position predicted at once",
            two,
            for_tokenizer(scale.generator, two, num_classes=classes),
        ),
        Recipe(
            "unfolded",
            "Unfolded",
            "the same tokenizer; within each scale the branches' tokens are predicted one after the other",
            two,
            for_tokenizer(unfolded, two, num_classes=classes),
        ),
        Recipe(
            "one-branch",
            "One branch, as many tokens",
            f"one regularised branch with longer token maps (sides {', '.join(map(str, sides))})",
            one,
            for_tokenizer(scale.generator, one, num_classes=classes),
        ),
    ]


TABLE = Table("folding", "Folding at equal tokens", rows)


def main() -> None:
    run_script(TABLE)


if __name__ == "__main__":
    main()
