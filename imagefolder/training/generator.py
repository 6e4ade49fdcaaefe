"""Training of the generator on the tokens of a trained tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from imagefolder.checkpoints.native import save_checkpoint
from imagefolder.config import GeneratorConfig, TrainingConfig
from imagefolder.data.images import Images, Key, to_float
from imagefolder.data.order import ordered_batches, training_batches
from imagefolder.generator.model import Generator
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.training.loop import STATE, Task, adamw, fit, optimizer_step
from imagefolder.training.progress import Phase


class TokenImages(Dataset):
    """Tokens int64 (N, P, L) and labels of encoded images, fetched like images."""

    workers = 0

    def __init__(self, tokens: Tensor, labels: Tensor) -> None:
        self.tokens, self.labels = tokens, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        index = torch.tensor([i for _, i in keys])
        return self.tokens[index], self.labels[index]


class GeneratorTask(Task):
    """Cross-entropy of every token given all earlier blocks, the class dropped now and then."""

    def __init__(self, generator: Generator, training: TrainingConfig) -> None:
        self.model, self.training, self.config = generator.transformer, training, generator.config
        self.sequence = generator.transformer.sequence
        self.quantizer = generator.tokenizer.quantizer
        self.frozen, self.modules = [self.quantizer], {}
        self.optimizers = [
            adamw(_decay_groups(self.model, training.weight_decay), training, training.learning_rate, 0.0)
        ]

    def step(self, batch: tuple[Tensor, Tensor], progress: float, accelerator: Accelerator) -> dict[str, Tensor]:
        tokens, labels = batch
        dropped = torch.rand(len(labels), device=labels.device) < self.config.class_dropout
        labels = labels.masked_fill(dropped, self.config.num_classes)
        with torch.no_grad():
            inputs = self.sequence.inputs(self.quantizer, tokens)
        with accelerator.autocast():
            logits = self.model(labels, inputs)
        # Position by position, as the logits lie in memory: the mean is the same and nothing is copied
        loss = F.cross_entropy(logits.transpose(1, 2).flatten(0, -2), tokens.mT.flatten())
        optimizer_step(loss, self.optimizers[0], self.model.parameters(), self.training.clip, accelerator)
        with torch.no_grad():
            accuracy = (logits.argmax(-1) == tokens).float().mean()
        return {"cross_entropy": loss.detach(), "accuracy": accuracy}


def encode_images(tokenizer: Tokenizer, images: Images, batch_size: int, title: str) -> TokenImages:
    """Tokens of all images of a split, without augmentation."""
    tokens, done = [], 0
    with Phase(title, len(images)) as phase:
        for batch, labels in ordered_batches(images.plain(), batch_size):
            tokens.append(tokenizer.encode(to_float(batch)).cpu())
            done += len(labels)
            phase.update(done)
    return TokenImages(torch.cat(tokens), images.labels)


def train_generator(
    config: GeneratorConfig,
    training: TrainingConfig,
    tokenizer: Tokenizer,
    tokens: TokenImages,
    folder: Path,
    seed: int,
    title: str,
    about: dict[str, Any],
) -> None:
    """Train a generator from scratch and write its EMA weights into `folder` (with `about` beside them)."""
    torch.manual_seed(seed)
    task = GeneratorTask(Generator(config, tokenizer), training)
    averaged, summary = fit(
        task,
        training,
        lambda start, stop: training_batches(tokens, training.batch_size, seed, start, stop),
        folder,
        seed,
        title,
    )
    save_checkpoint(folder, averaged, config, **summary, **about)
    (folder / STATE).unlink(missing_ok=True)


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only: none on biases, 1-d tensors and embeddings."""
    plain, decayed = [], []
    for name, parameter in model.named_parameters():
        embedding = any(key in name for key in ("class_embed", "level_embed", "empty_embed", "position", "log_scale"))
        exempt = parameter.ndim < 2 or embedding
        (plain if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
