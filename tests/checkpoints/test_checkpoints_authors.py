"""The authors' files: names, locations, safety, conversion. The shapes are those recorded in tests/parity."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import unittest.mock
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import imagefolder
from imagefolder.checkpoints.__main__ import main
from imagefolder.checkpoints.authors import read_state, translate
from imagefolder.config import GeneratorConfig, TokenizerConfig
from imagefolder.loading import fitting_models
from imagefolder.zoo import TOKENIZERS

PARITY = Path(__file__).parent.parent / "parity"
SMALL = {"backbone": "vit_small_patch14_dinov2.lvd142m"}
# ViT-S to ViT-B: all sizes that depend on the width
WIDER = {384: 768, 1152: 2304, 1536: 3072}


def recorded_shapes(file: str) -> dict[str, list[int]]:
    return json.loads((PARITY / file).read_text())["state_dict"]


def filled(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return filled(recorded_shapes("tok_small_MSVR10P2-4096.json"))


@pytest.fixture(scope="module")
def generator_state() -> dict[str, Tensor]:
    return filled(recorded_shapes("ar_d4_small_MSVR10P2-4096.json"))


def load(path: Path, **overrides) -> imagefolder.Tokenizer:
    return imagefolder.load_tokenizer("MSVR10P2-4096", weights=path, **(SMALL | overrides))


def released_shapes(codebook: int) -> dict[str, list[int]]:
    """Names and shapes of the released ViT-B tokenizers, from the recorded ViT-S one."""
    shapes = {}
    for name, shape in recorded_shapes("tok_small_MSVR10P2-4096.json").items():
        if name == "decoder.to_pixel.model.weight":
            shapes[name] = [768, 768]
        elif name == "decoder.to_pixel.model.bias":
            shapes[name] = [768]
        elif name.endswith("embedding.weight"):
            shapes[name] = [codebook, 32]
        else:
            shapes[name] = [WIDER.get(size, size) for size in shape]
    return shapes


@pytest.mark.parametrize("codebook", [4096, 8192, 16384])
def test_released_tokenizers_match_the_authors_names_and_shapes(codebook):
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in released_shapes(codebook).items()}
    fitting = fitting_models(translate(state, TokenizerConfig), TokenizerConfig)
    assert fitting == [TOKENIZERS[f"MSVR10P2-{codebook}"]]


def test_a_released_tokenizer_loads_in_strict_mode(tmp_path):
    state = {name: torch.zeros(shape) for name, shape in released_shapes(4096).items()}
    state["encoder.lvl_embed.weight"] += 3
    torch.save({"model": {}, "ema": state}, tmp_path / "best_ckpt.pt")
    tokenizer = imagefolder.load_tokenizer("MSVR10P2-4096", weights=tmp_path / "best_ckpt.pt")
    assert tokenizer.encoder.vit.embed_dim == 768
    assert torch.equal(tokenizer.encoder.level_embed.weight, torch.full((3, 768), 3.0))


def test_ema_first_then_model_then_a_bare_state_dict(state, tmp_path):
    other = {name: value + 1 for name, value in state.items()}
    files = {
        "ema": {
            "model": other,
            "ema": state,
            "optimizer": {"state": {}},
            "steps": 11,
            "args": argparse.Namespace(a=[1]),
        },
        "model": {"model": state, "ema": None, "discriminator": None},
        "the whole file": state,
        "trainer.vae_local": {"trainer": {"var_wo_ddp": {"pos_start": torch.zeros(1)}, "vae_local": state}},
    }
    for place, document in files.items():
        torch.save(document, tmp_path / "file.pt")
        read = read_state(tmp_path / "file.pt", TokenizerConfig)
        assert read.place == place
        assert torch.equal(read.tensors["encoder.latent_tokens"], state["encoder.latent_tokens"])
    assert read_state(tmp_path / "file.pt", TokenizerConfig).steps is None


def test_every_weight_is_loaded(state, tmp_path):
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "a.safetensors")
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "parallel.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    loaded = [load(tmp_path / name) for name in ("a.pt", "a.safetensors", "parallel.pt", "old.pt")]
    for tokenizer in loaded:
        ours = dict(tokenizer.named_parameters())
        assert torch.equal(ours["encoder.vit.blocks.3.ls1.gamma"], state["encoder.model.blocks.3.ls1.gamma"])
        assert torch.equal(ours["post_quant_conv.weight"], state["post_quant_conv.weight"][:, :, 0, 0])
        assert torch.equal(ours["quantizer.branches.1.phis.3.bias"], state["quantizes.1.quant_resi.qresi_ls.3.bias"])
        assert torch.equal(ours["quantizer.branches.0.codebook.weight"], state["quantizes.0.embedding.weight"])
        assert torch.equal(ours["decoder.to_pixels.bias"], state["decoder.to_pixel.model.bias"])
        # As many parameters as the file has outside the tables and the teacher
        tables = ("lvl1LC", "ema_vocab_hit_SV")
        held = sum(v.numel() for n, v in state.items() if not n.endswith(tables) and not n.startswith("semantic_model"))
        assert sum(p.numel() for p in tokenizer.parameters()) == held


def test_names_of_all_phi_sharings_and_of_single_branches_translate(state):
    def ours(name: str) -> str:
        return next(iter(translate({name: torch.zeros(1)}, TokenizerConfig)))

    assert ours("quantizes.1.quant_resi.qresi_ls.2.weight") == "quantizer.branches.1.phis.2.weight"
    assert ours("quantizes.1.quant_resi.qresi.weight") == "quantizer.branches.1.phis.0.weight"
    assert ours("quantizes.0.quant_resi.9.weight") == "quantizer.branches.0.phis.9.weight"
    assert ours("quantize.embedding.weight") == "quantizer.branches.0.codebook.weight"


@pytest.mark.slow
def test_round_trip_through_the_native_format_is_bit_identical(state, tmp_path):
    torch.save({"ema": state, "steps": 5}, tmp_path / "authors.pt")
    command = [sys.executable, "-m", "imagefolder.checkpoints", "convert", tmp_path / "authors.pt", tmp_path / "native"]
    subprocess.run(command, check=True, timeout=300)
    about = json.loads((tmp_path / "native" / "config.json").read_text())
    assert about["converted_from"]["weights"] == "ema"
    assert about["converted_from"]["steps"] == 5
    direct, native = load(tmp_path / "authors.pt"), load(tmp_path / "native")
    for name, value in direct.state_dict().items():
        assert torch.equal(value, native.state_dict()[name]), name
    assert imagefolder.Tokenizer.from_pretrained(tmp_path / "native").config == native.config


def test_generator_files_contain_generator_and_tokenizer(state, generator_state, tmp_path):
    path = tmp_path / "ar-ckpt-last.pth"
    torch.save({"trainer": {"var_wo_ddp": generator_state, "vae_local": state}, "args": argparse.Namespace()}, path)
    generator = imagefolder.load_generator("VAR-d17-MSVR10P2-4096", tokenizer=load(path), weights=path, depth=4)
    ours = dict(generator.transformer.named_parameters())
    assert torch.equal(ours["layers.3.mlp.2.weight"], generator_state["blocks.3.ffn.fc2.weight"])
    assert torch.equal(ours["head_ada.bias"], generator_state["head_nm.ada_lin.1.bias"])
    tables = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")
    held = sum(value.numel() for name, value in generator_state.items() if not name.endswith(tables))
    assert sum(p.numel() for p in generator.transformer.parameters()) == held


def test_attention_without_normalisation_has_no_scales(generator_state, tmp_path):
    without = {name: value for name, value in generator_state.items() if "scale_mul" not in name}
    torch.save(without, tmp_path / "plain.pth")
    tokenizer = imagefolder.load_tokenizer("MSVR10P2-4096", **SMALL)
    arguments = {"tokenizer": tokenizer, "weights": tmp_path / "plain.pth", "depth": 4}
    imagefolder.load_generator("VAR-d17-MSVR10P2-4096", qk_norm=False, **arguments)
    with pytest.raises(imagefolder.InputError, match=r"4 keys do not match: missing layers\.0\.attn\.log_scale"):
        imagefolder.load_generator("VAR-d17-MSVR10P2-4096", **arguments)


def test_every_key_that_does_not_match_is_named(state, tmp_path):
    changed = dict(state)
    del changed["quant_conv.bias"], changed["encoder.model.norm.weight"]
    changed["extra.weight"] = torch.zeros(2)
    changed["decoder.mask_token"] = torch.zeros(1, 1, 7)
    torch.save(changed, tmp_path / "changed.pt")
    with pytest.raises(imagefolder.InputError) as caught:
        load(tmp_path / "changed.pt")
    for part in ("missing quant_conv.bias", "missing encoder.vit.norm.weight", "unexpected extra.weight"):
        assert part in str(caught.value)
    assert "decoder.mask_token has shape (1, 1, 7) instead of (1, 1, 384)" in str(caught.value)
    assert "changed.pt: 4 keys" in str(caught.value)


class Hostile:
    """Runs a command when loaded by an ordinary unpickler."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_hostile_files_are_refused_and_execute_nothing(state, tmp_path, how):
    path, target = tmp_path / "hostile.pt", tmp_path / "executed"
    document = {"ema": {"encoder.latent_tokens": state["encoder.latent_tokens"]}, "args": Hostile(target)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(document, protocol=2))
    else:
        torch.save(document, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(imagefolder.InputError, match=r"hostile\.pt: refused.*could execute code"):
        load(path)
    assert not target.exists()
    result = run("inspect", path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not target.exists()


def test_a_namespace_may_hold_plain_values_only(state, tmp_path):
    torch.save({"ema": state, "args": argparse.Namespace(a=Fraction(1, 2))}, tmp_path / "fraction.pt")
    with pytest.raises(imagefolder.InputError, match=r"fractions\.Fraction"):
        load(tmp_path / "fraction.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_files_that_are_not_checkpoints_are_refused(tmp_path, content):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(imagefolder.InputError, match=r"file\.pt: (cannot be read|refused)"):
        load(tmp_path / "file.pt")


def test_the_error_for_missing_weights_lists_what_was_found(tmp_path, generator_state):
    torch.save({"trainer": {"var_wo_ddp": generator_state}, "epoch": 1}, tmp_path / "ar.pth")
    with pytest.raises(imagefolder.InputError, match=r"contains no tokenizer weights \(found: trainer, epoch\)"):
        load(tmp_path / "ar.pth")


@pytest.mark.slow
def test_inspect_lists_what_fits_and_convert_asks_if_several_do(state, tmp_path):
    torch.save({"ema": state, "steps": 5}, tmp_path / "authors.pt")
    result = run("inspect", tmp_path / "authors.pt")
    assert "fits MSVR10P2-4096 on vit_small_patch14_dinov2.lvd142m" in result.stdout
    assert "(from 'ema', 5 steps)" in result.stdout
    plain = {
        name.replace("quantizes.0.", "quantize."): value
        for name, value in state.items()
        if "quant_resi" not in name and not name.startswith("quantizes.1.")
    }
    plain |= {
        "encoder.latent_tokens": torch.zeros(1, 256, 384),
        "encoder.lvl_embed.weight": torch.zeros(2, 384),
        "quant_conv.weight": torch.zeros(64, 384, 1, 1),
        "quant_conv.bias": torch.zeros(64),
        "quantize.embedding.weight": torch.zeros(4096, 64),
    }
    torch.save(plain, tmp_path / "plain.pt")
    result = run("convert", tmp_path / "plain.pt", tmp_path / "out")
    assert result.returncode == 2
    assert "fits VQ-4096 and RobustTok; choose one with --model" in result.stderr
    assert run("convert", tmp_path / "plain.pt", tmp_path / "out", "--model", "RobustTok").returncode == 0
    assert imagefolder.load_tokenizer("RobustTok", weights=tmp_path / "out", **SMALL).config.perturbed_images == 0.1


def test_a_generator_outside_the_zoo_is_not_converted(tmp_path, generator_state):
    torch.save({"trainer": {"var_wo_ddp": generator_state}}, tmp_path / "ar.pth")
    read = read_state(tmp_path / "ar.pth", GeneratorConfig)
    assert fitting_models(read.tensors, GeneratorConfig) == []
    result = run("convert", tmp_path / "ar.pth", tmp_path / "out")
    assert result.returncode == 2
    assert "fits no configuration of the zoo" in result.stderr


def run(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line, in this process because importing torch again takes seconds."""
    line = ["checkpoints", command, *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        unittest.mock.patch("sys.argv", line),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        main()
    return subprocess.CompletedProcess(line, end.value.code, out.getvalue(), err.getvalue())
