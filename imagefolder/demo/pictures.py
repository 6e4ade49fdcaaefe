"""What the demo shows, as sheets of pictures: one row per picture, one column per step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from imagefolder.data.images import to_uint8
from imagefolder.data.pictures import read_image
from imagefolder.demo.models import Model
from imagefolder.errors import InputError
from imagefolder.evaluation.pairs import psnr

TILE, GAP, TITLE = 96, 4, 18  # pixels: smallest side of a picture, between two, height of the titles


def growing(model: Model, label: int, *, number: int = 3, seed: int = 0) -> Iterator[Image.Image]:
    """Samples of a class, decoded from their first scale, then from the first two, and so on: a sheet after each.

    Raises:
        InputError: the model has no generator, or no such class.
    """
    if model.generator is None:
        raise InputError("this tokenizer has no generator; choose another model to see samples")
    tokens = model.generator.sample([label] * number, seed=seed).tokens
    steps = model.tokenizer.decode_progressively(tokens)
    titles = [f"{side} x {side}" for side in model.tokenizer.config.scales]
    for done in range(1, len(steps) + 1):
        shown = steps.clone()
        shown[done:] = 1  # white
        yield sheet(shown.transpose(0, 1), [*titles[:done], *[""] * (len(titles) - done)])


def reconstructed(model: Model, picture: Image.Image) -> Image.Image:
    """A picture, cropped as published, decoded from its first scales to all of them."""
    image = _read(model, picture)
    steps = model.tokenizer.decode_progressively(model.tokenizer.encode(image, check=False))
    quality = psnr(to_uint8(steps[-1]).cpu(), to_uint8(image).cpu())
    titles = ["picture", *(f"{side} x {side}" for side in model.tokenizer.config.scales)]
    titles[-1] += f" ({quality:.1f} dB)"
    return sheet(torch.cat([image.to(steps)[:, None], steps.transpose(0, 1)], dim=1), titles)


def swapped(model: Model, a: Image.Image, b: Image.Image, branch: int) -> Image.Image:
    """Two pictures, their reconstructions, and what becomes of these with a branch of the other picture.

    Raises:
        InputError: the tokenizer has one branch, or not this one.
    """
    tokenizer = model.tokenizer
    images = torch.cat([_read(model, a), _read(model, b)])
    tokens = tokenizer.encode(images, check=False)
    exchanged = torch.cat(tokenizer.swap_branches(tokens[:1], tokens[1:], branch))
    columns = [images, tokenizer.decode(tokens), tokenizer.decode(exchanged)]
    titles = ["picture", "reconstruction", f"other's branch {branch}"]
    return sheet(torch.stack([column.cpu() for column in columns], dim=1), titles)


def sheet(images: Tensor, titles: Sequence[str]) -> Image.Image:
    """One picture of many: float (rows, columns, 3, H, W) in [-1, 1], small ones enlarged, with titles above."""
    pixels = to_uint8(images).movedim(2, -1).cpu().numpy()
    rows, columns, side = pixels.shape[:3]
    factor = max(1, -(-TILE // side))
    step = side * factor + GAP
    result = Image.new("RGB", (columns * step - GAP, TITLE + rows * step - GAP), "white")
    draw = ImageDraw.Draw(result)
    for column, title in enumerate(titles):
        draw.text((column * step + 2, 2), title, fill="black", font_size=12)
        for row in range(rows):
            tile = Image.fromarray(pixels[row, column]).resize((side * factor,) * 2, Image.Resampling.NEAREST)
            result.paste(tile, (column * step, TITLE + row * step))
    return result


def _read(model: Model, picture: Image.Image) -> Tensor:
    return read_image(picture, size=model.tokenizer.config.image_size)[None]
