"""One, two and four branches at equal bits per position.

python reproductions/branches.py --seeds 0 1 2 3 4

The paper has an experiment with four branches, but its numbers are not known. One branch cannot hold the released
2 x 12 bits (16.8 million codes): at full, 16 bits are split (1 x 65,536, 2 x 256, 4 x 16 codes).
"""

from __future__ import annotations

from imagefolder.zoo import for_tokenizer, variant
from reproductions.options import run_script
from reproductions.recipe import Recipe, Table
from reproductions.scales import Scale

# Bits of a position, which 1, 2 and 4 branches share evenly
POSITION_BITS = {"mini": 12, "laptop": 12, "small": 16, "full": 16}


def rows(scale: Scale, classes: int) -> list[Recipe]:
    """Rows by number of branches, for a data set of `classes` classes."""
    bits, recipes = POSITION_BITS[scale.name], []
    for branches in (1, 2, 4):
        size = 2 ** (bits // branches)
        tokenizer = variant(scale.tokenizer, branches=branches, codebook_size=size)
        label = f"{branches} branch{'es' if branches > 1 else ''} of {size} codes"
        note = f"{bits} bits per position; the last branch is regularised"
        generator = for_tokenizer(scale.generator, tokenizer, num_classes=classes)
        recipes.append(Recipe(f"branches{branches}", label, note, tokenizer, generator))
    return recipes


TABLE = Table("branches", "Branches at equal bits", rows)


def main() -> None:
    run_script(TABLE)


if __name__ == "__main__":
    main()
