"""A step in pieces equals the step on the whole batch: the same losses and gradients for every term."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from stepping import take_step
from torch import Tensor, nn

from imagefolder.config import LossConfig, TokenizerConfig, TrainingConfig
from imagefolder.data.images import ArrayImages
from imagefolder.tokenizer.discriminator import DinoDiscriminator, images_normalised_together
from imagefolder.tokenizer.semantic import Teacher, blank_teacher
from imagefolder.training.task import adamw
from imagefolder.training.tokenizer import TokenizerTask, new_tokenizer
from imagefolder.zoo import TOKENIZERS

BATCH = 32
MINI = replace(TOKENIZERS["mini-MSVR3P2-256"], quantizer_dropout=0.3, dropout_start=1)
TRAINING = TrainingConfig(steps=100, batch_size=BATCH, learning_rate=1e-3)
LOSS = LossConfig(perceptual=0.0, adversarial=0.0, semantic=0.5, entropy=0.5)
PATCH = replace(LOSS, adversarial=0.5, discriminator="patch", lecam=0.5)
BINARY = {"quantizer": "bsq", "code_dim": 8}
CASES: dict[str, tuple[TokenizerConfig, LossConfig]] = {
    "dropout and semantics": (MINI, LOSS),
    "summed commitment": (replace(MINI, commitment_over_scales="sum"), LOSS),
    "semantics of all branches": (replace(MINI, semantic="all"), LOSS),
    "detail": (replace(MINI, detail=True), replace(LOSS, detail=0.5)),
    "binary": (replace(MINI, **BINARY), replace(LOSS, semantic_normalise=True, semantic_scale=(1.0, 100.0))),
    "two branches of one scale": (replace(MINI, scales=(4,)), LOSS),
    "perturbed": (
        replace(MINI, scales=(4,), branches=1, perturbed_images=0.4, perturbed_codes=0.8, perturbation_depth=9),
        LOSS,
    ),
    "adversarial": (MINI, replace(PATCH, adversarial_start=0.3)),
    "before the adversarial term": (MINI, replace(PATCH, adversarial_start=0.9)),
}


class Judge(nn.Sequential):
    """A discriminator that judges every image independently: no batch norm, no augmentation."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 4, 4), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 1))


def new_task(config: TokenizerConfig, loss: LossConfig) -> TokenizerTask:
    torch.manual_seed(0)
    vit = blank_teacher(config).vit
    detail = Teacher(vit, read="patches") if config.detail else None
    task = TokenizerTask(new_tokenizer(config), TRAINING, loss, teacher=Teacher(vit), detail_teacher=detail)
    if loss.adversarial:
        task.discriminator = Judge()
        task.optimizers[1] = adamw(
            task.discriminator.parameters(), TRAINING, rate=loss.discriminator_rate, weight_decay=0.0
        )
    return task


def step_in(task: TokenizerTask, images: Tensor, pieces: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Losses and gradients of step 50 of 100."""
    gradients: list[Tensor] = []
    for optimizer in task.optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.step = lambda parameters=parameters: gradients.extend(
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters
        )
    parts = [(part, torch.zeros(len(part))) for part in images.chunk(pieces)]
    return take_step(task, *parts, number=50, seed=1), gradients


@pytest.mark.parametrize("case", CASES)
def test_a_step_in_pieces_equals_the_step_on_the_whole_batch(case: str, train_digits: ArrayImages) -> None:
    images = train_digits.images[:BATCH]
    task = new_task(*CASES[case])
    results = {pieces: (*step_in(copy.deepcopy(task), images, pieces),) for pieces in (1, 2, 4, 8, 32)}
    losses, gradients = results.pop(1)
    assert sum(float(gradient.abs().sum()) > 0 for gradient in gradients) > 0.9 * len(gradients)
    for found, found_gradients in results.values():
        assert found.keys() == losses.keys()
        for name, value in losses.items():
            assert float(found[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
        for ours, expected in zip(found_gradients, gradients, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=2e-4 * float(expected.abs().max()) + 1e-9)


@pytest.mark.parametrize("case", ["dropout and semantics", "perturbed", "binary"])
def test_state_updated_by_a_step_does_not_depend_on_the_pieces(case: str, train_digits: ArrayImages) -> None:
    """The hit counts of the codes and the running means of LeCAM."""
    config, loss = CASES[case]
    task = new_task(config, replace(loss, adversarial=0.5, discriminator="patch", adversarial_start=0.3, lecam=0.5))
    left = []
    for pieces in (1, 4):
        one = copy.deepcopy(task)
        step_in(one, train_digits.images[:BATCH], pieces)
        left.append([branch.codebook.hits for branch in one.tokenizer.quantizer.branches])
        assert {int(branch.codebook.updates) for branch in one.tokenizer.quantizer.branches} == {1}
        left[-1] += [one.lecam.real, one.lecam.fake]
    for whole, in_pieces in zip(*left, strict=True):
        torch.testing.assert_close(whole, in_pieces)


def test_heads_on_a_frozen_network_normalise_pieces_of_eight_as_the_whole_batch(train_digits: ArrayImages) -> None:
    """The spectral norms of the heads' weights are iterated and agree once they have converged."""
    images = train_digits.images[:BATCH]
    loss = replace(LOSS, discriminator="dino", adversarial=0.5, adversarial_start=0.0, lecam=0.5)
    torch.manual_seed(0)
    teacher = blank_teacher(replace(MINI, depth=4))
    task = TokenizerTask(new_tokenizer(MINI), TRAINING, loss, teacher=teacher, features=teacher.vit)
    assert isinstance(task.discriminator, DinoDiscriminator)
    task.discriminator.augment = nn.Identity()
    with torch.no_grad():
        for _ in range(300):
            task.discriminator.train()(torch.zeros(1, 3, 32, 32))
    whole, _ = step_in(copy.deepcopy(task), images, 1)
    in_pieces, _ = step_in(copy.deepcopy(task), images, 4)
    for name, value in whole.items():
        assert float(in_pieces[name]) == pytest.approx(float(value), rel=1e-3), name


@pytest.mark.parametrize(
    ("kind", "processes", "micro_batch", "together"),
    [
        ("patch", 1, 0, 1024), ("patch", 8, 0, 1024), ("patch", 8, 32, 256), ("patch", 1, 32, 32),
        ("dino", 1, 0, 8), ("dino", 8, 0, 8), ("dino", 8, 32, 8), ("dino", 8, 4, 4), ("dino", 8, 1, 1),
    ],
)  # fmt: skip
def test_how_many_images_a_discriminator_normalises_together(
    kind: str, processes: int, micro_batch: int, together: int
) -> None:
    loss = LossConfig(discriminator=kind)
    assert images_normalised_together(loss, 1024, processes, micro_batch) == together
