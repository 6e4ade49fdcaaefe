"""The token cache: every training image encoded once, in several augmented views, for all generators on a tokenizer.

tokens.npy        uint16 or int32 (views, N, P, L); memory-mapped, so it may be larger than memory
about.json        of which tokenizer and images; written last: a cache without it is unfinished
unfinished.json, done-*.json    while it is made: for what, and which batches are on the disk
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imagefolder.data.images import Images, Key, to_float
from imagefolder.distributed import barrier, gather_objects, is_main, my_part
from imagefolder.errors import InputError
from imagefolder.files import file_sha256, write_atomically
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.training.progress import Phase

TOKENS, ABOUT, UNFINISHED = "tokens.npy", "about.json", "unfinished.json"
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

    Raises:
        InputError: it was made with another tokenizer, other images or another number of views, or is damaged.
    """
    if not (folder / ABOUT).exists():
        return None
    remedy = f"delete {folder} to encode the images anew"
    wanted = _identity(tokenizer_sha256, images, views)
    try:
        about = json.loads((folder / ABOUT).read_text())
        odd = [name for name in wanted if about[name] != wanted[name]]
        if odd:
            found = ", ".join(f"{name} is {about[name]}, not {wanted[name]}" for name in odd)
            raise InputError(f"{folder} holds tokens of other images or of another tokenizer ({found}); {remedy}")
        cache = TokenCache(folder / TOKENS, images.labels)
        if list(cache.tokens.shape) != about["shape"]:
            raise ValueError(f"shape {cache.tokens.shape}")
    except InputError:
        raise
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{folder}: damaged token cache ({error}); {remedy}") from None
    return cache


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
    however they are divided, so the file is too.

    Args:
        tokenizer: frozen, in evaluation mode.
        tokenizer_sha256: of its weights.
        images: augmented as the generator is to see them.

    Raises:
        InputError: the disk is too small, or `folder` holds another finished cache.
    """
    cache = open_token_cache(folder, tokenizer_sha256, images, views)
    if cache is not None:
        return cache
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
        about = {**plan, "dtype": str(dtype), "sha256": file_sha256(folder / TOKENS)}
        _write_json(folder / ABOUT, about)
        for path in [folder / UNFINISHED, *folder.glob("done-*.json")]:
            path.unlink()
    barrier()
    return TokenCache(folder / TOKENS, images.labels)


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
    begun = path.exists() and json.loads(path.read_text()) == plan
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
        _write_json(path, plan)
    return None


def _encode(
    tokenizer: Tokenizer, images: Images, folder: Path, shape: tuple[int, ...], batch_size: int, title: str
) -> None:
    """Encode this process's part of the batches, but for those that are on the disk already."""
    number, total = shape[1], shape[0] * shape[1]

    def places(batch: int) -> range:
        return range(batch * batch_size, min((batch + 1) * batch_size, total))

    mine = my_part(-(-total // batch_size))
    finished = [run for path in folder.glob("done-*.json") for run in json.loads(path.read_text())]
    done = {batch for start, stop in finished for batch in range(start, stop)}
    todo = [batch for batch in mine if batch not in done]
    keys = ([divmod(place, number) for place in places(batch)] for batch in todo)  # (view, image)
    loader = DataLoader(images, batch_sampler=keys, collate_fn=_as_fetched, num_workers=images.workers)
    file_of_mine = folder / f"done-{mine.start}-{mine.stop}.json"
    runs: list[list[int]] = json.loads(file_of_mine.read_text()) if file_of_mine.exists() else []
    tokens = np.load(folder / TOKENS, mmap_mode="r")
    whole, left = (sum(len(places(batch)) for batch in batches) for batches in (mine, todo))
    # Written, not mapped: two machines that write to one page of a shared file would undo each other's half of it
    with (folder / TOKENS).open("r+b") as file, Phase(title, whole, whole - left) as phase:

        def save() -> None:
            file.flush()
            os.fsync(file.fileno())
            _write_json(file_of_mine, runs)

        saved = time.monotonic()
        try:
            for batch, (pixels, _) in zip(todo, loader, strict=True):
                encoded = tokenizer.encode(to_float(pixels.to(tokenizer.device))).cpu().numpy().astype(tokens.dtype)
                file.seek(tokens.offset + places(batch).start * encoded[0].nbytes)
                file.write(encoded.tobytes())
                if runs and runs[-1][1] == batch:
                    runs[-1][1] = batch + 1
                else:
                    runs.append([batch, batch + 1])
                phase.update(phase.done + len(encoded))
                if time.monotonic() - saved > SAVE_SECONDS:
                    save()
                    saved = time.monotonic()
        finally:
            save()


def _write_json(path: Path, values: Any) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(values)))


def _as_fetched(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch
