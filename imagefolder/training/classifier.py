"""Training of the two small frozen networks: the semantic teacher and the feature extractor of the proxy metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from imagefolder.data.images import Images, to_float
from imagefolder.data.order import ordered_batches, training_batches
from imagefolder.errors import DamagedFile
from imagefolder.files import file_sha256, read_json, write_atomically, write_json
from imagefolder.numerics import any_seed
from imagefolder.progress import Phase
from imagefolder.tensors import read_tensors

REMEDY = "; delete it, and the same command trains it again"


def train_classifier(
    features: nn.Module, head: nn.Linear, images: Images, *, steps: int, batch_size: int, seed: int, title: str
) -> None:
    """Train `head(features(images))` by cross-entropy with a one-cycle learning rate; `title` is shown meanwhile."""
    torch.manual_seed(any_seed(seed))
    model = nn.Sequential(features, head).train()
    device = head.weight.device
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    with Phase(title, steps) as phase:
        for step, (batch, labels) in enumerate(training_batches(images, batch_size, seed, 0, steps), 1):
            logits = model(to_float(batch.to(device)))
            loss = F.cross_entropy(logits, labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            phase.update(step, {"loss": loss.item()})
    model.eval()


@torch.no_grad()
def accuracy(features: nn.Module, head: nn.Linear, images: Images, *, batch_size: int = 100) -> float:
    """Share of images classified correctly, 0..1."""
    right = 0
    for batch, labels in ordered_batches(images, batch_size):
        logits = head(features(to_float(batch.to(head.weight.device))))
        right += int((logits.argmax(-1).cpu() == labels).sum())
    return right / len(images)


def save_classifier(path: Path, model: nn.Module) -> None:
    """Write the weights of a model to `path` (safetensors)."""
    state: dict[str, Tensor] = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(state, temporary))


def finish_classifier(path: Path, about: dict[str, object]) -> None:
    """Mark the weights at `path` as finished: write `about` (JSON values) and their sha256 as JSON beside them."""
    write_json(path.with_suffix(".json"), {**about, "sha256": file_sha256(path)})


def read_classifier(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Finished weights, and the document beside them.

    Raises:
        InputError: weights or document are missing or damaged, or do not belong together.
    """
    about = read_json(path.with_suffix(".json"), REMEDY)
    if not isinstance(about.get("sha256"), str):
        raise DamagedFile(f"{path.with_suffix('.json')}: has no sha256 of the weights{REMEDY}")
    return read_tensors(path, about["sha256"]), about
