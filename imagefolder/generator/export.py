"""Samples to disk, in bounded memory and so that an interrupted export goes on where it stopped.

A folder holds the samples of one run: `samples.json` (what made them), `labels.npy` (int64; num_classes: no class), and
the images, 8-bit by truncation as published for samples:

    png   000000.png, 000001.png, ...: one lossless file per image
    npz   samples.npz: `arr_0` uint8 (N, H, W, 3) and `arr_1` int64 (N,) labels, the layout of ADM's evaluation suite
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from imagefolder.data.images import samples_to_uint8
from imagefolder.errors import InputError
from imagefolder.files import write_atomically
from imagefolder.generator.model import Generator, Labels
from imagefolder.generator.sampling import check_sampling
from imagefolder.training.progress import Phase

FORMATS = ("png", "npz")
SETTINGS, LABELS, NPZ = "samples.json", "labels.npy", "samples.npz"
PART, PROGRESS = "samples.npy.part", "progress.json"  # of an unfinished npz


def export_samples(
    generator: Generator,
    labels: Labels,
    output: str | Path,
    format: str = "png",
    batch_size: int = 64,
    seed: int = 0,
    guidance: float = 3.25,
    top_k: int = 750,
    top_p: float = 0.95,
    temperature: float | Sequence[float] = 1.0,
    joint: bool = False,
) -> Path:
    """Generate one image per label into a folder; the same call continues an interrupted one.

    Images that are there are kept. An image depends on its own index, so it does not matter when it is made; with the
    same `batch_size` batches are the same too, and so is every bit.

    Args:
        generator: in evaluation mode, with its trained weights.
        labels: as for `Generator.sample`; image i has label i.
        output: folder, created if missing.
        format: "png" or "npz" (which needs twice its size on the disk while it is finished).
        batch_size: images made at a time.
        seed, guidance, top_k, top_p, temperature, joint: as for `Generator.sample`.

    Returns:
        The folder (png) or the file (npz).

    Raises:
        InputError: a label or setting is out of range, the folder holds samples of other settings (naming what
            differs), or it cannot be written.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r} is unknown; known: {', '.join(FORMATS)}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    known = generator.label_tensor(labels).cpu()
    check_sampling(generator.config, guidance, top_k, top_p, temperature, joint)
    sampling = {
        "seed": int(seed),
        "guidance": float(guidance),
        "top_k": int(top_k),
        "top_p": float(top_p),
        "temperature": [float(t) for t in temperature] if isinstance(temperature, Sequence) else float(temperature),
        "joint": bool(joint),
    }
    run = _Run(generator, known, Path(output), batch_size, sampling)
    try:
        run.claim(format)
        return run.write_png() if format == "png" else run.write_npz()
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written ({error.strerror or error}); what is there is kept, the same call continues"
        ) from error


def weights_sha256(module: nn.Module) -> str:
    """Identity of a model's weights: sha256 over names, types, shapes and values of its state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class _Run:
    """One export: the labels int64 (N,) on the CPU, and where and how their images are made."""

    def __init__(
        self, generator: Generator, labels: torch.Tensor, output: Path, batch_size: int, sampling: dict[str, Any]
    ) -> None:
        self.generator, self.labels, self.output = generator, labels, output
        self.batch_size, self.sampling = batch_size, sampling

    def claim(self, format: str) -> None:
        """Write what makes the samples, or compare with what made those that are there."""
        settings = self._settings(format)
        path = self.output / SETTINGS
        if path.exists():
            stored = _read_json(path)
            names = [name for name in {**stored, **settings} if stored.get(name) != settings.get(name)]
            if names:
                different = ", ".join(f"{n} {stored.get(n)} (asked for {settings.get(n)})" for n in names)
                raise InputError(
                    f"{self.output}: holds samples of other settings: {different}; choose another folder or remove it"
                )
        elif any(self.output.glob("*.png")) or (self.output / NPZ).exists():
            raise InputError(f"{self.output}: holds images but no {SETTINGS} that says what made them; choose another")
        if not (self.output / LABELS).exists():
            write_atomically(self.output / LABELS, self._save_labels)
        if not path.exists():
            write_atomically(path, lambda temporary: temporary.write_text(json.dumps(settings, indent=1)))

    def write_png(self) -> Path:
        """Every missing image as a file of its own."""
        names = [f"{index:06d}.png" for index in range(len(self.labels))]
        there = {path.name for path in self.output.glob("*.png")}
        missing = [index for index, name in enumerate(names) if name not in there]
        starts = sorted({index // self.batch_size * self.batch_size for index in missing})
        done = len(names) - len(missing)
        with Phase(self._title(), len(names), done) as phase:
            for start in starts:
                # The whole batch, as it would be uninterrupted: arithmetic may round differently in another one
                for index, image in enumerate(self._images(start), start):
                    if names[index] not in there:
                        _save_png(self.output / names[index], image)
                        done += 1
                phase.update(done)
        return self.output

    def write_npz(self) -> Path:
        """All images into an array on disk, batch after batch, then stored as one npz.

        The array is written, not memory-mapped: on a full disk a write is an error with a message, while storing to a
        mapped page kills the process.
        """
        target, part, progress = (self.output / name for name in (NPZ, PART, PROGRESS))
        if not target.exists():
            side = self.generator.tokenizer.config.image_size
            header = _npy_header((len(self.labels), side, side, 3))
            size = side * side * 3
            done = _read_json(progress)["done"] if progress.exists() and part.exists() else 0
            if done and part.stat().st_size < len(header) + done * size:
                raise InputError(f"{part}: shorter than {progress.name} says; remove both to start again")
            with Phase(self._title(), len(self.labels), done) as phase, part.open("r+b" if done else "wb") as file:
                file.write(header)
                for start in range(done, len(self.labels), self.batch_size):
                    images = self._images(start)
                    file.seek(len(header) + start * size)
                    file.write(images.tobytes())
                    file.flush()
                    os.fsync(file.fileno())  # before the progress that speaks of it
                    count = start + len(images)
                    _write_json(progress, {"done": count})
                    phase.update(count)
            write_atomically(target, lambda temporary: self._pack(part, temporary))
        part.unlink(missing_ok=True)
        progress.unlink(missing_ok=True)
        return target

    def _images(self, start: int) -> np.ndarray:
        """uint8 (B, H, W, 3) of the batch that begins at index `start`."""
        indices = list(range(start, min(start + self.batch_size, len(self.labels))))
        out = self.generator.sample(self.labels[indices], indices=indices, **self.sampling)
        return samples_to_uint8(out.images).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def _settings(self, format: str) -> dict[str, Any]:
        generator = self.generator
        settings = {
            "generator": generator.config.name,
            "tokenizer": generator.tokenizer.config.name,
            "generator_sha256": weights_sha256(generator.transformer),
            "tokenizer_sha256": weights_sha256(generator.tokenizer),
            "format": format,
            "images": len(self.labels),
            "image_size": generator.tokenizer.config.image_size,
            "num_classes": generator.config.num_classes,
            "labels_sha256": hashlib.sha256(self.labels.numpy().astype("<i8").tobytes()).hexdigest(),
            **self.sampling,
        }
        return json.loads(json.dumps(settings))

    def _title(self) -> str:
        return f"{self.generator.config.name}: {len(self.labels)} samples"

    def _save_labels(self, path: Path) -> None:
        with path.open("wb") as file:  # np.save would add a suffix to a path
            np.save(file, self.labels.numpy())

    def _pack(self, part: Path, path: Path) -> None:
        """Store array and labels uncompressed, without the time of day: equal runs give equal files."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with part.open("rb") as source, archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
                shutil.copyfileobj(source, file, 2**20)
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as file:
                np.lib.format.write_array(file, self.labels.numpy())


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """First bytes of a `.npy` file of uint8."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _save_png(path: Path, image: np.ndarray) -> None:
    write_atomically(path, lambda temporary: Image.fromarray(image).save(temporary, format="PNG"))


def _write_json(path: Path, document: dict[str, Any]) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(document, indent=1)))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not readable ({error}); choose another folder or remove this one") from None
