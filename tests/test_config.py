"""Every field of every configuration is checked on construction."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest

from imagefolder.config import (
    Execution,
    GeneratorConfig,
    LossConfig,
    SamplingConfig,
    TokenizerConfig,
    TrainingConfig,
    to_dict,
)
from imagefolder.errors import InputError

CONFIGS = [
    TokenizerConfig(width=768, depth=12, heads=12),
    GeneratorConfig(),
    TrainingConfig(steps=10),
    Execution(),
    LossConfig(),
    SamplingConfig(),
]
FIELDS = [
    pytest.param(config, field.name, id=f"{type(config).__name__}.{field.name}")
    for config in CONFIGS
    for field in dataclasses.fields(config)
]
OPTIONAL = {"width", "depth", "heads", "drop_path"}  # None has a meaning in one of the models
FREE_TEXT = {"name", "backbone"}


def wrong_values(name: str, value: object) -> list[Any]:
    """What a field must reject that now has `value`: wrong types, numbers out of range, unknown words."""
    wrong: list[Any] = [{}, math.nan, object()] + ([] if name in OPTIONAL else [None])
    match value:
        case bool():
            return [*wrong, 0, 1, "true"]
        case int():
            return [*wrong, True, 1.0, 1.5, "7", [1], -1, 10**30, -(10**400)]
        case float():
            return [*wrong, True, "0.5", [0.5], -0.5, 1e305, math.inf, 10**400]
        case str():
            return [*wrong, 5, True, "", "a\nb", "\ud800", "x" * 1000] + ([] if name in FREE_TEXT else ["cosin"])
        case tuple():
            return [*wrong, 5, "11", (), ("1", "2"), (None, None), (math.nan, 1), (-1, 1), [1] * 1001, {1, 2}]
    raise AssertionError(f"{name}: no wrong values for {value!r}")


@pytest.mark.parametrize(("config", "name"), FIELDS)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(config: Any, name: str) -> None:
    for value in wrong_values(name, getattr(config, name)):
        with pytest.raises(InputError, match=rf"^{name}\b") as caught:
            dataclasses.replace(config, **{name: value})
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: TrainingConfig(10, schedule="cosin"), "schedule 'cosin': must be 'cosine' or 'linear'"),
        (lambda: TokenizerConfig(code_dim=-1), "code_dim -1: must be greater than or equal to 1"),
        (lambda: SamplingConfig(temperature=0), "temperature 0: must be greater than or equal to 0.000001"),
        (lambda: SamplingConfig(top_p=9), "top_p 9: must be less than or equal to 1"),
        (lambda: TrainingConfig(10, betas=(0.9, "x")), "betas[1] 'x': must be a valid number"),
        (lambda: TokenizerConfig(scales=(1, 2.5)), "scales[1] 2.5: must be a valid integer"),
        (lambda: GeneratorConfig(depth=0), "depth 0: must be greater than or equal to 1"),
    ],
)
def test_the_message_names_field_value_and_remedy(construct: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        construct()
    assert str(caught.value) == message


@pytest.mark.parametrize("arguments", [{}, {"steps": 1, "colour": "red"}])
def test_missing_and_unknown_fields_are_type_errors(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"steps|colour"):
        TrainingConfig(**arguments)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_configuration_is_a_frozen_dataclass(config: Any) -> None:
    values = to_dict(config)
    assert type(config)(**values) == type(config)(*values.values()) == pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, next(iter(values)), 1)


def test_equal_values_are_stored_alike() -> None:
    training = TrainingConfig(10, weight_decay=1, betas=[0, 0.5])
    assert isinstance(training.weight_decay, float)
    assert training.betas == (0.0, 0.5)
    assert all(isinstance(beta, float) for beta in training.betas)
    assert TokenizerConfig(scales=[1, 2, 3]) == TokenizerConfig(scales=(1, 2, 3))


def test_width_heads_and_drop_path_follow_the_depth_unless_given() -> None:
    config = GeneratorConfig(depth=2, heads=4)
    assert (config.width, config.heads, config.drop_path) == (128, 4, 0.1 * 2 / 24)
    assert GeneratorConfig(depth=2, width=None, heads=4, drop_path=None) == config
