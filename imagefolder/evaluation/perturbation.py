"""pFID (arXiv 2503.08354): how much reconstructions suffer when codes are replaced by near ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from imagefolder.data.images import DataSplits, to_float, to_uint8
from imagefolder.data.order import ordered_batches
from imagefolder.distributed import my_part
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.metrics import frechet
from imagefolder.evaluation.results import Measurement, Result, feature_protocol
from imagefolder.evaluation.statistics import Moments
from imagefolder.generator.sampling import uniforms
from imagefolder.progress import Phase
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.quantizers import Perturbation, perturb

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)  # alpha
DEPTHS = (200, 280, 360)  # delta, for a codebook of 16384; scaled linearly with the size of others
PUBLISHED_SIZE = 16384
BATCH = 50


def depths_for(codebook_size: int) -> tuple[int, ...]:
    """The published numbers of near codes, scaled to a codebook; at least 2, since the nearest code is one of them."""
    return tuple(max(2, round(depth * codebook_size / PUBLISHED_SIZE)) for depth in DEPTHS)


def perturb_tokens(near: Tensor, alpha: float, delta: int, seed: int, indices: list[int]) -> Tensor:
    """Tokens with a share alpha of every branch's codes redrawn; a function of image, index and seed.

    Args:
        near: int64 (B, P, L, at least `delta`), the codes nearest to what each token stands for, nearest first.

    Returns:
        int64 (B, P, L).
    """
    branches, length = near.shape[1:3]
    u = uniforms(seed, indices, 2 * branches, length).to(near.device).unflatten(1, (2, branches)).movedim(1, 0)
    return perturb(near[..., 0], near, Perturbation(alpha, delta, u))


def evaluate_perturbation(
    tokenizer: Tokenizer, splits: DataSplits, extractors: Sequence[Extractor], *, seed: int, title: str
) -> Result:
    """Mean over all shares and depths of the Frechet distance of test images against perturbed reconstructions.

    The spread is the standard deviation over the 15 settings, which are meant to differ.
    """
    test = splits.test.plain()
    n, part, done = len(test), my_part(len(test)), 0
    depths = depths_for(tokenizer.config.codebook_size)
    settings = list(itertools.product(SHARES, depths))
    extractors = [extractor for extractor in extractors if extractor.measures("pFID")]
    real, *generated = (
        [Moments(extractor.widths.pooled, extractor.device) for extractor in extractors]
        for _ in range(1 + len(settings))
    )

    def add(side: list[Moments], images: Tensor) -> None:
        for moments, extractor in zip(side, extractors, strict=True):
            moments.add(extractor(images).pooled)

    with Phase(title, len(part)) as phase:
        for originals, _ in ordered_batches(test, BATCH, part):
            indices = list(range(part.start + done, part.start + done + len(originals)))
            near = tokenizer.neighbours(to_float(originals), max(depths), check=False)
            for side, (share, depth) in zip(generated, settings, strict=True):
                tokens = perturb_tokens(near, share, depth, seed, indices)
                add(side, to_uint8(tokenizer.decode(tokens, check=False)))
            add(real, originals)
            done += len(originals)
            phase.update(done)
    for moments in (moments for side in (real, *generated) for moments in side):
        moments.over_processes()
    text = (
        f"mean Frechet distance of test images against reconstructions with a share of codes ({SHARES}) drawn from the "
        f"nearest to the encoder's output ({DEPTHS} of {PUBLISHED_SIZE}, in proportion to the codebook, the nearest "
        "of all included), both 8-bit, same crop"
    )
    result = Result([])
    for extractor, originals, *perturbed in zip(extractors, real, *generated, strict=True):
        distances = torch.tensor([frechet(moments.statistics(), originals.statistics()) for moments in perturbed])
        protocol = feature_protocol(f"{extractor.prefix}pFID", text, f"{splits.name}/test", extractor, False, version=2)
        result.measurements.append(Measurement(protocol, float(distances.mean()), n, n, float(distances.std())))
    return result
