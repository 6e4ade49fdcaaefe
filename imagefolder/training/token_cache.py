"""The token cache: every training image encoded once, in several augmented views, for all generators on a tokenizer.

tokens.npy        uint16 or int32 (views, N, P, L); memory-mapped, so it may be larger than memory
about.json        of which tokenizer and images, and the tokens' hash; written last: a cache without it is unfinished
unfinished.json, done-*.json    while it is made: for what, and which batches are on the disk, with their hashes
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from imagefolder.data.images import Images, Key, to_float
from imagefolder.data.loading import Batches
from imagefolder.distributed import barrier, gather_objects, is_main, my_part
from imagefolder.errors import DamagedFile, InputError, reason
from imagefolder.files import CHUNK, checked_sha256, read_json, reading, write_json
from imagefolder.interruption import Stopped, stop_requested
from imagefolder.locks import building
from imagefolder.progress import Phase, console
from imagefolder.tokenizer.model import Tokenizer

TOKENS, ABOUT, UNFINISHED, LOCK = "tokens.npy", "about.json", "unfinished.json", ".lock"
SAVE_SECONDS = 10.0


class TokenCache(Dataset):
    """Tokens (views, N, P, L) on the disk, fetched like images: the epochs see the views in turns.

    `__getitems__` gives int64 tokens (B, P, L) and int64 labels (B,).
    """

    workers = 0

    def __init__(self, path: Path, labels: Tensor) -> None:
        self.path, self.labels = path, labels
        self.tokens = np.load(path, mmap_mode="r")

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenCache, (self.path, self.labels)  # the file's name, not its content

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        epochs, indices = np.array(keys).T
        tokens = self.tokens[epochs % len(self.tokens), indices]
        return torch.from_numpy(tokens.astype(np.int64)), self.labels[torch.from_numpy(indices)]


def open_token_cache(folder: Path, tokenizer_sha256: str, images: Images, views: int) -> TokenCache | None:
    """The finished cache in `folder`, or None if there is none yet.

    All processes call it. The main one looks, and compares the tokens with their hash.

    Raises:
        DamagedFile: its files are not what was written.
        InputError: it was made with another tokenizer, other images or another number of views.
    """
    found: bool | InputError = False
    if is_main():
        try:
            found = _is_finished(folder, _identity(tokenizer_sha256, images, views))
        except InputError as error:
            found = error
    found = gather_objects(found)[0]
    if isinstance(found, InputError):
        raise found
    return TokenCache(folder / TOKENS, images.labels) if found else None


def _is_finished(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether there is a finished cache of this identity; `InputError` as of `open_token_cache`."""
    if not (folder / ABOUT).exists():
        return False
    remedy = f"; delete {folder} to encode the images anew"
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
    tokenizer_sha256: str,
    images: Images,
    views: int,
    folder: Path,
    title: str,
    batch_size: int = 100,
) -> TokenCache:
    """Encode every image in `views` views (those of epochs 0..views-1) into `folder`, or open what is finished there.

    A build that was interrupted continues, with any number of processes; each encodes its part. Batches are the same
    however they are divided, so the file is too. Where another run builds the same, this one waits and uses the result;
    what is damaged is encoded anew.

    Args:
        tokenizer: frozen, in evaluation mode.
        tokenizer_sha256: of its weights.
        images: augmented as the generator is to see them.

    Raises:
        InputError: the disk is too small, or `folder` holds another finished cache.
    """
    with building(folder / LOCK, title):
        try:
            cache = open_token_cache(folder, tokenizer_sha256, images, views)
        except DamagedFile as error:  # in all processes
            if is_main():
                console.print(f"{reason(error)}; encoding the images anew")
                (folder / ABOUT).unlink(missing_ok=True)
            barrier()
            cache = None
        if cache is None:
            return _build(tokenizer, tokenizer_sha256, images, views, folder, title, batch_size)
        if is_main():
            _remove_progress(folder)  # of a run that was killed right after it had finished
        return cache


def _build(
    tokenizer: Tokenizer,
    tokenizer_sha256: str,
    images: Images,
    views: int,
    folder: Path,
    title: str,
    batch_size: int,
) -> TokenCache:
    config = tokenizer.config
    shape = (views, len(images), config.branches, config.length)
    plan = {**_identity(tokenizer_sha256, images, views), "shape": list(shape), "batch_size": batch_size}
    dtype = np.dtype(np.uint16 if config.codebook_size <= 2**16 else np.int32)
    problem = _prepare(folder, plan, shape, dtype) if is_main() else None
    problem = gather_objects(problem)[0]
    if problem:
        raise InputError(problem)
    _encode(tokenizer, images, folder, shape, batch_size, title)
    barrier()
    if is_main():
        about = {**plan, "dtype": str(dtype), "sha256": checked_sha256(folder / TOKENS)}
        write_json(folder / ABOUT, about)
        _remove_progress(folder)
    barrier()
    return TokenCache(folder / TOKENS, images.labels)


def _remove_progress(folder: Path) -> None:
    for path in [folder / UNFINISHED, *folder.glob("done-*.json")]:
        path.unlink(missing_ok=True)


def _identity(tokenizer_sha256: str, images: Images, views: int) -> dict[str, Any]:
    return {
        "tokenizer_sha256": tokenizer_sha256,
        "images_sha256": images.fingerprint(),
        "transform": images.transform,
        "views": views,
    }


def _prepare(folder: Path, plan: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype) -> str | None:
    """Make the file, unless this very cache was begun before; what hinders it, or None."""
    path, tokens = folder / UNFINISHED, folder / TOKENS
    begun = _read_or_none(path) == plan and _has_header(tokens, shape, dtype)
    if not begun:
        for old in [path, tokens, *folder.glob("done-*.json")]:
            old.unlink(missing_ok=True)  # begun for something else
    folder.mkdir(parents=True, exist_ok=True)
    there = tokens.stat().st_blocks * 512 if begun else 0  # the file has holes where nothing is written yet
    needed, free = math.prod(shape) * dtype.itemsize - there, shutil.disk_usage(folder).free
    if needed > free:
        missing = f"{needed / 1e9:.2f} GB, of which the disk lacks {(needed - free) / 1e9:.2f} GB"
        return f"{folder}: the token cache needs {missing}; free them or choose another output folder"
    if not begun:
        np.lib.format.open_memmap(tokens, "w+", dtype, shape).flush()
        write_json(path, plan)
    return None


def _has_header(tokens: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    with contextlib.suppress(InputError), reading(tokens, "tokens"):
        array = np.load(tokens, mmap_mode="r")
        return (array.shape, array.dtype) == (shape, dtype)
    return False


def _encode(
    tokenizer: Tokenizer, images: Images, folder: Path, shape: tuple[int, ...], batch_size: int, title: str
) -> None:
    """Encode this process's part of the batches, but for those that are on the disk already."""
    number, total = shape[1], shape[0] * shape[1]

    def places(batch: int) -> range:
        return range(batch * batch_size, min((batch + 1) * batch_size, total))

    mine = my_part(-(-total // batch_size))
    file_of_mine = folder / f"done-{mine.start}-{mine.stop}.json"
    tokens = np.load(folder / TOKENS, mmap_mode="r")
    size = tokens[0, 0].nbytes

    def same(run: dict[str, Any]) -> bool:
        """Whether the batches of a run lie on the disk as they were written."""
        first, last = places(run["start"])[0], places(run["stop"] - 1)[-1]
        return _sha256_of(folder / TOKENS, tokens.offset + first * size, (last + 1 - first) * size) == run["sha256"]

    stored = {path: (_read_or_none(path) or {}).get("runs", []) for path in folder.glob("done-*.json")}
    sound = {path: [run for run in runs if same(run)] for path, runs in stored.items()}
    damaged = sum(map(len, stored.values())) - sum(map(len, sound.values()))
    if damaged and is_main():
        console.print(f"{folder / TOKENS}: {damaged} pieces are damaged and encoded anew")
    done = {batch for runs in sound.values() for run in runs for batch in range(run["start"], run["stop"])}
    todo = [batch for batch in mine if batch not in done]
    keys = ([divmod(place, number) for place in places(batch)] for batch in todo)  # (view, image)
    loader = Batches(images, keys)
    runs: list[dict[str, Any]] = sound.get(file_of_mine, [])
    whole, left = (sum(len(places(batch)) for batch in batches) for batches in (mine, todo))
    # Written, not mapped: two machines that write to one page of a shared file would undo each other's half of it
    with _named(folder / TOKENS), (folder / TOKENS).open("r+b") as file, Phase(title, whole, whole - left) as phase:

        def save() -> None:
            file.flush()
            os.fsync(file.fileno())
            if current is not None:
                runs.append({"start": current[0], "stop": current[1], "sha256": digest.hexdigest()})
            write_json(file_of_mine, {"runs": runs})

        saved, current, digest = time.monotonic(), None, hashlib.sha256()
        try:
            for batch, (pixels, _) in zip(todo, loader, strict=True):
                if stop_requested():
                    raise Stopped(f"{title}: stopped; the same command continues")
                encoded = tokenizer.encode(to_float(pixels.to(tokenizer.device))).cpu().numpy().astype(tokens.dtype)
                if current is not None and (current[1] != batch or time.monotonic() - saved > SAVE_SECONDS):
                    save()
                    saved, current, digest = time.monotonic(), None, hashlib.sha256()
                file.seek(tokens.offset + places(batch).start * size)
                file.write(encoded.tobytes())
                digest.update(encoded.tobytes())
                current = (batch if current is None else current[0], batch + 1)
                phase.update(phase.done + len(encoded))
        finally:
            save()


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """A full disk says nothing of what was being written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {reason(error)}") from error


def _read_or_none(path: Path) -> dict[str, Any] | None:
    """A document of an unfinished cache; None if there is none, or it is damaged: then its part is encoded again."""
    with contextlib.suppress(InputError):
        return read_json(path)
    return None


def _sha256_of(path: Path, start: int, length: int) -> str:
    """sha256 of a part of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while length > 0 and (chunk := file.read(min(length, CHUNK))):
            digest.update(chunk)
            length -= len(chunk)
    return digest.hexdigest()
