"""System-level comparison (the paper's Table 2): the folded generator next to its baselines, on equal budgets.

python reproductions/table2.py                                  # mini: digits, CPU, minutes
python reproductions/table2.py --data fashion                   # other images: a built-in data set, a folder, ...
python reproductions/table2.py --scale small --data DIR         # larger models: one GPU, hours
python reproductions/table2.py --scale full --data IMAGENET     # as in the paper: ImageNet, 8 GPUs, days
python reproductions/table2.py --scale full --data IMAGENET \
    --tokenizer-weights best_ckpt.pt --generator-weights ar-ckpt-last.pth
"""

from __future__ import annotations

from dataclasses import replace

from imagefolder.zoo import for_tokenizer, variant
from reproductions.options import run_script
from reproductions.recipe import Recipe, Table
from reproductions.scales import Scale


def rows(scale: Scale, classes: int) -> list[Recipe]:
    """Rows of the table in its order, for a data set of `classes` classes."""
    folded = scale.tokenizer
    one_branch = variant(folded, branches=1, semantic="none", quantizer_dropout=0.0)
    measures = ("reconstruction", "perturbation", "generation")
    return [
        Recipe(
            "imagefolder",
            "ImageFolder",
            "two branches, the last one regularised towards the teacher; both tokens of a position predicted at once",
            folded,
            for_tokenizer(scale.generator, folded, num_classes=classes),
            reported="ImageFolder (VAR-d17, MSVR10P2-4096)",
            measures=measures,
        ),
        Recipe(
            "unfolded",
            "ImageFolder, unfolded",
            "the same tokenizer; within each scale the branches' tokens are predicted one after the other",
            folded,
            for_tokenizer(replace(scale.generator, order="unfolded"), folded, num_classes=classes),
        ),
        Recipe(
            "var",
            "VAR (one branch)",
            "one branch without regularisation at the same number of positions, next-scale prediction",
            one_branch,
            for_tokenizer(scale.generator, one_branch, num_classes=classes),
            reported="VAR-d16 (paper)",
            measures=measures,
        ),
        Recipe(
            "vq",
            "VQ, raster order",
            "single-scale vector quantizer and next-token prediction in raster order, as in VQGAN and LlamaGen",
            scale.single_scale,
            for_tokenizer(scale.raster, scale.single_scale, num_classes=classes),
            reported="LlamaGen-L (256)",
            measures=measures,
        ),
    ]


TABLE = Table("table2", "Table 2: system-level comparison", rows)


def main() -> None:
    run_script(TABLE)


if __name__ == "__main__":
    main()
