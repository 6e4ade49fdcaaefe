"""One, two and four branches at equal bits per position.

python reproductions/branches.py --seeds 0 1 2

The paper has an experiment with four branches, whose numbers are not known. The released 2 x 12 bits cannot be held by
one branch (16.8 million codes): at full, 16 bits are shared (1 x 65,536, 2 x 256, 4 x 16 codes).
"""

from __future__ import annotations

from reproductions.recipe import Recipe
from reproductions.systems import SYSTEMS, generator_on, variant

TITLE = "Branches at equal bits"


def rows(scale: str, classes: int) -> list[Recipe]:
    """Rows by number of branches, for a data set of `classes` classes."""
    systems = SYSTEMS[scale]
    recipes = []
    for branches in (1, 2, 4):
        size = 2 ** (systems.position_bits // branches)
        tokenizer = variant(systems.tokenizer, branches=branches, codebook_size=size)
        label = f"{branches} branch{'es' if branches > 1 else ''} of {size} codes"
        note = f"{systems.position_bits} bits per position; the last branch is regularised"
        generator = generator_on(systems.generator, tokenizer, classes)
        recipes.append(Recipe(f"branches{branches}", label, note, tokenizer, generator))
    return recipes


if __name__ == "__main__":
    from reproductions.runner import main  # here, because worker processes import this file and do not need it

    main("branches", TITLE, rows)
