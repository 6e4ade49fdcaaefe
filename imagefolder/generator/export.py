"""Export of samples to disk, in bounded memory; an interrupted export resumes where it stopped.

A folder holds the samples of one run: `samples.json` (what made them), `labels.npy` (int64; num_classes: no class), and
the images, 8-bit by truncation as for published samples:

    png   000000.png, 000001.png, ...: one lossless file per image
    npz   samples.npz: `arr_0` uint8 (N, H, W, 3) and `arr_1` int64 (N,) labels, the layout of ADM's evaluation suite

Everything is verified before an export resumes: images by the checksums in PNG, arrays by those in the JSON next to
them. Only one export at a time works in a folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from imagefolder.checkpoints.native import require_file
from imagefolder.data.images import samples_to_uint8
from imagefolder.errors import DamagedFile, InputError
from imagefolder.files import file_sha256, read_json, write_atomically, write_json
from imagefolder.generator.model import Generator, Labels
from imagefolder.generator.sampling import check_sampling, check_seed
from imagefolder.locks import building
from imagefolder.progress import Phase

FORMATS = ("png", "npz")
SETTINGS, LABELS, NPZ = "samples.json", "labels.npy", "samples.npz"
PART, PROGRESS = "samples.npy.part", "progress.json"  # while an npz is unfinished
WRITERS = 4  # of PNG files: compressing an image takes a core longer than a GPU needs to make it
NPZ_SHA256 = "samples_sha256"  # added to the settings when the npz is finished


def export_samples(
    generator: Generator,
    labels: Labels,
    output: str | Path,
    format: str = "png",
    *,
    batch_size: int = 64,
    seed: int = 0,
    guidance: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float | Sequence[float] | None = None,
    joint: bool = False,
) -> Path:
    """Generate one image per label into a folder; the same call resumes an interrupted export.

    Existing images are kept, damaged ones are made again. An image depends only on its own index, so it does not matter
    when it is made; with the same `batch_size` batches are the same too, and so is every bit. While another export
    works in the folder, this one waits.

    Args:
        generator: in evaluation mode, with its trained weights.
        labels: as for `Generator.sample`; image i has label i.
        output: folder, created if missing.
        format: "png" or "npz" (which needs twice its size on disk at the end).
        batch_size: images made at a time.
        seed, guidance, top_k, top_p, temperature, joint: as for `Generator.sample`.

    Returns:
        The folder (png) or the file (npz).

    Raises:
        InputError: a label or setting is out of range, the folder holds samples of other settings (naming what
            differs), a file in it is damaged, or it cannot be written.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r} is unknown; known: {', '.join(FORMATS)}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    known = generator.label_tensor(labels).cpu()
    settings = generator.settings(guidance, top_k, top_p, temperature)
    check_sampling(generator.config, **settings, joint=joint)
    temperatures = settings["temperature"]
    sampling = {
        "seed": check_seed(seed),
        "guidance": float(settings["guidance"]),
        "top_k": int(settings["top_k"]),
        "top_p": float(settings["top_p"]),
        "temperature": [float(t) for t in temperatures] if isinstance(temperatures, Sequence) else float(temperatures),
        "joint": bool(joint),
    }
    run = _Run(generator=generator, labels=known, output=Path(output), batch_size=batch_size, sampling=sampling)
    try:
        run.output.mkdir(parents=True, exist_ok=True)
        with building(run.output / f".{SETTINGS}.lock", str(output)):
            run.claim(format)
            return run.write_png() if format == "png" else run.write_npz()
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written ({error.strerror or error}); finished images stay, the same call continues"
        ) from error


def weights_sha256(module: nn.Module) -> str:
    """Identity of a model's weights: sha256 over names, types, shapes and values of its state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(kw_only=True)
class _Run:
    """One export: the labels int64 (N,) on the CPU, and where and how their images are made."""

    generator: Generator
    labels: torch.Tensor
    output: Path
    batch_size: int
    sampling: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    """what the folder's settings file holds"""

    @property
    def side(self) -> int:
        """Of the images, in pixels."""
        return self.generator.tokenizer.config.image_size

    def claim(self, format: str) -> None:
        """Write the settings of this export, or compare them with those of the samples in the folder."""
        settings = self._settings(format)
        path = self.output / SETTINGS
        there = path.exists()
        if there:
            require_file(path, "settings")
            stored = read_json(path, "; choose another folder or remove this one")
            finished = {NPZ_SHA256: stored.pop(NPZ_SHA256)} if NPZ_SHA256 in stored else {}
            names = [name for name in {**stored, **settings} if stored.get(name) != settings.get(name)]
            if names:
                different = ", ".join(f"{n} {str(stored.get(n))[:99]} (asked for {settings.get(n)})" for n in names)
                raise InputError(
                    f"{self.output}: holds samples of other settings: {different}; choose another folder or remove it"
                )
            settings |= finished
        elif any(self.output.glob("*.png")) or (self.output / NPZ).exists():
            raise InputError(f"{self.output}: holds images but no {SETTINGS}; choose another folder")
        self.settings = settings
        self._write_labels()
        if not there:
            write_json(path, settings)

    def write_png(self) -> Path:
        """Write each missing or damaged image to its own file."""
        names = [f"{index:06d}.png" for index in range(len(self.labels))]
        files = {path.name for path in self.output.glob("*.png")}
        there = {name for name in names if name in files and self._is_sample(self.output / name)}
        missing = [index for index, name in enumerate(names) if name not in there]
        starts = sorted({index // self.batch_size * self.batch_size for index in missing})
        done = len(names) - len(missing)
        with Phase(self._title(), len(names), done) as phase, ThreadPoolExecutor(WRITERS) as writers:
            writes: list[Future[None]] = []
            for start in starts:
                # The whole batch, as in an uninterrupted export: another batch may round differently
                images = self._images(start)
                done += _finish(writes)  # of the batch before, which was written meanwhile
                phase.update(done)
                batch = zip(names[start:], images, strict=False)
                writes = [
                    writers.submit(_save_png, self.output / name, image) for name, image in batch if name not in there
                ]
            phase.update(done + _finish(writes))
        return self.output

    def write_npz(self) -> Path:
        """Write all images to an array on disk, batch by batch, then pack it as an npz.

        The array is not memory-mapped: on a full disk, a failed write raises an error, while storing to a mapped page
        kills the process.
        """
        target, part, progress = (self.output / name for name in (NPZ, PART, PROGRESS))
        if target.exists():
            self._verify(target)
        else:
            header = _npy_header((len(self.labels), self.side, self.side, 3))
            size = self.side**2 * 3
            free = shutil.disk_usage(self.output).free + (part.stat().st_size if part.exists() else 0)
            if free < (needed := 2 * len(self.labels) * size):
                raise InputError(f"{self.output}: needs {needed:,} bytes, and {free:,} are free on its disk")
            done, checksum = self._resumed(part, progress, len(header), size)
            with Phase(self._title(), len(self.labels), done) as phase, part.open("r+b" if done else "wb") as file:
                file.write(header)
                for start in range(done, len(self.labels), self.batch_size):
                    images = self._images(start)
                    file.seek(len(header) + start * size)
                    file.write(images.tobytes())
                    file.flush()
                    os.fsync(file.fileno())  # before the progress file counts it
                    count, checksum = start + len(images), zlib.crc32(images.tobytes(), checksum)
                    write_json(progress, {"done": count, "crc32": checksum})
                    phase.update(count)
                file.truncate(len(header) + len(self.labels) * size)
            write_atomically(target, lambda temporary: self._pack(part, temporary))
        if NPZ_SHA256 not in self.settings:
            write_json(self.output / SETTINGS, {**self.settings, NPZ_SHA256: file_sha256(target)})
        part.unlink(missing_ok=True)
        progress.unlink(missing_ok=True)
        return target

    def _resumed(self, part: Path, progress: Path, header: int, size: int) -> tuple[int, int]:
        """How many images an unfinished array holds after its header, and the CRC-32 of their bytes."""
        if not (progress.exists() and part.exists()):
            return 0, 0
        remedy = f"; remove it and {part.name} to start again"
        require_file(progress, "progress")
        require_file(part, "an array")
        stored = read_json(progress, remedy)
        done, crc32 = stored.get("done"), stored.get("crc32")
        if type(done) is not int or not 0 <= done <= len(self.labels):
            raise DamagedFile(f"{progress}: holds no valid number of finished images{remedy}")
        if part.stat().st_size < header + done * size:
            raise DamagedFile(f"{part}: shorter than {progress.name} claims; remove both to start again")
        found, left = 0, done * size
        with part.open("rb") as file:
            file.seek(header)
            while left:
                chunk = file.read(min(left, 2**20))
                found, left = zlib.crc32(chunk, found), left - len(chunk)
        if crc32 is not None and found != crc32:
            raise DamagedFile(f"{part}: does not match the checksum in {progress.name}; remove both to start again")
        return done, found

    def _verify(self, target: Path) -> None:
        """Raise `DamagedFile` if the finished npz is not what was written."""
        require_file(target, "samples")
        sha256 = self.settings.get(NPZ_SHA256)  # None: interrupted before it was stored
        if not (_is_sound_zip(target) if sha256 is None else file_sha256(target) == sha256):
            raise DamagedFile(f"{target}: damaged, not what was written; remove it, and the same call makes it again")

    def _is_sample(self, path: Path) -> bool:
        """Whether a file is a complete PNG of the right size; verifies its checksums without decoding pixels."""
        try:
            require_file(path, "a sample")
            with warnings.catch_warnings(), Image.open(path, formats=["PNG"]) as image:
                warnings.simplefilter("error")  # about sizes that no sample has
                fits = image.size == (self.side, self.side) and image.mode == "RGB"
                image.verify()
        except Exception:  # damaged images make PIL raise almost anything
            return False
        return fits

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

    def _write_labels(self) -> None:
        """Write the labels file unless it already holds exactly these."""
        path, content = self.output / LABELS, io.BytesIO()
        np.save(content, self.labels.numpy())
        same = path.is_file() and path.stat().st_size == len(content.getvalue())
        if not same or path.read_bytes() != content.getvalue():
            write_atomically(path, lambda temporary: temporary.write_bytes(content.getvalue()))

    def _pack(self, part: Path, path: Path) -> None:
        """Store array and labels uncompressed and without timestamps, so that equal runs give equal files."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with part.open("rb") as source, archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
                shutil.copyfileobj(source, file, 2**20)
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as file:
                np.lib.format.write_array(file, self.labels.numpy())


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Header of a `.npy` file of uint8."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _finish(writes: list[Future[None]]) -> int:
    """Wait for files to be written; how many they were."""
    for write in writes:
        write.result()
    return len(writes)


def _save_png(path: Path, image: np.ndarray) -> None:
    write_atomically(path, lambda temporary: Image.fromarray(image).save(temporary, format="PNG"))


def _is_sound_zip(path: Path) -> bool:
    """Whether all files of a zip match their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # damaged archives make the reader raise almost anything
        return False
