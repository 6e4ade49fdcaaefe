"""What weight files may contain (tensor types, values, archives), and what the commands do with them."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import unittest.mock
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import imagefolder
from imagefolder.checkpoints.__main__ import main
from imagefolder.checkpoints.native import save_checkpoint
from imagefolder.files import file_sha256, read_json
from imagefolder.weights import pretrained

NAME, GENERATOR = "mini-MSVR3P2-256", "VAR-mini-MSVR3P2-256"
BIAS, SIZE = "quant_conv.bias", 16


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: value.clone() for name, value in imagefolder.load_tokenizer(NAME).state_dict().items()}


def load(path: Path) -> Tensor:
    return imagefolder.load_tokenizer(NAME, weights=path).state_dict()[BIAS]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_any_precision_are_converted(tmp_path, state, dtype, suffix):
    stored = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    (torch.save if suffix == ".pt" else save_file)(stored, tmp_path / f"x{suffix}")
    assert torch.equal(load(tmp_path / f"x{suffix}"), stored[BIAS].float())


def test_any_memory_layout_loads_the_same_weights(tmp_path, state):
    changed = {name: value.t().contiguous().t() if value.ndim == 2 else value for name, value in state.items()}
    changed[BIAS] = torch.cat([torch.zeros(5), state[BIAS], torch.zeros(500)])[5 : 5 + SIZE]
    torch.save(changed, tmp_path / "x.pt")
    loaded = imagefolder.load_tokenizer(NAME, weights=tmp_path / "x.pt").state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in newer versions of torch
        return torch.quantize_per_tensor(torch.zeros(SIZE), 0.1, 0, torch.qint8)


ODD: dict[str, Callable[[], Tensor]] = {
    "integers": lambda: torch.zeros(SIZE, dtype=torch.int64),
    "booleans": lambda: torch.zeros(SIZE, dtype=torch.bool),
    "complex numbers": lambda: torch.zeros(SIZE, dtype=torch.complex64),
    "eight bits": lambda: torch.zeros(SIZE).to(torch.float8_e4m3fn),
    "quantized": quantized,
    "sparse": lambda: torch.zeros(SIZE).to_sparse(),
    "without data": lambda: torch.zeros(SIZE, device="meta"),
    "one number repeated": lambda: torch.zeros(1).expand(SIZE),
    "astronomically large": lambda: torch.zeros(1).expand(10**9, 10**9),
    "NaN": lambda: torch.full((SIZE,), float("nan")),
    "infinite": lambda: torch.tensor([0.0] * (SIZE - 1) + [-float("inf")]),
    "beyond float32": lambda: torch.full((SIZE,), 1e300, dtype=torch.float64),
    "of another shape": lambda: torch.zeros(SIZE, 1),
}


@pytest.mark.parametrize("what", ODD)
def test_a_tensor_that_cannot_be_a_weight_is_refused_by_name(tmp_path, state, what):
    torch.save({"ema": {**state, BIAS: ODD[what]()}}, tmp_path / "x.pt")
    with pytest.raises(imagefolder.InputError, match=rf"x\.pt: .*{BIAS}") as caught:
        load(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_native_checkpoints_with_values_that_are_not_finite_are_neither_read_nor_written(tmp_path, state):
    tokenizer = imagefolder.load_tokenizer(NAME)
    tokenizer.quant_conv.bias.data[3] = float("nan")
    with pytest.raises(imagefolder.InputError, match=rf"{BIAS} hold NaN"):
        save_checkpoint(tmp_path / "new", tokenizer, tokenizer.config)
    tokenizer.quant_conv.bias.data[3] = 0
    for value in (float("nan"), float("inf"), object()):
        with pytest.raises(imagefolder.InputError, match="new is not written"):
            save_checkpoint(tmp_path / "new", tokenizer, tokenizer.config, best=value)
    assert not (tmp_path / "new").exists()
    save_file({**state, BIAS: torch.full((SIZE,), float("nan"))}, tmp_path / "x.safetensors")
    with pytest.raises(imagefolder.InputError, match=rf"x\.safetensors: {BIAS} hold NaN"):
        load(tmp_path / "x.safetensors")


def test_two_tensors_with_the_same_name_are_refused(tmp_path, state):
    torch.save({**state, f"module.{BIAS}": state[BIAS]}, tmp_path / "x.pt")
    with pytest.raises(imagefolder.InputError, match=f"{BIAS} under several names"):
        load(tmp_path / "x.pt")


def test_a_damaged_published_backbone_is_refused_by_file(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path))
    name, path = "vit_tiny_patch16_224", tmp_path / "vit_tiny_patch16_224.safetensors"
    weights = timm.create_model(name).state_dict()
    for damage in ("NaN", "cut short", "another model"):
        if damage == "NaN":
            save_file({**weights, "norm.bias": torch.full_like(weights["norm.bias"], float("nan"))}, path)
        elif damage == "cut short":
            os.truncate(path, 10_000)
        else:
            save_file({"x": torch.zeros(3)}, path)
        with pytest.raises(imagefolder.InputError, match=str(path)) as caught:
            pretrained(name)
        assert "\n" not in str(caught.value)


def make_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/data/0", bytes(50_000_000))


def make_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            member = tarfile.TarInfo(name)
            archive.addfile(member, io.BytesIO())


def make_truncated(path: Path) -> None:
    torch.save({"model": torch.zeros(1000)}, path)
    os.truncate(path, 2000)


MADE: dict[str, Callable[[Path], object]] = {
    "a bomb": make_bomb,
    "a tar": make_tar,
    "truncated": make_truncated,
    "empty": lambda path: path.touch(),
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "text": lambda path: path.write_text("weights"),
    "an empty zip": lambda path: zipfile.ZipFile(path, "w").close(),
    "a number": lambda path: torch.save(5, path),
    "a list": lambda path: torch.save([torch.zeros(3)], path),
    "keys that are not names": lambda path: torch.save({1: torch.zeros(3), (2, 3): torch.zeros(3)}, path),
}


@pytest.mark.parametrize("what", MADE)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_not_a_checkpoint_is_refused_in_one_line_without_a_warning(tmp_path, recwarn, what, suffix):
    MADE[what](path := tmp_path / f"x{suffix}")
    with pytest.raises(imagefolder.InputError, match=r"x(\.pt|\.safetensors|/config\.json)?") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert not recwarn.list


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="this torch always stores checksums")
def test_a_file_saved_without_checksums_is_loaded(tmp_path, state):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load(tmp_path / "x.pt"), state[BIAS])


def run(command: str, *arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with (
        unittest.mock.patch("sys.argv", ["checkpoints", command, *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        main()
    return end.value.code, out.getvalue(), err.getvalue()


def test_inspect_names_the_configuration_of_our_own_checkpoints(tmp_path, state):
    tokenizer = imagefolder.load_tokenizer(NAME)
    generator = imagefolder.load_generator(GENERATOR, tokenizer)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    generator.save_pretrained(tmp_path / "generator")
    torch.save(state, tmp_path / "tokenizer.pt")
    torch.save(generator.transformer.state_dict(), tmp_path / "generator.pt")
    for name, kind in ((NAME, "tokenizer"), (GENERATOR, "generator")):
        for place in (kind, f"{kind}/model.safetensors", f"{kind}.pt"):
            code, out, _ = run("inspect", tmp_path / place)
            assert code == 0
            line = next(line for line in out.splitlines() if line.startswith(f"{kind}: "))
            assert f"fits {name}" in line
    os.truncate(tmp_path / "tokenizer" / "model.safetensors", 5000)
    code, _, err = run("inspect", tmp_path / "tokenizer")
    assert (code, err.count("\n")) == (2, 1)
    assert "model.safetensors" in err


def test_convert_creates_its_folder_and_overwrites_nothing(tmp_path, state):
    torch.save({"ema": state}, tmp_path / "x.pt")
    imagefolder.load_tokenizer(NAME).save_pretrained(tmp_path / "mine")
    before = file_sha256(tmp_path / "mine" / "model.safetensors")
    for folder in (tmp_path / "mine", tmp_path / "x.pt"):
        code, _, err = run("convert", tmp_path / "x.pt", folder)
        assert (code, err.count("\n")) == (2, 1)
        assert f"{folder}: already exists" in err
    assert file_sha256(tmp_path / "mine" / "model.safetensors") == before
    assert run("convert", tmp_path / "mine", tmp_path / "new")[0] == 2
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new"):
        assert run("convert", tmp_path / "x.pt", folder)[0] == 0
        assert read_json(folder / "config.json")["converted_from"]["weights"] == "ema"
        assert torch.equal(load(folder), state[BIAS])
