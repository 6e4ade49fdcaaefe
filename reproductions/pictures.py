"""The pictures of a row, beside its record: what was measured, and what its models make of a few images.

They are made when all metrics are known, from copies, and nothing here draws from a global random stream, so that they
change no number. A new one is a function that yields a `Sheet`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from imagefolder.data.images import samples_to_uint8, to_float, to_uint8
from imagefolder.evaluation.protocols import labels_of
from imagefolder.evaluation.proxy import proxy_extractor
from imagefolder.evaluation.results import Result
from imagefolder.files import write_atomically
from imagefolder.generator.sampling import arguments_of
from imagefolder.tokenizer.model import Tokenizer
from reproductions.models import Models
from reproductions.recipe import Measure
from reproductions.row import Row

COLUMNS = 10
RECONSTRUCTIONS = 20
ERROR_FACTOR = 3
GROWING = 5  # images that are shown scale by scale
PAIRS = 5  # of images that exchange a branch
GRID_SEED = 1000  # the same for all rows and runs; unlikely to be that of the samples beside it
GAP = 6  # pixels between blocks of rows

SAMPLES = "samples, classes in turn"
NEAREST = "of these samples, those nearest to a training image (sample left, training image right)"


@dataclass(frozen=True)
class Sheet:
    """Images side by side.

    Attributes:
        name: of the file, after that of the record.
        images: uint8 (N, 3, H, W), row by row.
        block: rows after which there is a gap; None: no gap.
    """

    name: str
    caption: str
    images: Tensor
    columns: int
    block: int | None = None


def measured_sheets(results: Mapping[Measure, Result], classes: int) -> Iterator[Sheet]:
    """What can be seen of images that were measured, whoever made them.

    Args:
        classes: of the data; samples show them side by side.
    """
    if (picture := _picture(results, "reconstruction")) is not None:
        yield _reconstructions(picture)
    if (picture := _picture(results, "generation")) is not None:
        yield Sheet("generation", SAMPLES, picture, min(classes, COLUMNS))
    for result in results.values():
        if result.nearest is not None:
            yield Sheet("nearest", NEAREST, result.nearest, COLUMNS)


def model_sheets(row: Row, models: Models, results: Mapping[Measure, Result]) -> Iterator[Sheet]:
    """What the models of a row make of a few images, and which samples fail. Called by rank 0 alone."""
    if (picture := _picture(results, "reconstruction")) is not None:
        originals, config = picture[0::2], models.tokenizer.config
        if len(config.scales) > 1:
            yield _scale_by_scale(models.tokenizer, originals[:GROWING])
        if config.branches == 2:
            yield _branch_swaps(models.tokenizer, originals[: 2 * PAIRS])
    if (picture := _picture(results, "generation")) is not None and not row.recipe.sampling:  # there are many such rows
        yield _class_grid(row, models)
        if not row.scale.published:  # whose extractor does not know the classes of the data
            yield _failures(row, picture)


def write_pictures(output: Path, record: str, sheets: Iterable[Sheet]) -> dict[str, str]:
    """Write sheets as PNGs; their paths relative to the output folder, by caption.

    Args:
        record: name of the record that they belong to.
    """
    pictures = {}
    for sheet in sheets:
        path = output / "pictures" / f"{record}-{sheet.name}.png"
        shown = _side_by_side(sheet)
        write_atomically(path, lambda temporary, shown=shown: save_image(shown, temporary, format="png"))
        pictures[sheet.caption] = str(path.relative_to(output))
    return pictures


def _side_by_side(sheet: Sheet) -> Tensor:
    """The images in their grid, black between them: float (3, H, W) in [0, 1]."""
    images = sheet.images.float() / 255
    blocks = images.split(sheet.columns * sheet.block if sheet.block else len(images))
    grids = [make_grid(block, nrow=sheet.columns, padding=1) for block in blocks]
    gap = grids[0].new_zeros(3, GAP, grids[0].shape[-1])
    return torch.cat([part for grid in grids for part in (gap, grid)][1:], dim=1)


def _picture(results: Mapping[Measure, Result], measure: Measure) -> Tensor | None:
    return results[measure].picture if measure in results else None


def _reconstructions(pairs: Tensor) -> Sheet:
    """Originals, reconstructions and errors, from uint8 (2 N, 3, H, W) with each original before its reconstruction."""
    originals, images = pairs[: 2 * RECONSTRUCTIONS : 2], pairs[1 : 2 * RECONSTRUCTIONS : 2]
    errors = ((originals.int() - images.int()).abs() * ERROR_FACTOR).clamp(max=255).to(torch.uint8)
    columns = min(COLUMNS, len(originals))
    whole = len(originals) // columns * columns
    rows = [side[:whole].unflatten(0, (-1, columns)) for side in (originals, images, errors)]
    caption = (
        "reconstructions of test images (original above, reconstruction in the middle, absolute error times "
        f"{ERROR_FACTOR} below)"
    )
    return Sheet("reconstruction", caption, torch.stack(rows, dim=1).flatten(0, 2), columns, block=3)


def _scale_by_scale(tokenizer: Tokenizer, originals: Tensor) -> Sheet:
    scales = tokenizer.config.scales
    steps = to_uint8(tokenizer.decode_progressively(tokenizer.encode(to_float(originals), check=False))).cpu()
    images = torch.cat([originals[None], steps]).transpose(0, 1).flatten(0, 1)
    caption = (
        f"test images scale by scale (original left, then decoded from the first 1 to {len(scales)} of the token maps "
        f"of sides {', '.join(map(str, scales))})"
    )
    return Sheet("scales", caption, images, 1 + len(scales))


def _branch_swaps(tokenizer: Tokenizer, originals: Tensor) -> Sheet:
    a, b = originals.chunk(2)
    of_a, of_b = (tokenizer.encode(to_float(side), check=False) for side in (a, b))
    tokens = (of_a, of_b, *tokenizer.swap_branches(of_a, of_b, -1))
    decoded = [to_uint8(tokenizer.decode(each, check=False)).cpu() for each in tokens]
    caption = (
        "test images A and B with a branch exchanged (from left: A, B, their reconstructions, branch 1 of A with "
        "branch 2 of B, branch 1 of B with branch 2 of A)"
    )
    return Sheet("swaps", caption, torch.stack([a, b, *decoded], dim=1).flatten(0, 1), 6)


def _class_grid(row: Row, models: Models) -> Sheet:
    assert models.generator is not None
    classes = min(row.dataset.classes, COLUMNS)
    labels = labels_of(torch.arange(classes).repeat_interleave(COLUMNS), row.splits, models.generator)
    settings, batch = arguments_of(row.sampling), row.sampling.batch_size
    images = models.generator.sample(labels, **settings, seed=GRID_SEED, batch_size=batch).images
    first = "all" if classes == row.dataset.classes else "the first"
    caption = f"class grid ({first} {classes} classes, one per row, drawn with seed {GRID_SEED} in every row and run)"
    return Sheet("classes", caption, samples_to_uint8(images).cpu(), COLUMNS)


def _failures(row: Row, samples: Tensor) -> Sheet:
    """The first samples, classes in turn, that the proxy extractor takes least and most for their class."""
    with torch.random.fork_rng(devices=[]):  # a network draws weights before its own are loaded
        extractor = proxy_extractor(row.extractor)
    labels = torch.arange(len(samples)) % row.dataset.classes
    certainty = extractor(samples).logits.softmax(-1).cpu().gather(1, labels[:, None])[:, 0]
    order, number = certainty.argsort(stable=True), min(COLUMNS, len(samples) // 2)
    shown = torch.cat([order[:number], order.flip(0)[:number]])
    caption = (
        f"failures beside successes (of these samples, the {number} that the proxy extractor is least sure are of "
        f"their class above, the {number} that it is surest of below)"
    )
    return Sheet("failures", caption, samples[shown], number, block=1)
