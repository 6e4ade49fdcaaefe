"""Learning rates and weight decay groups."""

from __future__ import annotations

import math

import pytest

from imagefolder.config import GeneratorConfig, TrainingConfig
from imagefolder.generator.transformer import Transformer
from imagefolder.training.generator import _decay_groups
from imagefolder.training.loop import learning_rate_share

COSINE = TrainingConfig(steps=1001, warmup=0.1, initial_rate=0.02, final_rate=0.1)
LINEAR = TrainingConfig(steps=1001, warmup=0.1, initial_rate=0.02, final_rate=0.1, schedule="linear")
WARM = 100.1  # steps of warm-up of both
LAST = 1000


@pytest.mark.parametrize("config", [COSINE, LINEAR], ids=["cosine", "linear"])
def test_warm_up_rises_linearly_from_the_initial_rate(config: TrainingConfig) -> None:
    assert learning_rate_share(0, config) == pytest.approx(0.02)
    assert learning_rate_share(50, config) == pytest.approx(0.02 + 0.98 * 50 / WARM)
    assert learning_rate_share(100, config) == pytest.approx(1, abs=2e-3)
    assert learning_rate_share(101, config) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("config", [COSINE, LINEAR], ids=["cosine", "linear"])
def test_last_step_has_the_final_rate(config: TrainingConfig) -> None:
    assert learning_rate_share(LAST, config) == pytest.approx(0.1)


def test_rates_never_rise_after_the_warm_up() -> None:
    for config in (COSINE, LINEAR):
        rates = [learning_rate_share(step, config) for step in range(101, 1001)]
        assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("step", [325, 550, 775])
def test_cosine_at_known_points(step: int) -> None:
    done = (step - WARM) / (LAST - WARM)
    assert learning_rate_share(step, COSINE) == pytest.approx(0.1 + 0.9 * math.cos(math.pi / 2 * done) ** 2)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert learning_rate_share(550, COSINE) == pytest.approx(0.55, abs=1e-3)


def test_linear_is_flat_for_a_twentieth_and_then_a_line() -> None:
    flat = WARM + 0.05 * (LAST - WARM)  # 145.1
    assert learning_rate_share(145, LINEAR) == 1
    assert learning_rate_share(146, LINEAR) < 1
    for step in (200, 600, 900):
        assert learning_rate_share(step, LINEAR) == pytest.approx(1 - 0.9 * (step - flat) / (LAST - flat))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 1.0])
def test_shortest_trainings_have_rates_between_zero_and_the_peak(steps: int, warmup: float) -> None:
    config = TrainingConfig(steps=steps, warmup=warmup)
    assert all(0 < learning_rate_share(step, config) <= 1 for step in range(steps))


def test_only_matrices_that_are_no_embeddings_decay(generator_config: GeneratorConfig) -> None:
    model = Transformer(generator_config)
    decayed, plain = _decay_groups(model, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in (decayed, plain))
    assert len(decayed) + len(plain) == len(names)
    assert {"class_embed.weight", "level_embed.weight", "position_embed", "start_position"} <= plain
    assert {name for name in names.values() if name.endswith(("log_scale", "q_bias", "v_bias"))} <= plain
    assert {"input_embed.weight", "head.weight", "head_ada.weight", "layers.0.attn.qkv.weight"} <= decayed
