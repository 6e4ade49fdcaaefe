"""Published weights of other projects, and the command that checks them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imagefolder import InputError, files, weights
from imagefolder.config import TokenizerConfig
from imagefolder.evaluation.backbones import DINO_SPACE, OTHER_SPACES
from imagefolder.progress import Event, display, send_to
from imagefolder.weights import DINO, FILES, VGG16_FILE, Found, WeightsAbsent, check, report, require


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that is searched."""
    monkeypatch.setitem(FILES, weights.LITE0, replace(FILES[weights.LITE0], package="no-such-package"))
    monkeypatch.setenv("IMAGEFOLDER_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    return tmp_path


@pytest.fixture
def put(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], Path]:
    """Write a file whose content is accepted from now on."""

    def write(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        monkeypatch.setitem(FILES, name, replace(FILES[name], sha256=sha256, size=len(content)))
        return folder / name

    return write


def states() -> dict[str, Found]:
    return {found.name.split(" (")[0]: found for found in check()}


def test_hashes_equal_the_published_ones() -> None:
    known = {name: (file.sha256 or "")[:8] for name, file in FILES.items()}
    assert known == {
        weights.INCEPTION: "6726825d",  # also part of its name
        weights.CLEAN_INCEPTION: "f58cb9b6",
        weights.ADM_REFERENCE: "b3273271",
        weights.ADM_STATISTICS: "",
        VGG16_FILE: "397923af",
        weights.LITE0: "57934424",  # also part of its name
    }
    assert all(len(file.sha256) == 64 for file in FILES.values() if file.sha256)


def test_backbones_are_those_the_models_ask_for() -> None:
    spaces = {backbone.timm for backbone in (DINO_SPACE, *OTHER_SPACES)}
    assert set(weights.BACKBONES) == {DINO, TokenizerConfig().backbone} | spaces


def test_only_files_with_the_right_hash_are_used(folder: Path, put: Callable[[str, bytes], Path]) -> None:
    path = put(weights.CLEAN_INCEPTION, b"published")
    assert require(weights.CLEAN_INCEPTION) == path
    path.write_bytes(b"tampered with")
    with pytest.raises(InputError, match="replace it by the published file") as error:
        require(weights.CLEAN_INCEPTION)
    assert not isinstance(error.value, WeightsAbsent)
    path.unlink()
    with pytest.raises(WeightsAbsent, match=f"{folder} or .*hub"):
        require(weights.CLEAN_INCEPTION)


def test_check_distinguishes_present_absent_and_wrong_files(
    folder: Path, put: Callable[[str, bytes], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    put(weights.INCEPTION, b"published")
    (folder / VGG16_FILE).write_bytes(b"cut short")
    found = states()
    assert len(found) == 13
    assert found[weights.INCEPTION].state == "present"
    assert found[VGG16_FILE].state == "wrong content"
    assert hashlib.sha256(b"cut short").hexdigest() in found[VGG16_FILE].detail
    assert {f.state for name, f in found.items() if name not in (weights.INCEPTION, VGG16_FILE)} == {"absent"}
    assert report("check") == 1
    out = capsys.readouterr().out
    assert f"{weights.INCEPTION}: present ({folder / weights.INCEPTION})" in out
    assert f"{VGG16_FILE}: wrong content" in out
    assert f"{weights.ADM_REFERENCE}: absent" in out
    assert "2,037,122,530 bytes, sha256 b32732719497e42660a9affb4a966068cba0855ac449b82015e34ec376d20758" in out
    assert f"folders searched: {folder}, {folder / 'hub' / 'checkpoints'}" in out
    assert "1 of 13 files present" in out


def test_files_without_a_published_hash_are_inspected(folder: Path) -> None:
    statistics = folder / weights.ADM_STATISTICS
    for arrays in ({"mu": np.zeros(64), "sigma": np.eye(64)}, {"mean": np.zeros(2048)}):
        np.savez(statistics, **arrays)
        assert states()[weights.ADM_STATISTICS].state == "wrong content"
    np.savez(statistics, mu=np.zeros(2048), sigma=np.eye(2048))
    assert states()[weights.ADM_STATISTICS].state == "present"
    backbone = folder / f"{DINO}.safetensors"
    backbone.write_bytes(b"nothing of the kind")
    assert states()[backbone.name].state == "wrong content"
    save_file({"x": torch.zeros(1)}, backbone)
    assert states()[backbone.name].state == "present"


def test_absent_weights_are_named_with_what_to_do(folder: Path, put: Callable[[str, bytes], Path]) -> None:
    names = [weights.INCEPTION, VGG16_FILE, *weights.BACKBONES]
    put(VGG16_FILE, b"published")
    absent = weights.absent_weights(names)
    assert [message.split()[0] for message in absent] == [
        weights.INCEPTION, *(f"{name}.safetensors" for name in weights.BACKBONES)
    ]  # fmt: skip
    assert all(str(folder) in message and "absent" in message for message in absent)
    save_file({"x": torch.zeros(1)}, folder / f"{DINO}.safetensors")
    assert len(weights.absent_weights(names)) == len(names) - 2


def test_backbones_are_also_found_in_the_hubs_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = folder / "cached" / "model.safetensors"
    cached.parent.mkdir()
    save_file({"x": torch.zeros(1)}, cached)

    def look_up(repository: str, file: str) -> str | None:
        return str(cached) if (repository, file) == (f"timm/{DINO}", "model.safetensors") else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look_up)
    found = states()
    assert found[f"{DINO}.safetensors"].state == "present"
    assert str(cached) in found[f"{DINO}.safetensors"].detail
    assert found[f"{TokenizerConfig().backbone}.safetensors"].state == "absent"


def test_exit_code_is_0_when_all_files_are_present(folder: Path, put: Callable[[str, bytes], Path]) -> None:
    for name, file in FILES.items():
        if file.sha256:
            put(name, name.encode())
    np.savez(folder / weights.ADM_STATISTICS, mu=np.zeros(2048), sigma=np.eye(2048))
    for name in weights.BACKBONES:
        save_file({"x": torch.zeros(1)}, folder / f"{name}.safetensors")
    assert report("check") == 0


def test_big_files_are_hashed_with_progress_and_once(
    put: Callable[[str, bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(weights.ADM_REFERENCE, bytes(3 * 2**20))
    monkeypatch.setattr(files, "BIG", 2**20)
    monkeypatch.setattr(files, "CHUNK", 2**20)
    events: list[Event] = []
    send_to(events.append)
    try:
        require(weights.ADM_REFERENCE)
        assert events[0].total == 3
        assert events[-1].ended
        count = len(events)
        require(weights.ADM_REFERENCE)
        assert len(events) == count
        path.write_bytes(b"changed")
        with pytest.raises(InputError, match="replace it"):
            require(weights.ADM_REFERENCE)
    finally:
        send_to(display.handle)
