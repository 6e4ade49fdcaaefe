"""The token cache: the tokens of every view, whatever happens while they are computed."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from imagefolder.config import TokenizerConfig
from imagefolder.data.digits import digits
from imagefolder.data.folder import read_data
from imagefolder.data.images import ArrayImages, to_float
from imagefolder.data.stored import StoredImages
from imagefolder.errors import InputError
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.training import token_cache as module
from imagefolder.training.token_cache import TokenCache, build_token_cache, open_token_cache

SHA256 = "a" * 64
VIEWS, BATCH = 3, 4
TINY = TokenizerConfig(
    name="tiny", image_size=16, patch_size=8, backbone="vit_tiny_patch16_224", width=32, depth=1, heads=2,
    scales=(1, 2), codebook_size=64, code_dim=8, dropout_start=1,
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(TINY).eval().requires_grad_(False)


@pytest.fixture
def images(tmp_path: Path, classes_at: Callable[..., Path]) -> StoredImages:
    """11 images, so that batches of 4 span views and the last is short."""
    images = read_data(classes_at(tmp_path / "data", {"a": 7, "b": 6}), 16).train.augmented("generator", 0)
    images.workers = 0
    assert len(images) == 11
    return images


@pytest.fixture
def build(tokenizer: Tokenizer, images: StoredImages) -> Callable[..., TokenCache]:
    return lambda folder, **changed: build_token_cache(
        **{
            "tokenizer": tokenizer,
            "tokenizer_sha256": SHA256,
            "images": images,
            "views": VIEWS,
            "folder": folder,
            "title": "encoding",
            "batch_size": BATCH,
            **changed,
        }
    )


def test_cached_tokens_are_the_tokens_of_the_view(
    tmp_path: Path, tokenizer: Tokenizer, images: StoredImages, build: Callable[..., TokenCache]
) -> None:
    cache = build(tmp_path / "cache")
    keys = [(epoch, index) for epoch in range(2 * VIEWS) for index in range(len(images))]
    tokens, labels = cache.__getitems__(keys)
    pixels, wanted_labels = images.__getitems__([(epoch % VIEWS, index) for epoch, index in keys])
    assert torch.equal(tokens, tokenizer.encode(to_float(pixels)))
    assert torch.equal(labels, wanted_labels)
    assert (tokens.dtype, tokens.shape) == (torch.int64, (len(keys), 2, 5))
    assert len(cache) == len(images)
    first, second = tokens[: len(images)], tokens[len(images) : 2 * len(images)]
    assert not torch.equal(first, second)
    assert cache.tokens.dtype == np.uint16


def test_large_codebooks_need_more_bits(tmp_path: Path, build: Callable[..., TokenCache]) -> None:
    torch.manual_seed(1)
    wide = Tokenizer(TokenizerConfig(**{**vars(TINY), "codebook_size": 2**16 + 1})).eval()
    assert build(tmp_path / "cache", tokenizer=wide, views=1).tokens.dtype == np.int32


def test_a_finished_cache_is_opened_not_rebuilt(
    tmp_path: Path, images: StoredImages, build: Callable[..., TokenCache]
) -> None:
    assert open_token_cache(tmp_path / "cache", images, tokenizer_sha256=SHA256, views=VIEWS) is None
    cache = build(tmp_path / "cache")
    opened = open_token_cache(tmp_path / "cache", images, tokenizer_sha256=SHA256, views=VIEWS)
    again = build(tmp_path / "cache", tokenizer=None)  # would fail if it were used
    for other in (opened, again, pickle.loads(pickle.dumps(cache))):
        assert np.array_equal(other.tokens, cache.tokens)
        assert torch.equal(other.labels, images.labels)
    assert len(pickle.dumps(cache)) < 2000
    assert sorted(path.name for path in (tmp_path / "cache").glob("[!.]*")) == ["about.json", "tokens.npy"]
    about = json.loads((tmp_path / "cache" / "about.json").read_text())
    assert about["shape"] == [VIEWS, 11, 2, 5]
    assert about["images_sha256"] == images.fingerprint()
    assert "1.125 x 16" in about["transform"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("saves", [True, False])
def test_a_killed_build_resumes(
    tmp_path: Path,
    tokenizer: Tokenizer,
    images: StoredImages,
    build: Callable[..., TokenCache],
    monkeypatch: pytest.MonkeyPatch,
    saves: bool,
) -> None:
    """Killed after some batches, or before anything was recorded: the file is the same as without a kill."""
    build(tmp_path / "whole")
    encode, encoded = tokenizer.encode, []

    def dying(pixels: torch.Tensor, **options: bool) -> torch.Tensor:
        if len(encoded) % 3 == 2:
            encoded.append(0)
            raise Killed
        encoded.append(len(pixels))
        return encode(pixels, **options)

    monkeypatch.setattr(tokenizer, "encode", dying)
    if not saves:
        monkeypatch.setattr(module.os, "fsync", lambda descriptor: (_ for _ in ()).throw(Killed))
    folder = tmp_path / "cache"
    for _ in range(4 if saves else 1):
        with pytest.raises(Killed):
            build(folder)
        assert open_token_cache(folder, images, tokenizer_sha256=SHA256, views=VIEWS) is None
    if saves:
        runs = json.loads(next(folder.glob("done-*.json")).read_text())["runs"]
        assert [(run["start"], run["stop"]) for run in runs] == [(0, 2), (2, 4), (4, 6), (6, 8)]
        build(folder)
        assert sum(encoded) == VIEWS * len(images)  # no batch was encoded twice
    else:
        monkeypatch.undo()
        build(folder)
    assert (folder / "tokens.npy").read_bytes() == (tmp_path / "whole" / "tokens.npy").read_bytes()
    assert (folder / "about.json").read_text() == (tmp_path / "whole" / "about.json").read_text()


def test_a_build_begun_for_another_tokenizer_is_discarded(
    tmp_path: Path, tokenizer: Tokenizer, build: Callable[..., TokenCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = np.array(build(tmp_path / "whole").tokens)
    with monkeypatch.context() as patched:
        zeros = iter([torch.zeros(BATCH, 2, 5, dtype=torch.int64)] * 3)
        patched.setattr(tokenizer, "encode", lambda pixels, **options: next(zeros, None))
        with pytest.raises(AttributeError):
            build(tmp_path / "cache", tokenizer_sha256="b" * 64)
    assert np.array_equal(build(tmp_path / "cache").tokens, wanted)


def work_together(rank: int, meeting: Path, tokenizer: Tokenizer, build: Callable[..., TokenCache]) -> None:
    encode, encoded = tokenizer.encode, []
    tokenizer.encode = lambda pixels, **options: encoded.append(len(pixels)) or encode(pixels, **options)
    dist.init_process_group("gloo", init_method=f"file://{meeting}/file", rank=rank, world_size=2)
    build(meeting.parent / "cache")
    dist.destroy_process_group()
    (meeting / str(rank)).write_text(str(sum(encoded)))


def two_processes(tmp_path: Path, tokenizer: Tokenizer, build: Callable[..., TokenCache]) -> list[int]:
    """Build `cache`; returns how many images each process encoded."""
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    # Forked, so that torch is not imported again; with one thread there is no pool that a fork could break
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work_together, args=(rank, meeting, tokenizer, build)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [int((meeting / str(rank)).read_text()) for rank in range(2)]


def test_two_processes_write_the_same_file(
    tmp_path: Path, tokenizer: Tokenizer, build: Callable[..., TokenCache]
) -> None:
    build(tmp_path / "whole")
    assert two_processes(tmp_path, tokenizer, build) == [16, 17]
    for name in ("tokens.npy", "about.json"):
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "cache").glob("[!.]*")) == ["about.json", "tokens.npy"]


@pytest.mark.parametrize("damaged", [False, True])
def test_two_processes_resume_what_one_began(
    tmp_path: Path,
    tokenizer: Tokenizer,
    build: Callable[..., TokenCache],
    monkeypatch: pytest.MonkeyPatch,
    damaged: bool,
) -> None:
    """What is on disk is not encoded again, unless it is damaged."""
    whole = np.array(build(tmp_path / "whole").tokens)
    encode, calls = tokenizer.encode, []

    def dying(pixels: torch.Tensor, **options: bool) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 7:
            raise Killed
        return encode(pixels)

    with monkeypatch.context() as patched:
        patched.setattr(tokenizer, "encode", dying)
        with pytest.raises(Killed):
            build(tmp_path / "cache")
    if damaged:
        np.load(tmp_path / "cache" / "tokens.npy", mmap_mode="r+")[0, 0, 0, 0] ^= 1
    # 6 of 9 batches were on disk; the last batch holds 1 image
    assert two_processes(tmp_path, tokenizer, build) == ([16, 17] if damaged else [0, 9])
    assert np.array_equal(np.load(tmp_path / "cache" / "tokens.npy"), whole)


@pytest.mark.parametrize("odd", ["tokenizer", "images", "transform", "views"])
def test_a_cache_of_something_else_is_rejected(
    tmp_path: Path, images: StoredImages, build: Callable[..., TokenCache], odd: str
) -> None:
    build(tmp_path / "cache")
    if odd == "images":
        images.labels[3] = 1 - images.labels[3]
    arguments: dict[str, Any] = {
        "tokenizer_sha256": ("b" if odd == "tokenizer" else "a") * 64,
        "images": images.augmented("tokenizer", 0) if odd == "transform" else images,
        "views": VIEWS + (odd == "views"),
    }
    for attempt in (open_token_cache, lambda folder, **changed: build(folder, **changed)):
        with pytest.raises(InputError, match=odd) as caught:
            attempt(tmp_path / "cache", **arguments)
        assert f"delete {tmp_path / 'cache'}" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["no tokens", "short tokens", "flipped bit", "no JSON", "JSON of something else"])
def test_a_damaged_cache_is_rejected(
    tmp_path: Path, images: StoredImages, build: Callable[..., TokenCache], damage: str
) -> None:
    folder = tmp_path / "cache"
    build(folder)
    if damage == "no tokens":
        (folder / "tokens.npy").unlink()
    elif damage == "short tokens":
        os.truncate(folder / "tokens.npy", 300)
    elif damage == "flipped bit":
        data = bytearray((folder / "tokens.npy").read_bytes())
        data[-7] ^= 1
        (folder / "tokens.npy").write_bytes(data)
    else:
        (folder / "about.json").write_text("{" if damage == "no JSON" else "{}")
    with pytest.raises(InputError, match=f"delete {folder}"):
        open_token_cache(folder, images, tokenizer_sha256=SHA256, views=VIEWS)
    if damage != "JSON of something else":  # what is damaged is encoded again
        assert np.array_equal(build(folder).tokens, build(tmp_path / "other").tokens)


def test_too_small_a_disk_is_noticed_before_encoding(
    tmp_path: Path, build: Callable[..., TokenCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 500))
    with pytest.raises(InputError, match=r"needs 0\.00 GB"):  # 3 x 11 x 2 x 5 tokens of 2 bytes: 660 bytes
        build(tmp_path / "cache")
    assert list((tmp_path / "cache").glob("[!.]*")) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 660))
    build(tmp_path / "cache")


def test_images_in_memory_are_cached_too(tmp_path: Path, build: Callable[..., TokenCache]) -> None:
    train = digits(16).train
    few = ArrayImages(train.images[:9], train.labels[:9])
    cache = build(tmp_path / "cache", images=few.augmented("generator", 0), views=1)
    tokens, labels = cache.__getitems__([(4, 8), (0, 2)])
    assert labels.tolist() == few.labels[[8, 2]].tolist()
    assert np.array_equal(tokens.numpy(), cache.tokens[0, [8, 2]])
