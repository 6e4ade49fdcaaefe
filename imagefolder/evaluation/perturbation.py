"""pFID (arXiv 2503.08354): how much reconstructions suffer when codes are replaced by near ones."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from imagefolder.data.images import DataSplits, to_float, to_uint8
from imagefolder.data.order import ordered_batches
from imagefolder.distributed import my_part
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.metrics import frechet
from imagefolder.evaluation.results import Measurement, feature_protocol
from imagefolder.evaluation.statistics import Statistics
from imagefolder.generator.sampling import uniforms
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.quantizers import perturb
from imagefolder.training.progress import Phase

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)  # alpha
DEPTHS = (200, 280, 360)  # delta, for a codebook of 16384; scaled linearly with the size of others
PUBLISHED_SIZE = 16384
BATCH = 50


def depths_for(codebook_size: int) -> tuple[int, ...]:
    """The published numbers of near codes, scaled to a codebook; at least 1."""
    return tuple(max(1, round(depth * codebook_size / PUBLISHED_SIZE)) for depth in DEPTHS)


def perturb_tokens(
    tokenizer: Tokenizer, tokens: Tensor, share: float, depth: int, seed: int, indices: list[int]
) -> Tensor:
    """Tokens (B, P, L) with a share of every branch's codes replaced; a function of each image's index and the seed."""
    branches = tokenizer.config.branches
    u = uniforms(seed, indices, 2 * branches, tokens.shape[-1]).to(tokens.device).unflatten(1, (2, branches))
    parts = [
        perturb(tokens[:, p], quantizer.codebook, share, depth, u[:, :, p].movedim(1, 0))
        for p, quantizer in enumerate(tokenizer.quantizer.branches)
    ]
    return torch.stack(parts, dim=1)


def evaluate_perturbation(
    tokenizer: Tokenizer, splits: DataSplits, extractor: Extractor, seed: int, title: str
) -> Measurement:
    """Mean over all shares and depths of the Frechet distance of test images against perturbed reconstructions.

    The spread is the standard deviation over the 15 settings: they are meant to differ.
    """
    test = splits.test.plain()
    n, part = len(test), my_part(len(test))
    originals, tokens = Statistics(extractor, n, part.start), []
    for batch, _ in ordered_batches(test, BATCH, part):
        originals.add(batch)
        tokens.append(tokenizer.encode(to_float(batch)).int().cpu())
    real = originals.over_processes().pooled.statistics()
    settings = list(itertools.product(SHARES, depths_for(tokenizer.config.codebook_size)))
    distances = []
    with Phase(title, len(settings)) as phase:
        for share, depth in settings:
            statistics = Statistics(extractor, n, part.start)
            for codes in tokens:
                start = part.start + statistics.pooled.count
                indices = list(range(start, start + len(codes)))
                perturbed = perturb_tokens(tokenizer, codes.long().to(tokenizer.device), share, depth, seed, indices)
                statistics.add(to_uint8(tokenizer.decode(perturbed)))
            distances.append(frechet(statistics.over_processes().pooled.statistics(), real))
            phase.update(len(distances))
    text = (
        f"mean Frechet distance of test images against reconstructions with a share of codes ({SHARES}) replaced by "
        f"one of the nearest ({depths_for(tokenizer.config.codebook_size)}), both 8-bit, same crop"
    )
    protocol = feature_protocol(f"{extractor.prefix}pFID", text, f"{splits.name}/test", extractor, higher=False)
    spread = torch.tensor(distances)
    return Measurement(protocol, float(spread.mean()), n, n, float(spread.std()))
