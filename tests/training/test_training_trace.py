"""What the optimisers of scale `full` do and when, against values written down by hand from docs/method.md."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from stepping import take_step
from torch import nn

from imagefolder.config import GeneratorConfig
from imagefolder.data.images import ArrayImages
from imagefolder.generator.transformer import Transformer
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import blank_teacher
from imagefolder.training.averages import Averages
from imagefolder.training.generator import _decay_groups
from imagefolder.training.schedule import adversarial_step, learning_rate_share
from imagefolder.training.tokenizer import TokenizerTask, new_tokenizer
from imagefolder.zoo import TOKENIZERS
from reproductions import zoo
from reproductions.recipe import loss_of, training_of
from reproductions.scales import SCALES
from reproductions.table2 import rows

EPOCH = 1251  # steps
FULL = SCALES["full"]
ROW = rows(SCALES["full"], 1000)[0]
BINARY = next(row for row in zoo.rows(SCALES["full"], 1000) if row.row == "MSBR10P2-4096")

TOKENIZER_RATES = {  # by epoch
    0: 1.0e-05,
    1: 2.399883e-04,
    2: 2.399531e-04,
    50: 2.121751e-04,
    100: 1.45e-04,
    150: 7.782486e-05,
    199: 5.001172e-05,
}
DISCRIMINATOR_RATES = {
    0: 1.0e-05,
    55: 1.0e-05,
    56: 1.0e-05,
    57: 2.075e-04,
    58: 4.05e-04,
    59: 6.025e-04,
    60: 7.985730e-04,
    128: 4.25e-04,
    199: 5.008924e-05,
}


@pytest.fixture
def task() -> TokenizerTask:
    """The training of scale `full` with a small tokenizer, without LPIPS and with a small network in place of DINO."""
    torch.manual_seed(0)
    config = replace(TOKENIZERS["mini-MSVR3P2-256"], depth=1)
    teacher = blank_teacher(config)
    loss = replace(loss_of(ROW, FULL), perceptual=0.0)
    model = new_tokenizer(config)
    return TokenizerTask(model, training_of(ROW, FULL), loss, teacher=teacher, features=teacher.vit)


def test_learning_rates_of_both_optimisers_by_epoch(task: TokenizerTask) -> None:
    for names, expected in (
        ("learning_rate", TOKENIZER_RATES),
        ("discriminator_learning_rate", DISCRIMINATOR_RATES),
    ):
        for epoch, rate in expected.items():
            for step in (epoch * EPOCH, epoch * EPOCH + 600, epoch * EPOCH + 1250):
                assert task.learning_rates(step)[names] == pytest.approx(rate, rel=1e-6), (names, epoch)


def test_learning_rates_of_the_generator() -> None:
    """2.4e-4 at its peak: from 0.5 % of it over 7 of 350 epochs, flat for a twentieth of the rest, to 1 %."""
    rates = {0: 1.2e-06, 5_838: 1.206e-04, 11_676: 2.4e-04, 40_281: 2.4e-04, 312_040: 1.212e-04, 583_799: 2.4e-06}
    training = FULL.generator_training
    for step, rate in rates.items():
        assert training.learning_rate * learning_rate_share(step, training) == pytest.approx(rate, rel=1e-3), step


def test_weight_decay_of_the_tokenizer_and_its_discriminator(task: TokenizerTask) -> None:
    tokenizer, discriminator = task.optimizers
    assert {group["weight_decay"] for group in tokenizer.param_groups} == {0.0}
    assert {group["weight_decay"] for group in discriminator.param_groups} == {5e-4}
    assert {group["betas"] for optimizer in task.optimizers for group in optimizer.param_groups} == {(0.9, 0.95)}
    assert (training_of(ROW, FULL).clip, training_of(BINARY, FULL).weight_decay) == (0.0, 5e-5)


def test_weight_decay_of_the_generator_by_parameter_name() -> None:
    with torch.device("meta"):
        model = Transformer(ROW.generator)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in _decay_groups(model, 0.05)}
    assert set(groups) == {0.0, 0.05}
    matrices = ("attn.qkv.weight", "attn.proj.weight", "mlp.0.weight", "mlp.2.weight", "ada.weight")
    outside = {"class_embed.weight", "input_embed.weight", "head_ada.weight", "head.weight"}
    assert groups[0.05] == outside | {f"layers.{layer}.{name}" for layer in range(17) for name in matrices}
    vectors = ("attn.q_bias", "attn.v_bias", "attn.log_scale", "attn.proj.bias", "mlp.0.bias", "mlp.2.bias", "ada.bias")
    free = {"start_position", "position_embed", "level_embed.weight", "input_embed.bias", "head_ada.bias", "head.bias"}
    assert groups[0.0] == free | {f"layers.{layer}.{name}" for layer in range(17) for name in vectors}


def test_averaged_weights_forget_at_the_same_rate_at_the_first_and_the_ten_thousandth_step() -> None:
    """1 - 0.9999^n of a weight that is 1 from the first step on, starting from 0."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    ema = Averages(model, training_of(ROW, FULL).ema)
    nn.init.ones_(model.weight)
    expected, found = {1: 1.0e-04, 2: 1.9999e-04, 100: 9.950666e-03, 10_000: 6.321390e-01}, {}
    for step in range(1, 10_001):
        ema.update()
        if step in expected:
            found[step] = float(ema.module.weight.detach())
    assert found == pytest.approx(expected, rel=1e-6)
    nn.init.zeros_(ema.module.weight)
    ema.update()
    assert float(ema.module.weight.detach()) == pytest.approx(1e-4)
    # The released generator is not averaged
    assert FULL.generator_training.ema == 0.0


def test_stochastic_depth_of_every_layer() -> None:
    with torch.device("meta"):
        tokenizer, generator = Tokenizer(ROW.tokenizer), Transformer(ROW.generator)
    for vit in (tokenizer.encoder.vit, tokenizer.decoder.vit):
        found = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]
        assert found == pytest.approx([0, 0.00909091, 0.01818182, 0.02727273, 0.03636364, 0.04545455, 0.05454545,
                                       0.06363636, 0.07272727, 0.08181818, 0.09090909, 0.1], rel=1e-5)  # fmt: skip
    found = [layer.drop_path.drop_prob for layer in generator.layers]
    assert (found[0], found[8], found[16]) == pytest.approx((0.0, 0.03541667, 0.07083333), rel=1e-5)
    assert found == sorted(found)


def test_the_adversarial_term_sets_in_at_epoch_56_and_lecam_follows_the_logits_before(
    task: TokenizerTask, train_digits: ArrayImages
) -> None:
    batch = train_digits.images[:8], train_digits.labels[:8]
    heads = copy.deepcopy({name: value for name, value in task.discriminator.named_parameters()})
    last_without = take_step(task, batch, number=70_055)
    assert "adversarial" not in last_without
    assert all(torch.equal(value, heads[name]) for name, value in task.discriminator.named_parameters())
    assert float(task.lecam.real) != 0 != float(task.lecam.fake)
    assert task.lecam.decay == 0.999
    assert {"adversarial", "adaptive_weight", "discriminator"} <= set(take_step(task, batch, number=70_056))
    assert any(not torch.equal(value, heads[name]) for name, value in task.discriminator.named_parameters())
    assert adversarial_step(training_of(BINARY, FULL), loss_of(BINARY, FULL)) == 80_064  # epoch 64


def test_the_gammas_start_where_the_released_command_sets_them() -> None:
    torch.manual_seed(0)
    config = replace(ROW.generator, depth=2, width=None, heads=None, drop_path=None)
    model = Transformer(GeneratorConfig(**{name: value for name, value in vars(config).items() if name != "name"}))
    width, std = config.width, (1 / (3 * config.width)) ** 0.5
    for layer in model.layers:
        gammas, rest = layer.ada.weight[: 2 * width], layer.ada.weight[2 * width :]
        assert float(gammas.std()) == pytest.approx(1e-4 * std, rel=0.05)
        assert float(rest.std()) == pytest.approx(0.5 * std, rel=0.05)
