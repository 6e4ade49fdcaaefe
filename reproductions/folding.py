"""Folded against unfolded at equal tokens: the efficiency claim, and what it costs or gains in quality.

python reproductions/folding.py --seeds 0 1 2

The paper's numbers for this comparison are not known; its claim is that folded tokens generate better than as many
unfolded ones.
"""

from __future__ import annotations

from dataclasses import replace

from reproductions.recipe import Recipe
from reproductions.systems import SYSTEMS, generator_on, variant

TITLE = "Folding at equal tokens"


def rows(scale: str, classes: int) -> list[Recipe]:
    """Rows of equal tokens, for a data set of `classes` classes."""
    systems = SYSTEMS[scale]
    two = systems.tokenizer
    one = variant(two, branches=1, scales=systems.equal)
    unfolded = replace(systems.generator, order="unfolded")
    return [
        Recipe(
            "folded",
            "Folded",
            "two branches, both tokens of a position predicted at once",
            two,
            generator_on(systems.generator, two, classes),
        ),
        Recipe(
            "unfolded",
            "Unfolded",
            "the same tokenizer; within each scale the branches' tokens are predicted one after the other",
            two,
            generator_on(unfolded, two, classes),
        ),
        Recipe(
            "one-branch",
            "One branch, as many tokens",
            f"one regularised branch with longer token maps (sides {', '.join(map(str, systems.equal))})",
            one,
            generator_on(systems.generator, one, classes),
        ),
    ]


if __name__ == "__main__":
    from reproductions.runner import main  # here, because worker processes import this file and do not need it

    main("folding", TITLE, rows)
