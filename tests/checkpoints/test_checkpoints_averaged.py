"""Averaged weights, however a file stores them, are loaded or refused by name, never silently replaced by raw ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import imagefolder
from imagefolder.checkpoints.authors import NoWeights, read_state
from imagefolder.config import GeneratorConfig, TokenizerConfig

NAME = "mini-MSVR3P2-256"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def averaged() -> State:
    torch.manual_seed(0)
    return {name: value.clone() for name, value in imagefolder.load_tokenizer(NAME).state_dict().items()}


@pytest.fixture(scope="module")
def raw(averaged: State) -> State:
    return {name: value + 1 for name, value in averaged.items()}


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def dotless(state: State) -> State:
    return {name.replace(".", ""): value for name, value in state.items()}


UNDERSTOOD: dict[str, Callable[[State, State], dict[str, Any]]] = {
    "plain": lambda ema, raw: {"ema": ema},
    "wrapped": lambda ema, raw: {"ema": {"module": ema, "decay": 0.9999}},
    "shadow": lambda ema, raw: {"ema": {"shadow": ema, "num_updates": 7}},
    "state dict": lambda ema, raw: {"ema": {"state_dict": ema}},
    "wrapped twice": lambda ema, raw: {"ema": {"ema": {"model": ema}, "step": torch.tensor(3)}},
    "with its decay": lambda ema, raw: {"ema": {**ema, "decay": torch.tensor(0.9), "num_updates": torch.tensor(1)}},
    "from data-parallel training": lambda ema, raw: {"ema": prefixed("module.", ema)},
    "swa_utils": lambda ema, raw: {"ema": {"n_averaged": torch.tensor(5), **prefixed("module.", ema)}},
    "with the raw ones": lambda ema, raw: {
        "ema": {"initted": torch.tensor(True), **prefixed("online_model.", raw), **prefixed("ema_model.", ema)}
    },
    "under a prefix": lambda ema, raw: {"ema": prefixed("shadow.", ema)},
    "without dots": lambda ema, raw: {"ema": dotless(ema)},
    "without dots, with counters": lambda ema, raw: {"ema": {**dotless(ema), "decay": torch.tensor(0.9)}},
    "under another key": lambda ema, raw: {"model_ema": ema},
    "another key, wrapped": lambda ema, raw: {"ema_state_dict": {"module": ema}},
}


@pytest.mark.parametrize("how", UNDERSTOOD)
@pytest.mark.parametrize("order", ["before", "after"])
def test_averaged_weights_take_precedence(tmp_path, averaged, raw, how, order):
    document = UNDERSTOOD[how](averaged, raw)
    document = {**document, "model": raw} if order == "before" else {"model": raw, **document}
    torch.save(document, tmp_path / "x.pt")
    loaded = imagefolder.load_tokenizer(NAME, weights=tmp_path / "x.pt").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in averaged.items())


def test_names_without_dots_are_explained_by_a_data_parallel_model(tmp_path, averaged, raw):
    torch.save({"ema": dotless(averaged), "model": prefixed("module.", raw)}, tmp_path / "x.pt")
    read = read_state(tmp_path / "x.pt", TokenizerConfig)
    assert read.place == "ema"
    assert torch.equal(read.tensors["quant_conv.weight"], averaged["quant_conv.weight"])


REFUSED: dict[str, Callable[[State], Any]] = {
    "nameless": lambda ema: {"decay": 0.9, "shadow_params": list(ema.values())},
    "names of something else": lambda ema: {f"w{i}": value for i, value in enumerate(ema.values())},
    "two sets": lambda ema: {"fast": ema, "slow": {**ema}},
    "some without dots": lambda ema: {**dotless(ema), "more": torch.zeros(2)},
}


@pytest.mark.parametrize("how", REFUSED)
def test_ambiguous_averaged_weights_are_refused_by_name(tmp_path, averaged, raw, how):
    torch.save({"ema": REFUSED[how](averaged), "model": raw}, tmp_path / "x.pt")
    with pytest.raises(imagefolder.InputError, match=r"x\.pt: 'ema' contains (several|averaged)") as caught:
        imagefolder.load_tokenizer(NAME, weights=tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "absent", [None, {}, 0.9999, {"decay": 0.9}, {"module": {}}, "ema.pt", {"step": torch.ones(1)}]
)
def test_raw_weights_are_loaded_if_nothing_was_averaged(tmp_path, raw, absent):
    torch.save({"ema": absent, "model": raw}, tmp_path / "x.pt")
    assert read_state(tmp_path / "x.pt", TokenizerConfig).place == "model"


def test_averages_of_other_models_are_ignored(tmp_path, raw):
    torch.save({"disc_ema": {"w": torch.zeros(3)}, "schema": {"a": torch.zeros(3)}, "model": raw}, tmp_path / "x.pt")
    assert read_state(tmp_path / "x.pt", TokenizerConfig).place == "model"


def test_a_generator_file_has_its_own_precedence(tmp_path, averaged):
    generator = imagefolder.load_generator("VAR-mini-MSVR3P2-256", imagefolder.load_tokenizer(NAME))
    state = generator.transformer.state_dict()
    other = {name: value + 1 for name, value in state.items()}
    torch.save({"trainer": {"var_wo_ddp": state, "vae_local": averaged}, "ema": other}, tmp_path / "x.pth")
    assert read_state(tmp_path / "x.pth", GeneratorConfig).place == "trainer.var_wo_ddp"
    # the averages are the generator's, not the tokenizer's
    assert read_state(tmp_path / "x.pth", TokenizerConfig).place == "trainer.vae_local"
    torch.save({"ema": {"module": other}, "model": state}, tmp_path / "y.pth")
    assert read_state(tmp_path / "y.pth", GeneratorConfig).place == "ema.module"


def test_a_small_file_that_repeats_a_list_astronomically_often_is_read_at_once(tmp_path: Path, raw: State) -> None:
    nested: list[Any] = [torch.zeros(2)]
    for _ in range(100):
        nested = [nested, nested]
    torch.save({"ema": nested, "model": raw}, tmp_path / "x.pt")
    with pytest.raises(imagefolder.InputError, match="'ema' contains"):
        read_state(tmp_path / "x.pt", TokenizerConfig)
    torch.save({"ema": nested}, tmp_path / "x.pt")
    with pytest.raises(NoWeights):
        read_state(tmp_path / "x.pt", TokenizerConfig)
