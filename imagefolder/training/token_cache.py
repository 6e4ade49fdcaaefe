"""The token cache: every training image encoded once, in several augmented views, for all generators of a tokenizer.

tokens.npy        uint16 or int32 (views, N, P, L); memory-mapped, so it may be larger than memory
about.json        the tokenizer and images it was made from, and the hash of the tokens; written last: a cache without
                  it is unfinished
unfinished.json, done-*.json    while it is being built: what for, and which batches are on disk, with their hashes
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from imagefolder.data.batches import Batches
from imagefolder.data.images import Images, Key, to_float
from imagefolder.distributed import barrier, gather_objects, is_main, my_part
from imagefolder.errors import DamagedFile, InputError, reason
from imagefolder.files import CHUNK, checked_sha256, read_json, reading, write_json, writing
from imagefolder.interruption import Stopped, stop_requested
from imagefolder.locks import building
from imagefolder.progress import Phase, console
from imagefolder.tokenizer.model import Tokenizer

TOKENS, ABOUT, UNFINISHED, LOCK = "tokens.npy", "about.json", "unfinished.json", ".lock"
SAVE_SECONDS = 10.0


class TokenCache(Dataset):
    """Tokens (views, N, P, L) on disk, fetched like images; epochs cycle through the views.

    `__getitems__` returns int64 tokens (B, P, L) and int64 labels (B,).
    """

    workers = 0

    def __init__(self, path: Path, labels: Tensor) -> None:
        self.path, self.labels = path, labels
        self.tokens = np.load(path, mmap_mode="r")

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenCache, (self.path, self.labels)  # the path, not the tokens

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        epochs, indices = np.array(keys).T
        tokens = self.tokens[epochs % len(self.tokens), indices]
        return torch.from_numpy(tokens.astype(np.int64)), self.labels[torch.from_numpy(indices)]


def open_token_cache(folder: Path, images: Images, *, tokenizer_sha256: str, views: int) -> TokenCache | None:
    """The finished cache in `folder`, or None if there is none yet.

    All processes call this; rank 0 reads the documents and verifies the hash of the tokens.

    Raises:
        DamagedFile: the files are not what was written.
        InputError: it was built with another tokenizer, other images or another number of views.
    """
    found: bool | InputError = False
    if is_main():
        try:
            found = _is_finished(folder, _identity(images, tokenizer_sha256, views))
        except InputError as error:
            found = error
    found = gather_objects(found)[0]
    if isinstance(found, InputError):
        raise found
    return TokenCache(folder / TOKENS, images.labels) if found else None


def _is_finished(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether there is a finished cache of this identity; `InputError` as in `open_token_cache`."""
    if not (folder / ABOUT).exists():
        return False
    remedy = f"; delete {folder} to encode the images again"
    about = read_json(folder / ABOUT, remedy)
    odd = [name for name in wanted if about.get(name) != wanted[name]]
    if odd:
        found = ", ".join(f"{name} is {about.get(name)}, not {wanted[name]}" for name in odd)
        raise InputError(f"{folder} holds tokens of other images or of another tokenizer ({found}){remedy}")
    if not (folder / TOKENS).exists():
        raise DamagedFile(f"{folder / TOKENS} is missing{remedy}")
    with reading(folder / TOKENS, "a token cache", remedy):
        if checked_sha256(folder / TOKENS) != about["sha256"]:
            raise ValueError("its sha256 is not the one stored beside it")
        shape = np.load(folder / TOKENS, mmap_mode="r").shape
        if list(shape) != about["shape"]:
            raise ValueError(f"shape {shape}")
    return True


def build_token_cache(
    tokenizer: Tokenizer,
    images: Images,
    folder: Path,
    *,
    tokenizer_sha256: str,
    views: int,
    title: str,
    batch_size: int = 100,
) -> TokenCache:
    """Encode every image in `views` views (those of epochs 0..views-1) into `folder`, or open the finished cache there.

    An interrupted build resumes, with any number of processes; each encodes its share. Batches do not depend on how
    they are divided, so neither does the file. If another run is building the same cache, this one waits and uses the
    result; damaged tokens are encoded again.

    Args:
        tokenizer: frozen, in evaluation mode.
        images: augmented as the generator is to see them.
        tokenizer_sha256: of its weights.
        title: shown with the progress.

    Raises:
        InputError: there is not enough disk space, or `folder` holds another finished cache.
    """
    with building(folder / LOCK, title):
        try:
            cache = open_token_cache(folder, images, tokenizer_sha256=tokenizer_sha256, views=views)
        except DamagedFile as error:  # in all processes
            if is_main():
                console.print(f"{reason(error)}; encoding the images again")
                (folder / ABOUT).unlink(missing_ok=True)
            barrier()
            cache = None
        if cache is None:
            identity = _identity(images, tokenizer_sha256, views)
            return _build(tokenizer, images, folder, identity=identity, title=title, batch_size=batch_size)
        if is_main():
            _remove_progress(folder)  # of a run that was killed right after it had finished
        return cache


def encoded_share(folder: Path, images: int, views: int) -> float:
    """How much of a token cache is on disk, 0..1, by its documents alone: nothing is checked."""
    if (folder / ABOUT).exists():
        return 1.0
    begun = _read_or_none(folder / UNFINISHED)
    if begun is None:
        return 0.0
    runs = [run for path in folder.glob("done-*.json") for run in (_read_or_none(path) or {}).get("runs", [])]
    return min(sum(run["stop"] - run["start"] for run in runs) * begun["batch_size"] / (images * views), 1.0)


def _build(
    tokenizer: Tokenizer, images: Images, folder: Path, *, identity: dict[str, Any], title: str, batch_size: int
) -> TokenCache:
    config = tokenizer.config
    shape = (identity["views"], len(images), config.branches, config.length)
    plan = {**identity, "shape": list(shape), "batch_size": batch_size}
    dtype = np.dtype(np.uint16 if config.codebook_size <= 2**16 else np.int32)
    problem = _prepare(folder, plan, shape, dtype) if is_main() else None
    problem = gather_objects(problem)[0]
    if problem:
        raise InputError(problem)
    _encode(tokenizer, images, _TokenFile(folder / TOKENS, batch_size), title)
    barrier()
    if is_main():
        write_json(folder / ABOUT, {**plan, "dtype": str(dtype), "sha256": checked_sha256(folder / TOKENS)})
        _remove_progress(folder)
    barrier()
    return TokenCache(folder / TOKENS, images.labels)


def _remove_progress(folder: Path) -> None:
    for path in [folder / UNFINISHED, *folder.glob("done-*.json")]:
        path.unlink(missing_ok=True)


def _identity(images: Images, tokenizer_sha256: str, views: int) -> dict[str, Any]:
    return {
        "tokenizer_sha256": tokenizer_sha256,
        "images_sha256": images.fingerprint(),
        "transform": images.transform,
        "views": views,
    }


def _prepare(folder: Path, plan: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype) -> str | None:
    """Create the file, unless this very cache was begun before. Returns what prevents it, or None."""
    path, tokens = folder / UNFINISHED, folder / TOKENS
    begun = _read_or_none(path) == plan and _has_header(tokens, shape, dtype)
    if not begun:
        tokens.unlink(missing_ok=True)
        _remove_progress(folder)  # begun for something else
    folder.mkdir(parents=True, exist_ok=True)
    written = tokens.stat().st_blocks * 512 if begun else 0  # the file has holes where nothing is written yet
    needed, free = math.prod(shape) * dtype.itemsize - written, shutil.disk_usage(folder).free
    if needed > free:
        missing = f"{needed / 1e9:.2f} GB, {(needed - free) / 1e9:.2f} GB more than are free on the disk"
        return f"{folder}: the token cache needs {missing}; free up space or choose another output folder"
    if not begun:
        np.lib.format.open_memmap(tokens, "w+", dtype, shape).flush()
        write_json(path, plan)
    return None


def _has_header(tokens: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    with contextlib.suppress(InputError), reading(tokens, "tokens"):
        array = np.load(tokens, mmap_mode="r")
        return (array.shape, array.dtype) == (shape, dtype)
    return False


class _TokenFile:
    """Where the batches are in tokens.npy: batch b holds `batch_size` consecutive places (view * N + image)."""

    def __init__(self, path: Path, batch_size: int) -> None:
        tokens = np.load(path, mmap_mode="r")
        self.path, self.batch_size, self.dtype, self.offset = path, batch_size, tokens.dtype, tokens.offset
        self.views, self.images = tokens.shape[:2]
        self.size = tokens[0, 0].nbytes

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.views * self.images // self.batch_size)

    def places(self, start: int, stop: int) -> range:
        """Those of the batches start..stop-1."""
        return range(start * self.batch_size, min(stop * self.batch_size, self.views * self.images))

    def keys(self, batch: int) -> list[Key]:
        """(view, image) of every place of a batch."""
        return [divmod(place, self.images) for place in self.places(batch, batch + 1)]

    def position(self, batch: int) -> int:
        """Of a batch, in bytes."""
        return self.offset + batch * self.batch_size * self.size

    def is_intact(self, run: dict[str, Any]) -> bool:
        """Whether the batches of a run are on disk as they were written."""
        digest, left = hashlib.sha256(), len(self.places(run["start"], run["stop"])) * self.size
        with self.path.open("rb") as file:
            file.seek(self.position(run["start"]))
            while left > 0 and (chunk := file.read(min(left, CHUNK))):
                digest.update(chunk)
                left -= len(chunk)
        return digest.hexdigest() == run["sha256"]


def _intact_runs(file: _TokenFile) -> dict[Path, list[dict[str, Any]]]:
    """The runs of batches that are on disk, by the document that lists them. Damaged ones are reported and dropped."""
    documents = file.path.parent.glob("done-*.json")
    stored = {path: (_read_or_none(path) or {}).get("runs", []) for path in documents}
    intact = {path: [run for run in runs if file.is_intact(run)] for path, runs in stored.items()}
    damaged = sum(map(len, stored.values())) - sum(map(len, intact.values()))
    if damaged and is_main():
        console.print(f"{file.path}: {damaged} pieces are damaged and will be encoded again")
    return intact


def _encode(tokenizer: Tokenizer, images: Images, file: _TokenFile, title: str) -> None:
    """Encode this process's share of the batches, except those that are already on disk."""
    mine = my_part(len(file))
    document = file.path.with_name(f"done-{mine.start}-{mine.stop}.json")
    intact = _intact_runs(file)
    done = {batch for runs in intact.values() for run in runs for batch in range(run["start"], run["stop"])}
    todo = [batch for batch in mine if batch not in done]
    loader = Batches(images, map(file.keys, todo))
    runs = intact.get(document, [])
    whole, left = (sum(len(file.places(batch, batch + 1)) for batch in batches) for batches in (mine, todo))
    # Written, not mapped: two machines that write to one page of a shared file would undo each other's half of it
    with writing(file.path), file.path.open("r+b") as output, Phase(title, whole, whole - left) as phase:

        def save() -> None:
            output.flush()
            os.fsync(output.fileno())
            if current is not None:
                runs.append({"start": current[0], "stop": current[1], "sha256": digest.hexdigest()})
            write_json(document, {"runs": runs})

        saved, current, digest = time.monotonic(), None, hashlib.sha256()
        try:
            for batch, (pixels, _) in zip(todo, loader, strict=True):
                if stop_requested():
                    raise Stopped(f"{title}: stopped; the same command continues")
                tokens = tokenizer.encode(to_float(pixels.to(tokenizer.device)), check=False)
                encoded = tokens.cpu().numpy().astype(file.dtype)
                if current is not None and (current[1] != batch or time.monotonic() - saved > SAVE_SECONDS):
                    save()
                    saved, current, digest = time.monotonic(), None, hashlib.sha256()
                output.seek(file.position(batch))
                output.write(encoded.tobytes())
                digest.update(encoded.tobytes())
                current = (batch if current is None else current[0], batch + 1)
                phase.update(phase.done + len(encoded))
        finally:
            save()


def _read_or_none(path: Path) -> dict[str, Any] | None:
    """A document of an unfinished cache; None if it is missing or damaged: then its batches are encoded again."""
    with contextlib.suppress(InputError):
        return read_json(path)
    return None
