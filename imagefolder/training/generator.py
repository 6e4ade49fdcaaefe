"""Training of the generator on the tokens of a trained tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from imagefolder.checkpoints.native import save_checkpoint
from imagefolder.config import Execution, GeneratorConfig, TrainingConfig, to_dict
from imagefolder.data.images import to_float
from imagefolder.distributed import barrier, is_main, own_samples, world_size
from imagefolder.generator.model import Generator
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.training.loop import DEFAULT_EXECUTION, WHOLE, Piece, Task, adamw, fit, optimizer_step
from imagefolder.training.state import remove_state


class GeneratorTask(Task):
    """Cross-entropy of every token given all earlier blocks, the class dropped now and then.

    A batch holds tokens, or images (uint8), which are then encoded in every step anew.
    """

    def __init__(self, generator: Generator, training: TrainingConfig) -> None:
        self.model, self.training, self.config = generator.transformer, training, generator.config
        self.sequence = generator.transformer.sequence
        self.tokenizer = generator.tokenizer
        self.frozen, self.modules = [self.tokenizer], {}
        self.settings = {"generator": to_dict(generator.config), "tokenizer": to_dict(generator.tokenizer.config)}
        self.optimizers = [
            adamw(_decay_groups(self.model, training.weight_decay), training, training.learning_rate, 0.0)
        ]

    def step(
        self, batch: tuple[Tensor, Tensor], progress: float, accelerator: Accelerator, piece: Piece = WHOLE
    ) -> dict[str, Tensor]:
        tokens, labels = batch
        if tokens.ndim == 4:
            tokens = self.tokenizer.encode(to_float(tokens))
        # Drawn for the batch of all processes
        dropped = torch.rand(len(labels) * world_size(), generator=piece.generator) < self.config.class_dropout
        dropped = own_samples(dropped).to(labels.device, non_blocking=True)
        labels = labels.masked_fill(dropped, self.config.num_classes)
        with torch.no_grad():
            inputs = self.sequence.inputs(self.tokenizer.quantizer, tokens)
        with accelerator.autocast():
            logits = self.model(labels, inputs)
        # Position by position, as the logits lie in memory: the mean is the same and nothing is copied
        loss = F.cross_entropy(logits.transpose(1, 2).flatten(0, -2), tokens.mT.flatten())
        clip = self.training.clip
        optimizer_step(loss, self.optimizers[0], self.model.parameters(), clip, accelerator, piece)
        with torch.no_grad():
            accuracy = (logits.argmax(-1) == tokens).float().mean()
        return {"cross_entropy": loss.detach(), "accuracy": accuracy}


def train_generator(
    config: GeneratorConfig,
    training: TrainingConfig,
    tokenizer: Tokenizer,
    tokens: Dataset,
    folder: Path,
    seed: int,
    title: str,
    about: dict[str, Any],
    execution: Execution = DEFAULT_EXECUTION,
    evaluate: Callable[[Generator], float] | None = None,
) -> None:
    """Train a generator from scratch and write its EMA weights into `folder` (with `about` beside them).

    Args:
        about: JSON values; a saved state is continued only where they are the same (say, the tokenizer's sha256).
        tokens: fetched by (epoch, index) as batches of tokens int64 (B, P, L) and labels, or of uint8 images
            (B, 3, H, W) and labels.
        evaluate: of the generator with averaged weights, as in `fit`, which has the rest.
    """
    torch.manual_seed(seed)
    generator = Generator(config, tokenizer)
    task = GeneratorTask(generator, training)
    task.settings["about"] = about

    def evaluate_averaged(transformer: torch.nn.Module) -> float:
        trained, generator.transformer = generator.transformer, transformer
        try:
            return evaluate(generator.eval())
        finally:
            generator.transformer = trained

    judge = None if evaluate is None else evaluate_averaged
    averaged, summary = fit(task, training, tokens, folder, seed, title, execution, judge)
    if is_main():
        save_checkpoint(folder, averaged, config, **summary, **about)
    remove_state(folder)
    barrier()


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only: none on biases, 1-d tensors and embeddings."""
    plain, decayed = [], []
    for name, parameter in model.named_parameters():
        embedding = any(key in name for key in ("class_embed", "level_embed", "empty_embed", "position", "log_scale"))
        exempt = parameter.ndim < 2 or embedding
        (plain if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
