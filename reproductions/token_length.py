"""The paper's central question: reconstruction and generation against the length of the token sequence.

python reproductions/token_length.py --seeds 0 1 2 3 4

The lengths behind the paper's own curve are not known. Ours at full are 265 (printed in its tables), 286 (the released
models), 430 (requested by a reviewer) and 680 (VAR), all with two regularised branches.
"""

from __future__ import annotations

from imagefolder.zoo import for_tokenizer, variant
from reproductions.options import run_script
from reproductions.recipe import Recipe, Table
from reproductions.scales import Scale

# Token maps of a shorter and a longer sequence than ImageFolder's
LENGTHS = {
    "mini": ((1, 1, 2), (1, 2, 4)),  # 6 and 21 positions; ImageFolder: 14
    "laptop": ((1, 2, 5), (1, 2, 4, 8)),  # 30 and 85; ImageFolder: 57
    "small": ((1, 1, 2, 3, 4, 5, 7), (1, 1, 2, 3, 4, 5, 7, 9, 10)),  # 105 and 286; ImageFolder: 186
    # 265 is the length that the paper's tables print; 430; ImageFolder: 286
    "full": ((1, 1, 2, 3, 3, 4, 5, 6, 8, 10), (1, 1, 2, 3, 3, 4, 5, 6, 8, 11, 12)),
}


def rows(scale: Scale, classes: int) -> list[Recipe]:
    """Rows from short to long, for a data set of `classes` classes."""
    shorter, longer = LENGTHS[scale.name]
    lengths = {"shorter": shorter, "released": scale.tokenizer.scales, "longer": longer, "longest": scale.var_scales}
    recipes = []
    for row, scales in lengths.items():
        tokenizer = variant(scale.tokenizer, scales=scales)
        generator = for_tokenizer(scale.generator, tokenizer, num_classes=classes)
        note = f"ImageFolder with token maps of sides {', '.join(map(str, scales))}"
        recipes.append(Recipe(row, f"{tokenizer.length} positions", note, tokenizer, generator))
    return recipes


TABLE = Table("token_length", "Token length: reconstruction and generation", rows)


def main() -> None:
    run_script(TABLE)


if __name__ == "__main__":
    main()
