"""What bfloat16 costs in quality: `python -m imagefolder.evaluation.precision TOKENIZER WEIGHTS [--data DIR]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

from tyro.conf import Positional

from imagefolder.cli import command_line


def main() -> NoReturn:
    """Entry point."""
    command_line(compare, prog="python -m imagefolder.evaluation.precision")


def compare(
    tokenizer: Annotated[str, Positional],
    weights: Annotated[str, Positional],
    *,
    data: Path | None = None,
    number: int = 200,
) -> None:
    """Print how far a tokenizer in bfloat16 is from the same in float32: equal tokens, and PSNR of its images; and
    on a CPU with fused operations, the tokens that are equal with and without them.

    Args:
        tokenizer: name of the configuration
        weights: checkpoint, as for load_tokenizer
        data: image folder (default: the embedded digits, for the mini models)
        number: of test images
    """
    import torch

    from imagefolder.data.digits import digits
    from imagefolder.data.folder import read_data
    from imagefolder.data.images import to_float, to_uint8
    from imagefolder.data.order import ordered_batches
    from imagefolder.evaluation.extractor import default_device
    from imagefolder.evaluation.pairs import psnr
    from imagefolder.fused import is_fused, plain
    from imagefolder.loading import load_tokenizer

    device = default_device()
    exact, low = (
        load_tokenizer(tokenizer, weights, device=device, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    side, scales = exact.config.image_size, exact.config.scales
    splits = digits(side) if data is None else read_data(data, side)
    test = splits.test.plain()
    parts, unchanged, fused = [], [], is_fused(low.quant_conv.weight)
    for batch, _ in ordered_batches(test, 16, range(min(number, len(test)))):
        tokens, other = (model.encode(to_float(batch)).cpu() for model in (exact, low))
        decoded = (exact.decode(tokens), low.decode(tokens), low.decode(other))
        if fused:
            with plain():
                unchanged.append(low.encode(to_float(batch)) == other)
        parts.append((batch, tokens == other, *(to_uint8(images).cpu() for images in decoded)))
    images, equal, ours, same_tokens, theirs = (torch.cat(part) for part in zip(*parts, strict=True))
    print(f"{tokenizer} on {len(images)} test images of {splits.name}, bfloat16 against float32 ({device})")
    by_scale = [part.float().mean((0, 2)) for part in equal.split([side * side for side in scales], dim=2)]
    for branch, shares in enumerate(torch.stack(by_scale, dim=1).tolist()):
        shown = "  ".join(f"{side}x{side} {share:.1%}" for side, share in zip(scales, shares, strict=True))
        print(f"equal tokens, branch {branch}: {shown}")
    if fused:
        print(f"equal tokens with fused and with torch's own operations: {torch.cat(unchanged).float().mean():.2%}")
    print(f"PSNR between the images decoded from the same tokens: {psnr(same_tokens, ours):.2f} dB")
    print(f"PSNR of reconstructions: {psnr(ours, images):.3f} dB in float32, {psnr(theirs, images):.3f} dB in bfloat16")


if __name__ == "__main__":
    main()
