"""Training of the generator on the tokens of a trained tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from imagefolder.config import Execution, GeneratorConfig, TrainingConfig, to_dict
from imagefolder.data.images import BatchSource, to_float
from imagefolder.distributed import is_main, own_samples, world_size
from imagefolder.generator.model import Generator
from imagefolder.generator.sampling import Sampling
from imagefolder.numerics import any_seed
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.training.curve import Preview, Watch
from imagefolder.training.loop import DEFAULT_EXECUTION, finish, fit
from imagefolder.training.task import Batch, Step, TrainingTask, adamw, mean_over_pieces, update

T = TypeVar("T")


class GeneratorTask(TrainingTask):
    """Cross-entropy of every token given all earlier blocks, with the class dropped for some samples.

    A batch holds tokens, or images (uint8), which are then encoded in every step.
    """

    config: GeneratorConfig

    def __init__(self, generator: Generator, training: TrainingConfig) -> None:
        self.model, self.training, self.config = generator.transformer, training, generator.config
        self.sequence = generator.transformer.sequence
        self.tokenizer = generator.tokenizer
        self.frozen, self.modules = [self.tokenizer], {}
        self.settings = {"generator": to_dict(generator.config), "tokenizer": to_dict(generator.tokenizer.config)}
        groups = _decay_groups(self.model, training.weight_decay)
        self.optimizers = [adamw(groups, training, rate=training.learning_rate, weight_decay=0.0)]

    def step(self, pieces: list[Batch], step: Step) -> dict[str, Tensor]:
        whole = len(pieces[0][1]) * step.pieces * world_size()
        dropped = own_samples(torch.rand(whole, generator=step.generator) < self.config.class_dropout)
        parts = dropped.to(pieces[0][1].device, non_blocking=True).chunk(step.pieces)
        results = []
        for i, ((tokens, labels), unclassed) in enumerate(zip(pieces, parts, strict=True)):
            step.seed_noise(i)
            with step.accumulating(self.model, i):
                results.append(self._learn(tokens, labels.masked_fill(unclassed, self.config.num_classes), step))
        update(self.optimizers[0], step.accelerator, clip=self.training.clip)
        return mean_over_pieces(results)

    def _learn(self, tokens: Tensor, labels: Tensor, step: Step) -> dict[str, Tensor]:
        """Losses on a piece, and their backward pass."""
        if tokens.ndim == 4:
            tokens = self.tokenizer.encode(to_float(tokens), check=False)
        with torch.no_grad():
            inputs = self.sequence.inputs(self.tokenizer.quantizer, tokens)
        with step.accelerator.autocast():
            logits = self.model(labels, inputs)
        # Position by position, as the logits lie in memory: the mean is the same and nothing is copied
        loss = F.cross_entropy(logits.transpose(1, 2).flatten(0, -2), tokens.mT.flatten())
        step.accelerator.backward(loss / step.pieces)
        with torch.no_grad():
            # `max` takes a third of the time of `argmax`
            accuracy = (logits.max(-1).indices == tokens).float().mean()
        return {"cross_entropy": loss.detach(), "accuracy": accuracy}


def train_generator(
    config: GeneratorConfig,
    tokens: BatchSource,
    folder: Path,
    *,
    tokenizer: Tokenizer,
    training: TrainingConfig,
    seed: int,
    title: str,
    about: dict[str, Any],
    classes: Sequence[str] | None = None,
    sampling: Sampling | None = None,
    execution: Execution = DEFAULT_EXECUTION,
    evaluate: Callable[[Generator], float] | None = None,
    watch: Watch | None = None,
    preview: Preview | None = None,
) -> None:
    """Train a generator from scratch and write its EMA weights into `folder`, with `about` in the config beside them.

    What `Generator.about` says is stored there, too: its tokenizer, classes and sampling settings.

    Args:
        tokens: fetched by (epoch, index) as batches of tokens int64 (B, P, L) and labels, or of uint8 images
            (B, 3, H, W) and labels.
        about: JSON values; a saved state is resumed only if they are the same (for example the tokenizer's sha256).
        classes, sampling: of the generator; stored, and without effect on the training.
        evaluate, preview: called as in `fit`, with the generator.

    The other arguments and the errors are those of `fit`.
    """
    torch.manual_seed(any_seed(seed))
    generator = Generator(config, tokenizer, classes=classes, sampling=sampling)
    judge = None if evaluate is None else _of_transformer(evaluate, generator)
    if preview is not None:
        preview = Preview(preview.every, _of_transformer(preview.measure, generator))
    task = GeneratorTask(generator, training)
    task.settings["about"] = about
    options = {"execution": execution, "evaluate": judge, "watch": watch, "preview": preview}
    averaged, summary = fit(task, tokens, folder, seed=seed, title=title, **options)
    finish(task, folder, averaged, summary, generator.about() if is_main() else {})


def _of_transformer(evaluate: Callable[[Generator], T], generator: Generator) -> Callable[[Any], T]:
    """The evaluation of a transformer: that of the generator with it in place of its own."""

    def judge(transformer: Any) -> T:
        trained, generator.transformer = generator.transformer, transformer
        try:
            return evaluate(generator.eval())
        finally:
            generator.transformer = trained

    return judge


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: weight decay on matrices and the class embedding; none on biases, vectors and positions."""
    plain, decayed = [], []
    for name, parameter in model.named_parameters():
        embedding = any(key in name for key in ("level_embed", "empty_embed", "position", "log_scale"))
        exempt = parameter.ndim < 2 or embedding
        (plain if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
