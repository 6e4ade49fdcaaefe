"""System-level comparison (the paper's Table 2): the folded generator beside its baselines, on equal budgets.

python reproductions/table2.py                                  # mini: digits, CPU, minutes
python reproductions/table2.py --data DIR                       # small: an image folder, one GPU, hours
python reproductions/table2.py --scale full --data IMAGENET     # the paper's: ImageNet, 8 GPUs, days
python reproductions/table2.py --scale full --data IMAGENET --tokenizer best_ckpt.pt --generator ar-ckpt-last.pth
"""

from __future__ import annotations

from dataclasses import replace

from reproductions.recipe import Recipe
from reproductions.systems import SYSTEMS, generator_on, variant

TITLE = "Table 2: system-level comparison"


def rows(scale: str, classes: int) -> list[Recipe]:
    """Rows of the table in its order, for a data set of `classes` classes."""
    systems = SYSTEMS[scale]
    folded = systems.tokenizer
    one_branch = variant(folded, branches=1, semantic="none", quantizer_dropout=0.0)
    measures = ("reconstruction", "perturbation", "generation")
    return [
        Recipe(
            "imagefolder",
            "ImageFolder",
            "two branches, the last one regularised towards the teacher; both tokens of a position predicted at once",
            folded,
            generator_on(systems.generator, folded, classes),
            reported="ImageFolder (VAR-d17, MSVR10P2-4096)",
            measures=measures,
        ),
        Recipe(
            "unfolded",
            "ImageFolder, unfolded",
            "the same tokenizer; within each scale the branches' tokens are predicted one after the other",
            folded,
            generator_on(replace(systems.generator, order="unfolded"), folded, classes),
        ),
        Recipe(
            "var",
            "VAR (one branch)",
            "one branch without regularisation at the same number of positions, next-scale prediction",
            one_branch,
            generator_on(systems.generator, one_branch, classes),
            reported="VAR-d16 (paper)",
            measures=measures,
        ),
        Recipe(
            "vq",
            "VQ, raster order",
            "single-scale vector quantizer and next-token prediction in raster order, as in VQGAN and LlamaGen",
            systems.single_scale,
            generator_on(systems.raster, systems.single_scale, classes),
            reported="LlamaGen-L (256)",
            measures=measures,
        ),
    ]


if __name__ == "__main__":
    from reproductions.runner import main  # here, because worker processes import this file and do not need it

    main("table2", TITLE, rows)
