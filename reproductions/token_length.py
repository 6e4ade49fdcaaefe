"""The paper's central question: reconstruction and generation against the length of the token sequence.

python reproductions/token_length.py --seeds 0 1 2

The lengths of the paper's own curve are not known. Taken here at full: 265 (printed in its tables), 286 (the released
models), 430 (asked for by a reviewer), 680 (VAR), all with two regularised branches.
"""

from __future__ import annotations

from reproductions.recipe import Recipe
from reproductions.systems import SYSTEMS, generator_on, variant

TITLE = "Token length: reconstruction and generation"


def rows(scale: str, classes: int) -> list[Recipe]:
    """Rows from short to long, for a data set of `classes` classes."""
    systems = SYSTEMS[scale]
    lengths = {
        "shorter": systems.shorter,
        "released": systems.tokenizer.scales,
        "longer": systems.longer,
        "longest": systems.long,
    }
    recipes = []
    for row, scales in lengths.items():
        tokenizer = variant(systems.tokenizer, scales=scales)
        generator = generator_on(systems.generator, tokenizer, classes)
        note = f"ImageFolder with token maps of sides {', '.join(map(str, scales))}"
        recipes.append(Recipe(row, f"{tokenizer.length} positions", note, tokenizer, generator))
    return recipes


if __name__ == "__main__":
    from reproductions.runner import main  # here, because worker processes import this file and do not need it

    main("token_length", TITLE, rows)
