"""Untrusted configurations and weight files are read or refused in one line, quickly and in little memory."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import random
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import imagefolder
from imagefolder.checkpoints.authors import load_authors_state, read_state
from imagefolder.checkpoints.native import save_checkpoint
from imagefolder.config import (
    LATER,
    TRAINING_ONLY,
    Execution,
    GeneratorConfig,
    LossConfig,
    SamplingConfig,
    TokenizerConfig,
    TrainingConfig,
    from_dict,
    to_dict,
)
from imagefolder.environment import peak_memory_mib, reset_peak_memory
from imagefolder.errors import InputError
from imagefolder.files import file_sha256, read_json
from imagefolder.generator.transformer import Transformer
from imagefolder.tokenizer.model import Tokenizer

DOCUMENTS = 400  # mutated configuration documents
HEADERS = 60  # mutated headers of safetensors files
FLIPS = 60  # damaged safetensors files
TORCH_FILES = 250  # damaged torch files
SECONDS, MIB = 5.0, 300  # CPU time of one attempt; memory of all attempts of a test

CONFIGS: dict[type, Any] = {
    TokenizerConfig: TokenizerConfig(),
    GeneratorConfig: GeneratorConfig(),
    TrainingConfig: TrainingConfig(steps=10),
    LossConfig: LossConfig(),
    SamplingConfig: SamplingConfig(),
    Execution: Execution(),
}
ODD: list[Any] = [
    None, True, -1, 0, 1, 1.5, 10**12, -(10**400), 1e300, math.nan, -math.inf, "", "7", "a\nb", "\ud800", "x" * 10_000,
    [], [1.5], [True], [0], [10**9], list(range(500)), [[1]], [1] * 10_000, {}, {"a": 1}, "hf_hub:somebody/model",
    "local-dir:/etc", "/etc/passwd", "https://example.org/x", "../x",
]  # fmt: skip
TINY = TokenizerConfig(
    name="tiny",
    image_size=16,
    patch_size=8,
    backbone="vit_tiny_patch16_224",
    width=8,
    depth=1,
    heads=1,
    branches=1,
    scales=(1, 2),
    codebook_size=8,
    code_dim=4,
    dropout_start=1,
)
GENERATOR = GeneratorConfig(
    depth=1, width=8, heads=1, num_classes=3, branches=1, scales=(1, 2), codebook_size=8, code_dim=4
)


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No attempt uses the network, and together they take little memory."""

    def no_network(*arguments: object, **_: object) -> None:
        raise AssertionError(f"used the network: {arguments[:1]}")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    reset_peak_memory()
    before = peak_memory_mib()
    yield
    assert peak_memory_mib() - before < MIB


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a native checkpoint of a tiny tokenizer; do not change it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("native") / "tiny"
    save_checkpoint(folder, Tokenizer(TINY), TINY)
    return folder


def refusal(attempt: Callable[[], object]) -> str | None:
    """The reason for a refusal, None if there was none; other exceptions propagate."""
    clock, said = time.process_time(), None
    try:
        attempt()
    except InputError as error:
        said = str(error)
    assert time.process_time() - clock < SECONDS
    assert said is None or ("\n" not in said and len(said) < 10_000)
    return said


def with_document(checkpoint: Path, folder: Path, document: Any) -> Path:
    """The checkpoint with another config.json, written by someone else: without our checksum."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return folder


# Configurations


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_odd_value_of_every_field_is_refused_by_name_or_valid(kind: type, tally: Any) -> None:
    counts = tally("odd configuration")
    for field in dataclasses.fields(kind):
        for value in ODD:
            document = {**to_dict(CONFIGS[kind]), field.name: value}
            said = refusal(lambda document=document: from_dict(kind, document, "x/config.json"))
            assert said is None or said.startswith("x/config.json: ")
            fitting = said is None or field.name in said or "scales" in said or "drop" in said or "too large" in said
            assert fitting, (field.name, said)
            counts.add("right" if said is None else "refused")


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("document", [None, [], [1], 5, "text", True, {}, {"colour": "red"}])
def test_what_is_not_a_configuration_is_refused(kind: type, document: Any) -> None:
    assert "x/config.json: " in (refusal(lambda: from_dict(kind, document, "x/config.json")) or "")


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_missing_field_is_named_and_never_filled_in(kind: type) -> None:
    for field in dataclasses.fields(kind):
        document = {name: value for name, value in to_dict(CONFIGS[kind]).items() if name != field.name}
        if field.name in TRAINING_ONLY | LATER:
            assert isinstance(from_dict(kind, document, "x"), kind)
            continue
        assert f"missing {kind.__name__} field(s) {field.name};" in refusal(lambda d=document: from_dict(kind, d, "x"))


def test_equal_values_are_stored_alike() -> None:
    assert json.dumps(to_dict(SamplingConfig(guidance=2))) == json.dumps(to_dict(SamplingConfig(guidance=2.0)))
    assert from_dict(TokenizerConfig, to_dict(TokenizerConfig()), "x") == TokenizerConfig()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-2, 600)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["vq", "bsq", "lfq", "fsq", "none", "all", "folded", "raster", "vit_tiny_patch16_224", "resnet50"]
    ),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def mutated_documents(draw: st.DrawFn) -> tuple[type, Any]:
    kind = draw(st.sampled_from([TokenizerConfig, GeneratorConfig]))
    document = to_dict(draw(st.sampled_from([CONFIGS[kind], TINY if kind is TokenizerConfig else GENERATOR])))
    for name in draw(st.lists(st.sampled_from(sorted(document)), max_size=4)):
        document[name] = draw(json_values)
    return kind, document


@settings(max_examples=DOCUMENTS, deadline=None, derandomize=True)
@given(mutated_documents())
def test_whatever_is_accepted_can_be_built_on_the_meta_device(mutated: tuple[type, Any]) -> None:
    kind, document = mutated

    def build() -> None:
        config = from_dict(kind, document, "x")
        with torch.device("meta"):
            Tokenizer(config) if kind is TokenizerConfig else Transformer(config)

    refusal(build)


LARGEST = [
    TokenizerConfig(depth=96, branches=16, scales=(1,) * 63 + (64,), shared_phi=0, image_size=8192, patch_size=16),
    TokenizerConfig(branches=1, codebook_size=2**26, code_dim=16, width=2**15, heads=2**10, depth=1),
    GeneratorConfig(depth=239, order="raster", scales=(128,), width=256, heads=1),
    GeneratorConfig(depth=2, order="unfolded", branches=64, scales=(1,) * 64, num_classes=2**20, codebook_size=2**20),
]


@pytest.mark.parametrize("config", LARGEST, ids=["tokens", "codes", "positions", "classes"])
def test_the_largest_configurations_are_built_on_the_meta_device_in_no_time(config: Any) -> None:
    def build() -> nn.Module:
        with torch.device("meta"):
            return Tokenizer(config) if isinstance(config, TokenizerConfig) else Transformer(config)

    assert refusal(build) is None


# Native checkpoints


HOSTILE = {
    "more codes than in the file": {"codebook_size": 2**22},
    "more branches than in the file": {"branches": 64, "shared_phi": 1},
    "deeper than in the file": {"depth": 96},
    "larger images than in the file": {"image_size": 4096},
    "no such backbone": {"backbone": "vit_unheard_of"},
    "another kind of network": {"backbone": "resnet50"},
    "a transformer of another kind": {"backbone": "eva_giant_patch14_224"},
    "a tag that timm does not know": {"backbone": "vit_tiny_patch16_224.somebody"},
    "not a name": {"backbone": "a b"},
    "heads that do not divide the width": {"heads": 3},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_configuration_that_asks_for_more_than_its_weights_is_refused(
    checkpoint: Path, tmp_path: Path, case: str, tally: Any
) -> None:
    document = {"kind": "TokenizerConfig", "config": {**to_dict(TINY), **HOSTILE[case]}}
    document["weights_sha256"] = file_sha256(checkpoint / "model.safetensors")
    folder = with_document(checkpoint, tmp_path / "hostile", document)
    said = refusal(lambda: Tokenizer.from_pretrained(folder))
    assert said is not None
    assert str(folder) in said or "backbone" in said
    tally("hostile checkpoint").add("refused")


@pytest.mark.parametrize(
    "document",
    ["", "[]", "5", "null", "{", "{}", '{"config": null}', '{"config": [1]}', "[" * 100_000, '{"a": NaN}', "\x00",
     '{"config": {}, "config": {}}', '{"a": "' + "x" * 2**23 + '"}'],
)  # fmt: skip
def test_an_invalid_document_is_refused(checkpoint: Path, tmp_path: Path, document: str) -> None:
    folder = with_document(checkpoint, tmp_path / "hostile", document)
    assert "config.json" in (refusal(lambda: Tokenizer.from_pretrained(folder)) or "")


def test_a_checkpoint_without_our_checksum_is_loaded(checkpoint: Path, tmp_path: Path) -> None:
    document = read_json(checkpoint / "config.json")
    folder = with_document(checkpoint, tmp_path / "foreign", document)
    loaded, expected = (Tokenizer.from_pretrained(path).state_dict() for path in (folder, checkpoint))
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    document["weights_sha256"] = None
    with_document(checkpoint, folder, document)
    assert "no weights_sha256" in (refusal(lambda: Tokenizer.from_pretrained(folder)) or "")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pipe_or_folder_in_place_of_a_file_is_refused_at_once(checkpoint: Path, tmp_path: Path, name: str) -> None:
    for make in (os.mkfifo, os.mkdir):
        folder = shutil.copytree(checkpoint, tmp_path / make.__name__)
        (folder / name).unlink()
        make(folder / name)
        assert name in (refusal(lambda folder=folder: Tokenizer.from_pretrained(folder)) or "")


def load_with_hash(checkpoint: Path, folder: Path, weights: bytes) -> str | None:
    """Load the checkpoint with another weight file and its hash, so that only the content can be wrong."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    document = {**read_json(checkpoint / "config.json"), "weights_sha256": file_sha256(folder / "model.safetensors")}
    with_document(checkpoint, folder, document)
    (folder / "model.safetensors").write_bytes(weights)
    return refusal(lambda: Tokenizer.from_pretrained(folder))


@settings(
    max_examples=HEADERS, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_changed_header_is_refused(checkpoint: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = (checkpoint / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    name = data.draw(st.sampled_from(sorted(header)))
    entry = header.pop(name)
    change = data.draw(st.sampled_from(["name", "shape", "dtype", "data_offsets", "lost", "kind", "size"]))
    if change == "name":
        header[data.draw(st.text(max_size=10))] = entry
    elif change in ("shape", "data_offsets"):
        numbers = st.lists(st.integers(0, 2**63) | st.integers(0, 9), max_size=5)
        header[name] = {**entry, change: data.draw(numbers.filter(lambda value: value != entry[change]))}
    elif change == "dtype":
        other = st.sampled_from(["F64", "I32", "BOOL", "F8_E4M3", "C64", "?"])
        header[name] = {**entry, "dtype": data.draw(other)}
    elif change == "kind":
        header[name] = data.draw(json_values)
    text = json.dumps(header).encode()
    length = data.draw(st.integers(0, 2**64 - 1)) if change == "size" else len(text)
    assert (
        load_with_hash(checkpoint, tmp_path / "x", struct.pack("<Q", length) + text + content[8 + size :]) is not None
    )


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content with a few bytes flipped, cut off, lost, inserted or repeated, mostly near the start or the end."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 3])):
        share = draw.choice([draw.random(), draw.random() ** 4, 1 - draw.random() ** 4])
        at = min(int(len(changed) * share), len(changed) - 1)
        how = draw.choice(["flip", "flip", "flip", "cut", "lose", "insert", "repeat"])
        if how == "flip":
            changed[at] ^= 1 << draw.randrange(8)
        elif how == "cut":
            del changed[max(at, 1) :]
        elif how == "lose":
            del changed[at : at + draw.randrange(1, 9)]
        elif how == "insert":
            changed[at:at] = draw.randbytes(draw.randrange(1, 9))
        else:
            changed[at:at] = changed[at : at + 200]
        if not changed:
            return b""
    return bytes(changed)


def test_damaged_safetensors_are_loaded_or_refused(checkpoint: Path, tmp_path: Path, tally: Any) -> None:
    draw, counts = random.Random(0), tally("damaged safetensors")
    content = (checkpoint / "model.safetensors").read_bytes()
    for _ in range(FLIPS):
        said = load_with_hash(checkpoint, tmp_path / "x", damaged(content, draw))
        counts.add("right" if said is None else "refused")  # only the hash could detect a changed number


# Torch files


def test_damaged_torch_files_are_loaded_or_refused(tmp_path: Path, tally: Any) -> None:
    draw, counts = random.Random(0), tally("damaged torch file")
    torch.manual_seed(0)
    model = Tokenizer(TINY)
    sound = []
    for document in ({"ema": model.state_dict(), "steps": 3}, {"ema": {"module": model.state_dict(), "decay": 0.9}}):
        for zipped in (True, False):
            torch.save(document, file := io.BytesIO(), _use_new_zipfile_serialization=zipped)
            sound.append(file.getvalue())
    path = tmp_path / "x.pt"

    def load() -> None:
        load_authors_state(model, read_state(path, TokenizerConfig), str(path))

    for content in sound:
        path.write_bytes(content)
        assert refusal(load) is None
    for _ in range(TORCH_FILES):
        path.write_bytes(damaged(draw.choice(sound), draw))
        said = refusal(load)
        assert said is None or said.startswith(str(path))
        counts.add("right" if said is None else "refused")


def test_a_changed_number_in_a_zipped_torch_file_is_detected(tmp_path: Path) -> None:
    weight = torch.full((1, 4, 8), 0.123)
    torch.save({"encoder.latent_tokens": weight}, tmp_path / "x.pt")
    content = bytearray((tmp_path / "x.pt").read_bytes())
    at = content.index(weight.numpy().tobytes())
    content[at + 2] ^= 1
    (tmp_path / "x.pt").write_bytes(content)
    assert "x.pt: cannot be read" in (refusal(lambda: read_state(tmp_path / "x.pt", TokenizerConfig)) or "")


def test_a_model_name_that_is_not_plain_text_is_refused() -> None:
    for name in (5, None, [], "\x1b[31m", "x" * 10**6):
        assert "unknown model" in (refusal(lambda name=name: imagefolder.load_tokenizer(name)) or "")
