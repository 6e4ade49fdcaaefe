"""Learning rates and weight decay groups."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from imagefolder.config import GeneratorConfig, TrainingConfig
from imagefolder.errors import InputError
from imagefolder.generator.transformer import Transformer
from imagefolder.training.generator import _decay_groups
from imagefolder.training.schedule import learning_rate_share

COSINE = TrainingConfig(steps=1001, warmup=0.1, initial_rate=0.02, final_rate=0.1)
LINEAR = TrainingConfig(steps=1001, warmup=0.1, initial_rate=0.02, final_rate=0.1, schedule="linear")
WARM = 100  # steps of warm-up of both
LAST = 1000


@pytest.mark.parametrize("config", [COSINE, LINEAR], ids=["cosine", "linear"])
def test_warm_up_rises_linearly_from_the_initial_rate(config: TrainingConfig) -> None:
    assert learning_rate_share(0, config) == pytest.approx(0.02)
    assert learning_rate_share(50, config) == pytest.approx(0.02 + 0.98 * 50 / WARM)
    assert learning_rate_share(99, config) == pytest.approx(0.02 + 0.98 * 0.99)


@pytest.mark.parametrize("config", [COSINE, LINEAR], ids=["cosine", "linear"])
def test_last_step_has_the_final_rate(config: TrainingConfig) -> None:
    assert learning_rate_share(LAST, config) == pytest.approx(0.1, abs=1e-5)


def test_rates_never_rise_after_the_warm_up() -> None:
    for config in (COSINE, LINEAR):
        rates = [learning_rate_share(step, config) for step in range(100, 1001)]
        assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("step", [325, 550, 775])
def test_cosine_at_known_points(step: int) -> None:
    """The cosine spans the whole training: the warm-up hides its beginning and does not shift it."""
    assert learning_rate_share(step, COSINE) == pytest.approx(0.1 + 0.9 * math.cos(math.pi / 2 * step / 1001) ** 2)


def test_rates_stay_the_same_within_an_epoch() -> None:
    config = replace(COSINE, epoch_steps=50)
    for step in (0, 49, 50, 51, 99, 550, 599, 1000):
        assert learning_rate_share(step, config) == learning_rate_share(step // 50 * 50, COSINE)
    with pytest.raises(InputError, match="epoch_steps"):
        replace(COSINE, epoch_steps=0)


def test_linear_is_flat_for_a_twentieth_and_then_a_line() -> None:
    flat = WARM + 0.05 * (LAST - WARM)
    assert learning_rate_share(145, LINEAR) == 1
    assert learning_rate_share(146, LINEAR) < 1
    for step in (200, 600, 900):
        assert learning_rate_share(step, LINEAR) == pytest.approx(1 - 0.9 * (step - flat) / (LAST - flat))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 1.0])
def test_shortest_trainings_have_rates_between_zero_and_the_peak(steps: int, warmup: float) -> None:
    config = TrainingConfig(steps=steps, warmup=warmup)
    assert all(0 < learning_rate_share(step, config) <= 1 for step in range(steps))


def test_matrices_and_the_class_embedding_decay(generator_config: GeneratorConfig) -> None:
    model = Transformer(generator_config)
    decayed, plain = _decay_groups(model, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in (decayed, plain))
    assert len(decayed) + len(plain) == len(names)
    assert {"level_embed.weight", "position_embed", "start_position"} <= plain
    assert {name for name in names.values() if name.endswith(("log_scale", "q_bias", "v_bias"))} <= plain
    assert {
        "class_embed.weight",
        "input_embed.weight",
        "head.weight",
        "head_ada.weight",
        "layers.0.attn.qkv.weight",
    } <= decayed
