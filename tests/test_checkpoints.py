"""Native checkpoints, loading by name, and what happens on a mismatch."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace

import pytest
import torch

import imagefolder
from imagefolder.checkpoints.native import load_weights, save_checkpoint
from imagefolder.config import TRAINING_ONLY, GeneratorConfig, TokenizerConfig, config_hash, from_dict, to_dict
from imagefolder.files import read_json, write_atomically, write_json
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.zoo import GENERATORS, TOKENIZERS

TOKENIZER, GENERATOR = "mini-MSVR3P2-256", "VAR-mini-MSVR3P2-256"
PAIRS = [
    (TOKENIZER, GENERATOR),
    (TOKENIZER, "VAR-mini-MSVR3P2-256-unfolded"),
    ("mini-MSVR3-256", "VAR-mini-MSVR3-256"),
    ("mini-VQ-256", "AR-mini-VQ-256"),
]


@pytest.fixture
def saved(tmp_path):
    tokenizer = imagefolder.load_tokenizer(TOKENIZER)
    save_checkpoint(tmp_path / "tokenizer", tokenizer, tokenizer.config, steps=7)
    return tmp_path / "tokenizer", tokenizer


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_round_trip_is_bit_identical(saved, tmp_path):
    folder, tokenizer = saved
    loaded = imagefolder.load_tokenizer(TOKENIZER, weights=folder)
    assert_same_weights(tokenizer, loaded)
    assert_same_weights(tokenizer, imagefolder.load_tokenizer(TOKENIZER, weights=str(folder / "model.safetensors")))
    generator = imagefolder.load_generator(GENERATOR, tokenizer=loaded)
    save_checkpoint(tmp_path / "generator", generator.transformer, generator.config)
    again = imagefolder.load_generator(GENERATOR, tokenizer=loaded, weights=tmp_path / "generator")
    assert_same_weights(generator.transformer, again.transformer)


def test_what_is_stored_with_the_weights_is_returned(saved):
    folder, tokenizer = saved
    about = load_weights(folder, tokenizer, tokenizer.config)
    assert about["steps"] == 7
    assert from_dict(imagefolder.TokenizerConfig, about["config"], "x") == tokenizer.config


def test_another_configuration_is_refused_with_the_fields_that_differ(saved):
    with pytest.raises(
        imagefolder.InputError, match=r"codebook_size 256 \(asked for 64\).*code_dim 16 \(asked for 8\)"
    ):
        imagefolder.load_tokenizer(TOKENIZER, weights=saved[0], codebook_size=64, code_dim=8)


def test_the_name_is_not_part_of_the_configuration(saved):
    folder, tokenizer = saved
    model = Tokenizer(replace(tokenizer.config, name="mine"))
    load_weights(folder, model, model.config)
    assert_same_weights(model, tokenizer)


def test_training_only_fields_may_differ_unless_they_add_weights(saved):
    """Weights of the zoo's VQ fit the same shape without regularisation, and vice versa."""
    folder, tokenizer = saved
    changes = {"semantic": "none", "quantizer_dropout": 0.0, "drop_path": 0.3, "commitment_over_scales": "sum"}
    assert_same_weights(imagefolder.load_tokenizer(TOKENIZER, weights=folder, **changes), tokenizer)
    with pytest.raises(imagefolder.InputError, match=r"missing semantic_projection"):
        imagefolder.load_tokenizer(TOKENIZER, weights=folder, semantic="all")


def test_training_only_fields_exist():
    known = {field.name for kind in (TokenizerConfig, GeneratorConfig) for field in fields(kind)}
    assert known >= TRAINING_ONLY


def damage(folder, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "exchanged":
        other = imagefolder.load_tokenizer(TOKENIZER)
        save_checkpoint(folder.parent / "other", other, other.config)
        shutil.copy(folder.parent / "other" / "model.safetensors", weights)
    elif how == "no weights":
        weights.unlink()
    elif how == "no configuration":
        config.unlink()
    elif how == "broken configuration":
        config.write_text("{")
    elif how == "unknown field":
        about = read_json(config)
        about["config"]["colour"] = "red"
        write_json(config, about)
    elif how == "changed by hand":
        config.write_text(config.read_text().replace('"cosine": true', '"cosine": false'))
    elif how == "no hash":
        write_json(config, {name: value for name, value in read_json(config).items() if name != "weights_sha256"})
    elif how == "missing key":
        # same configuration and correct hash, but not all tensors
        tokenizer = imagefolder.load_tokenizer(TOKENIZER)
        del tokenizer.encoder.level_embed
        save_checkpoint(folder, tokenizer, tokenizer.config)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "model.safetensors: not readable"),
        ("exchanged", "model.safetensors: .*sha256 is not the one stored"),
        ("no weights", "model.safetensors: no such file"),
        ("no configuration", "config.json: no such file"),
        ("broken configuration", "config.json: not readable"),
        ("unknown field", "config.json: unknown TokenizerConfig field.*colour"),
        ("changed by hand", "config.json: .*checksum"),
        ("no hash", "config.json: contains no weights_sha256"),
        ("missing key", "missing encoder.level_embed.weight"),
    ],
)
def test_damaged_checkpoints_are_refused_by_name(saved, how, message):
    damage(saved[0], how)
    with pytest.raises(imagefolder.InputError, match=message):
        imagefolder.load_tokenizer(TOKENIZER, weights=saved[0])


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(imagefolder.InputError, match="no such file or folder"):
        imagefolder.load_tokenizer(TOKENIZER, weights=tmp_path / "nothing")


def test_unknown_names_and_fields_are_refused_with_a_hint():
    with pytest.raises(imagefolder.InputError, match="mini-MSVR3P2-256"):
        imagefolder.load_tokenizer("mini-MSVR3P2")
    with pytest.raises(imagefolder.InputError, match="no field colour"):
        imagefolder.load_tokenizer(TOKENIZER, colour="red")


@pytest.mark.parametrize(("tokenizer_name", "generator_name"), PAIRS)
def test_every_mini_pair_runs_end_to_end(tokenizer_name, generator_name):
    tokenizer = imagefolder.load_tokenizer(tokenizer_name)
    generator = imagefolder.load_generator(generator_name, tokenizer=tokenizer)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    tokens = tokenizer.encode(images)
    assert tokens.shape == (2, tokenizer.config.branches, tokenizer.config.length)
    assert tokenizer.decode(tokens).shape == images.shape
    out = generator.sample(torch.tensor([0, 9]))
    assert out.tokens.shape == tokens.shape
    assert out.images.shape == images.shape


def test_all_models_are_listed_once():
    names = imagefolder.list_models()
    assert len(set(names)) == len(names) == len(TOKENIZERS) + len(GENERATORS)
    assert {"MSVR10P2-4096", "VAR-d17-MSVR10P2-4096"} <= set(names)
    assert all(config.name == name for name, config in (TOKENIZERS | GENERATORS).items())


@pytest.mark.parametrize("name", imagefolder.list_models())
def test_configurations_survive_json_and_have_a_hash_of_every_field(name):
    config = (TOKENIZERS | GENERATORS)[name]
    values = to_dict(config)
    assert from_dict(type(config), json.loads(json.dumps(values)), "x") == config
    renamed = {config_hash(values | {field.name: "other"}) for field in fields(config)}
    assert config_hash(values) not in renamed
    assert len(renamed) == len(fields(config))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (TOKENIZER, {"image_size": 30}, "multiple of patch_size"),
        (TOKENIZER, {"scales": (3, 1)}, "must not shrink"),
        (TOKENIZER, {"scales": ()}, "positive"),
        (TOKENIZER, {"branches": 0}, "branches"),
        (TOKENIZER, {"quantizer": "other"}, "quantizer"),
        (TOKENIZER, {"quantizer": "bsq"}, r"2\^code_dim.*256 does not fit code_dim 16"),
        (TOKENIZER, {"shared_phi": -1}, "shared_phi"),
        (TOKENIZER, {"perturbed_images": 0.1}, "single-scale"),
        ("mini-VQ-256", {"perturbed_images": 0.1, "perturbation_depth": 257}, r"perturbation_depth 257.*1\.\.256"),
        (TOKENIZER, {"commitment_over_scales": "max"}, "commitment_over_scales"),
        (TOKENIZER, {"semantic": "first"}, "semantic"),
        (TOKENIZER, {"dropout_start": 4}, "dropout_start 4"),
        (TOKENIZER, {"backbone": "vit_unheard_of"}, "vit_unheard_of"),
    ],
)
def test_impossible_configurations_are_refused(name, overrides, message):
    with pytest.raises(imagefolder.InputError, match=message):
        imagefolder.load_tokenizer(name, **overrides)


def test_impossible_generators_are_refused():
    tokenizer = imagefolder.load_tokenizer(TOKENIZER)
    for overrides, message in (({"order": "raster"}, "single-scale"), ({"heads": 5}, "multiple of heads")):
        with pytest.raises(imagefolder.InputError, match=message):
            imagefolder.load_generator(GENERATOR, tokenizer=tokenizer, **overrides)


def test_a_failed_write_leaves_only_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"
