"""pFID (arXiv 2503.08354): how much reconstructions suffer when codes are replaced by near ones."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from imagefolder.data.images import DataSplits, to_float, to_uint8
from imagefolder.data.order import ordered_batches
from imagefolder.evaluation.metrics import fidelity
from imagefolder.evaluation.protocols import Extractor, Measurement, all_images, proxy_protocol
from imagefolder.generator.sampling import uniforms
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.quantizers import perturb
from imagefolder.training.progress import Phase

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)  # alpha
DEPTHS = (200, 280, 360)  # delta, for a codebook of 16384; scaled linearly with the size of others
PUBLISHED_SIZE = 16384


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
    originals, n = all_images(splits.test), len(splits.test)
    tokens = torch.cat([tokenizer.encode(to_float(batch)) for batch, _ in ordered_batches(splits.test, 50)])
    settings = list(itertools.product(SHARES, depths_for(tokenizer.config.codebook_size)))
    distances = []
    with Phase(title, len(settings)) as phase:
        for share, depth in settings:
            images = []
            for indices in torch.arange(n).split(50):
                perturbed = perturb_tokens(tokenizer, tokens[indices], share, depth, seed, indices.tolist())
                images.append(to_uint8(tokenizer.decode(perturbed)).cpu())
            values = fidelity(torch.cat(images), originals, extractor.path, ("fid",))
            distances.append(values["frechet_inception_distance"])
            phase.update(len(distances))
    text = (
        f"mean Frechet distance of test images against reconstructions with a share of codes ({SHARES}) replaced by "
        f"one of the nearest ({depths_for(tokenizer.config.codebook_size)}), both 8-bit, same crop"
    )
    protocol = proxy_protocol("proxy-pFID", text, f"{splits.name}/test", extractor, higher=False)
    spread = torch.tensor(distances)
    return Measurement(protocol, float(spread.mean()), n, n, float(spread.std()))
