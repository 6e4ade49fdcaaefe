"""What bfloat16 costs in quality: `python -m imagefolder.evaluation.precision TOKENIZER WEIGHTS [--data DIR]`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from imagefolder.data.digits import digits
from imagefolder.data.folder import read_data
from imagefolder.data.images import to_float, to_uint8
from imagefolder.data.order import ordered_batches
from imagefolder.errors import InputError, one_line
from imagefolder.evaluation.metrics import psnr
from imagefolder.loading import load_tokenizer
from imagefolder.tokenizer.model import Tokenizer


@dataclass(frozen=True)
class Effect:
    """Two dtypes of one tokenizer on the same images.

    `agreement`: share of equal tokens, per branch and scale (P, S); `psnr_decode`: dB between the images decoded from
    the same tokens; `psnr_exact`, `psnr_low`: of the reconstructions against the originals.
    """

    images: int
    agreement: Tensor
    psnr_decode: float
    psnr_exact: float
    psnr_low: float


def compare_dtypes(exact: Tokenizer, low: Tokenizer, images: Tensor, batch_size: int = 16) -> Effect:
    """Compare a tokenizer in float32 with the same in another dtype on uint8 images (N, 3, H, W)."""
    parts: list[tuple[Tensor, ...]] = []
    for batch in images.split(batch_size):
        tokens, other = (tokenizer.encode(to_float(batch)).cpu() for tokenizer in (exact, low))
        decoded = (exact.decode(tokens), low.decode(tokens), low.decode(other))
        parts.append((tokens, other, *(to_uint8(image).cpu() for image in decoded)))
    tokens, other, ours, same_tokens, theirs = (torch.cat(part) for part in zip(*parts, strict=True))
    sizes = [side * side for side in exact.config.scales]
    agreement = torch.stack([part.float().mean((0, 2)) for part in (tokens == other).split(sizes, dim=2)], dim=1)
    return Effect(len(images), agreement, psnr(same_tokens, ours), psnr(ours, images), psnr(theirs, images))


def main(
    tokenizer: Annotated[str, tyro.conf.Positional],
    weights: Annotated[str, tyro.conf.Positional],
    data: Path | None = None,
    number: int = 200,
) -> int:
    """Token agreement and PSNR of bfloat16 against float32.

    Args:
        tokenizer: name of the configuration.
        weights: checkpoint, as for load_tokenizer.
        data: image folder (default: the embedded digits, for the mini models).
        number: test images.
    """
    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        exact, low = (load_tokenizer(tokenizer, weights, device, dtype) for dtype in (torch.float32, torch.bfloat16))
        side = exact.config.image_size
        splits = digits(side) if data is None else read_data(data, side)
        test = splits.test.plain()
        images = torch.cat([batch for batch, _ in ordered_batches(test, 50, range(min(number, len(test))))])
        effect = compare_dtypes(exact, low, images)
    except (InputError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"{tokenizer} on {effect.images} test images of {splits.name}, bfloat16 against float32 ({device})")
    for branch, row in enumerate(effect.agreement.tolist()):
        shares = "  ".join(f"{side}x{side} {share:.1%}" for side, share in zip(exact.config.scales, row, strict=True))
        print(f"equal tokens, branch {branch}: {shares}")
    print(f"images decoded from the same tokens: {effect.psnr_decode:.2f} dB apart")
    print(f"reconstruction PSNR: {effect.psnr_exact:.3f} dB in float32, {effect.psnr_low:.3f} dB in bfloat16")
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
