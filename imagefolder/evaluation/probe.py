"""Linear probing: how well a linear classifier reads the class from a tokenizer's features.

The published script takes the features before quantization (after the 1x1 projection), averaged over positions; the
paper's table names the semantic branch. Both are measured, since the source of the printed accuracies is unknown.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagefolder.data.images import DataSplits, Images, to_float
from imagefolder.data.order import ordered_batches
from imagefolder.distributed import gather_objects, my_part
from imagefolder.errors import InputError
from imagefolder.evaluation.results import Measurement, Protocol, Result
from imagefolder.numerics import any_seed
from imagefolder.progress import Phase
from imagefolder.tokenizer.model import Tokenizer

Where = Literal["continuous", "quantized"]
RATE, WEIGHT_DECAY, EPOCHS = 1e-4, 1e-4, 10


class LinearProbe(nn.Module):
    """Features (B, C) to class logits: batch normalisation without affine parameters, one linear layer."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features))


@torch.no_grad()
def branch_features(tokenizer: Tokenizer, images: Tensor, where: Where, branch: int = -1) -> Tensor:
    """Features of one branch averaged over positions: images (B, 3, H, W) in [-1, 1] -> float32 (B, C).

    Args:
        where: "continuous", before quantization; "quantized", the quantized map.
        branch: the last is the semantic one.
    """
    latents = tokenizer.latents(images.to(tokenizer.device, tokenizer.quant_conv.weight.dtype)).float()
    if where == "quantized":
        quantizer = tokenizer.quantizer
        latents = quantizer.decode(quantizer.encode(latents)).unflatten(1, latents.shape[1:3])
    elif where != "continuous":
        raise InputError(f"probe features are 'continuous' or 'quantized', not {where!r}")
    return latents[:, branch].mean((2, 3))


def extract_features(
    tokenizer: Tokenizer, images: Images, where: Where, title: str, branch: int = -1
) -> tuple[Tensor, Tensor]:
    """Features (N, C) and labels (N,) of a split, without augmentation; each process extracts its part."""
    plain, parts, done = images.plain(), [], 0
    part = my_part(len(plain))
    with Phase(title, len(part)) as phase:
        for batch, labels in ordered_batches(plain, 100, part):
            parts.append(branch_features(tokenizer, to_float(batch), where, branch).cpu())
            done += len(labels)
            phase.update(done)
    return torch.cat([features for each in gather_objects(parts) for features in each]), images.labels


def train_probe(
    features: Tensor, labels: Tensor, classes: int, *, seed: int, epochs: int = EPOCHS, batch_size: int = 256
) -> LinearProbe:
    """Fit a probe by the published recipe: AdamW 1e-4, weight decay 1e-4.

    The learning rate is constant, as it is in the release.

    Args:
        features: float32 (N, C).
        labels: int64 (N,) in [0, classes).
    """
    generator = torch.Generator().manual_seed(any_seed(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(any_seed(seed))
        probe = LinearProbe(features.shape[1], classes)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(epochs):
        for index in torch.randperm(len(features), generator=generator).split(batch_size):
            if len(index) > 1:  # batch normalisation needs two
                loss = F.cross_entropy(probe(features[index]), labels[index])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return probe.eval()


@torch.no_grad()
def probe_accuracy(probe: LinearProbe, features: Tensor, labels: Tensor) -> float:
    """Share of features (N, C) classified correctly, 0..1."""
    return float((probe(features).argmax(-1) == labels).float().mean())


def evaluate_probe(
    tokenizer: Tokenizer,
    splits: DataSplits,
    *,
    seed: int,
    title: str,
    epochs: int = EPOCHS,
    batch_size: int = 256,
) -> Result:
    """Accuracy on the test images of probes of the last branch, trained on the training images without augmentation."""
    result = Result([])
    n, reference = len(splits.test), f"{splits.name}/test"
    for where in ("continuous", "quantized"):
        train, test = (
            extract_features(tokenizer, images, where, f"{title}, {where} {name} features")
            for images, name in ((splits.train, "training"), (splits.test, "test"))
        )
        probe = train_probe(*train, len(splits.classes), seed=seed, epochs=epochs, batch_size=batch_size)
        text = (
            f"share of test images whose class a linear classifier reads from the {where} features of the last branch "
            f"(mean over positions), trained for {epochs} epochs"
        )
        protocol = Protocol(
            f"linear probe accuracy ({where})", 2, text, reference, "imagefolder", None, None, higher_is_better=True
        )
        result.measurements.append(Measurement(protocol, probe_accuracy(probe, *test), n, n))
    return result
