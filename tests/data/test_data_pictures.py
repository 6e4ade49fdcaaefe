"""Single pictures: the pixels of a data folder, from anything that holds a picture, and back to files."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from imagefolder import InputError, read_image, save_image, to_pil
from imagefolder.data.images import to_uint8
from imagefolder.data.transforms import center_crop


@pytest.fixture
def photo(image_at, tmp_path):
    return image_at(tmp_path / "photo.jpg", 1, size=(90, 70))


def test_a_file_has_the_pixels_of_the_published_crop(photo):
    image = read_image(photo, size=32)
    assert (image.dtype, image.shape) == (torch.float32, (3, 32, 32))
    expected = center_crop(Image.open(photo).convert("RGB"), 32)
    assert torch.equal(image, torch.from_numpy(expected.copy()).permute(2, 0, 1).float() / 127.5 - 1)
    assert image.min() < 0 < image.max()


def test_all_that_holds_a_picture_gives_the_same(photo):
    expected = read_image(photo, size=24)
    array = np.asarray(Image.open(photo))
    for picture in (str(photo), photo.open("rb"), io.BytesIO(photo.read_bytes()), Image.open(photo), array):
        assert torch.equal(read_image(picture, size=24), expected)
    grey = array[..., 0]
    assert torch.equal(read_image(grey, 24), read_image(np.stack([grey] * 3, -1), 24))
    assert read_image(photo).shape == (3, 256, 256)


def test_transparency_is_put_over_white(tmp_path):
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    for picture in (clear, tmp_path / "clear.png"):
        assert torch.equal(read_image(picture, size=8), torch.ones(3, 8, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.jpg", r"none.jpg: not a readable file \(No such file"),
        (lambda folder: folder, r"not a readable file \(Is a directory"),
        (lambda folder: folder / "text.jpg", r"text.jpg: not a readable image"),
        (lambda folder: "a\0b", r"not a readable file"),
        (lambda folder: io.StringIO("text"), r"opened as text; open it with mode 'rb'"),
        (lambda folder: np.zeros((8, 8, 3)), r"must be uint8 \(H, W, 3\) or \(H, W\), not float64 \(8, 8, 3\)"),
        (lambda folder: np.zeros((3, 8, 8), np.uint8), r"not uint8 \(3, 8, 8\)"),
        (lambda folder: np.zeros((0, 8, 3), np.uint8), r"the numpy image has no pixels"),
        (lambda folder: np.zeros((8, 2000, 3), np.uint8), r"the numpy image: .*more than 100 times"),
        (lambda folder: Image.new("F", (8, 8), 7.0), r"the PIL image: .*outside 0 to 1"),
        (lambda folder: torch.zeros(3, 8, 8), r"a tensor .* needs no reading"),
        (lambda folder: 7, r"not of type int"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, make, message):
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(InputError, match=message):
        read_image(make(tmp_path), size=8)


@pytest.mark.parametrize("size", [0, -8, 8.0, True, 10**6])
def test_an_impossible_size_is_refused(photo, size):
    with pytest.raises(InputError, match="size must be"):
        read_image(photo, size=size)


def test_a_picture_survives_the_way_to_a_file_and_back(photo, tmp_path):
    image = read_image(photo, size=16)
    save_image(image, tmp_path / "new" / "copy.png")
    assert torch.equal(read_image(tmp_path / "new" / "copy.png", size=16), image)
    assert np.array_equal(np.asarray(to_pil(image)), to_uint8(image).permute(1, 2, 0).numpy())


def test_samples_are_saved_by_their_own_range(tmp_path):
    samples = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    save_image(samples, tmp_path / "sample.png", black=0)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sample.png")), (samples * 255).byte().permute(1, 2, 0))
    with pytest.warns(UserWarning, match=r"no value .* is below 0.*pass black=0") as caught:
        to_pil(samples)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.raises(InputError, match=r"with black=0 must lie in \[0, 1\], not -1 to"):
        save_image(samples * 2 - 1 - samples.min() * 2, tmp_path / "x.png", black=0)


def test_several_images_make_a_grid(tmp_path):
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 3, 4, 6)
    save_image(images, tmp_path / "grid.png", columns=3)
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert sheet.shape == (2 * 4 + 2, 3 * 6 + 2 * 2, 3)
    pixels = to_uint8(images)[:, 0, 0, 0].tolist()
    assert sheet[0, [0, 8, 16], 0].tolist() == pixels[:3]
    assert sheet[6, [0, 8], 0].tolist() == pixels[3:]
    assert (sheet[:, 6:8] == 255).all()
    assert (sheet[6:, 16:] == 255).all()
    save_image(images, tmp_path / "square.png")
    assert Image.open(tmp_path / "square.png").size == (3 * 6 + 4, 2 * 4 + 2)


@pytest.mark.parametrize(
    ("images", "path", "message"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "x.png", r"must be float tensors .*not uint8 \(3, 8, 8\)"),
        (torch.zeros(8, 8, 3), "x.png", r"not float32 \(8, 8, 3\)"),
        (np.zeros((3, 8, 8)), "x.png", "not ndarray"),
        (torch.full((3, 8, 8), 255.0), "x.png", r"must lie in \[-1, 1\], not 255 to 255"),
        (torch.full((3, 8, 8), torch.nan), "x.png", "not nan to nan"),
        (torch.zeros(3, 8, 8), "x.unknown", r"x.unknown: cannot be written \(unknown file extension"),
        (torch.zeros(3, 8, 8), "file/x.png", "x.png: cannot be written"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path, images, path, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=message):
        save_image(images, tmp_path / path)


def test_batches_and_ranges_are_checked_for_single_pictures():
    with pytest.raises(InputError, match=r"not a batch \(2, 3, 8, 8\): to_pil\(images\[0\]\)"):
        to_pil(torch.zeros(2, 3, 8, 8))
    with pytest.raises(InputError, match=r"black is -1 .* not 1"):
        to_pil(torch.zeros(3, 8, 8), black=1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="columns must be at least 1"):
        save_image(torch.zeros(2, 3, 8, 8), "x.png", columns=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_pil(torch.ones(3, 8, 8)).getpixel((0, 0)) == (255, 255, 255)
