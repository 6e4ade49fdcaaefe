"""System-level comparison (the paper's Table 2): the folded generator beside its baselines, on equal budgets.

python reproductions/table2.py                          # mini: digits, CPU, minutes
python reproductions/table2.py --data DIR               # small: an image folder, one GPU, hours
"""

from __future__ import annotations

from reproductions.recipe import Recipe, make

TITLE = "Table 2: system-level comparison"

# Zoo names per scale: product-quantized, one-branch and single-scale tokenizer, and the generators on them.
NAMES = {
    "mini": ("mini-MSVR3P2-256", "mini-MSVR3-256", "mini-VQ-256", "VAR-mini", "AR-mini-VQ-256"),
    "small": ("small-MSVR8P2-1024", "small-MSVR8-1024", "small-VQ-1024", "VAR-small", "AR-small-VQ-1024"),
}


def rows(scale: str, classes: int) -> list[Recipe]:
    """Rows of the table in its order, for a data set of `classes` classes."""
    product, one_branch, single_scale, generator, raster = NAMES[scale]
    bare = one_branch.split("-", 1)[1]
    folded = f"{generator}-{product.split('-', 1)[1]}"
    return [
        make(
            "imagefolder",
            "ImageFolder",
            "two branches, the last one regularised towards the teacher; both tokens of a position predicted at once",
            product,
            folded,
            classes,
            reported="ImageFolder (VAR-d17, MSVR10P2-4096)",
        ),
        make(
            "unfolded",
            "ImageFolder, unfolded",
            "the same tokenizer; within each scale the branches' tokens are predicted one after the other",
            product,
            f"{folded}-unfolded",
            classes,
        ),
        make(
            "var",
            "VAR (one branch)",
            "one branch without regularisation at the same number of positions, next-scale prediction",
            one_branch,
            f"{generator}-{bare}",
            classes,
            reported="VAR-d16 (paper)",
        ),
        make(
            "vq",
            "VQ, raster order",
            "single-scale vector quantizer and next-token prediction in raster order, as in VQGAN and LlamaGen",
            single_scale,
            raster,
            classes,
            reported="LlamaGen-L (256)",
        ),
    ]


if __name__ == "__main__":
    from reproductions.runner import main  # here, because worker processes import this file and do not need it

    main("table2", TITLE, rows)
