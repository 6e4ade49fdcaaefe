"""Which tokens show a region of the image."""

from __future__ import annotations

import pytest
import torch

import imagefolder
from imagefolder.config import TokenizerConfig
from imagefolder.tokenizer.regions import positions_inside

CONFIG = TokenizerConfig(name="some", image_size=32, patch_size=8, scales=(1, 2, 4), dropout_start=1)


def maps(box: tuple[float, ...]) -> list[list[int]]:
    """Rows of 0 and 1 of every token map."""
    parts = positions_inside(box, CONFIG).int().split([1, 4, 16])
    return [row for part, side in zip(parts, CONFIG.scales, strict=True) for row in part.view(side, side).tolist()]


def test_cells_of_all_scales_in_a_box_are_found() -> None:
    assert maps((0, 0, 32, 32)) == [[1], [1, 1], [1, 1], *([[1, 1, 1, 1]] * 4)]
    # right, upper quarter
    assert maps((16, 0, 32, 16)) == [[0], [0, 1], [0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    # one cell of the finest map, and more than half of the one to its right
    assert maps((8, 24, 20.5, 32)) == [[0], [0, 0], [0, 0], *([[0, 0, 0, 0]] * 3), [0, 1, 1, 0]]


def test_exactly_half_of_a_cell_is_not_inside() -> None:
    assert maps((0, 0, 16, 32))[:3] == [[0], [1, 0], [1, 0]]
    assert maps((0, 0, 17, 32))[0] == [1]


def test_areas_agree_with_pixels_counted() -> None:
    """Scales that do not divide the image, against a mask of pixels."""
    config = imagefolder.load_tokenizer("mini-MSVR3P2-256").config
    box, fine = (3, 7, 25, 29), 3
    image = torch.zeros(32 * fine, 32 * fine)
    image[box[1] * fine : box[3] * fine, box[0] * fine : box[2] * fine] = 1
    shares = [torch.nn.functional.adaptive_avg_pool2d(image[None], side).flatten() for side in config.scales]
    assert torch.equal(positions_inside(box, config), torch.cat(shares) > 0.5)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 4, 5), r"box \(0, 0, 4, 5\) is too small for some: .* cells have 8 x 8 pixels"),
        ((0, 0, 33, 8), r"within 0\.\.32, not \(0, 0, 33, 8\)"),
        ((8, 0, 8, 8), r"box must be \(left, top, right, bottom\)"),
        ((float("nan"), 0, 8, 8), "box must be"),
        ((0, 0, 8), "box must be"),
        ("full", "box must be"),
        (4, "box must be"),
    ],
)
def test_wrong_boxes_are_refused(box: object, message: str) -> None:
    with pytest.raises(imagefolder.InputError, match=message):
        positions_inside(box, CONFIG)
