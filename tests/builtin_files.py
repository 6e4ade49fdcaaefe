"""Small copies of published data sets, in the files and folders that torchvision expects."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision

from imagefolder.data.builtin import PUBLISHED
from imagefolder.data.published import Split

TRAIN, TEST = 40, 20


def some_images(shape: tuple[int, ...], classes: int = 10) -> tuple[Split, Split]:
    """Noise that differs by class, in two splits."""
    rng = np.random.default_rng(0)

    def split(number: int) -> Split:
        labels = np.arange(number) % classes
        dark = labels.reshape(-1, *[1] * len(shape)) * 20
        return Split((dark + rng.integers(0, 60, (number, *shape))).astype(np.uint8), labels)

    return split(TRAIN), split(TEST)


def idx(array: np.ndarray) -> bytes:
    """The content of an IDX file of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def small_fashion(patch: pytest.MonkeyPatch, packaged: Path = Path("/nowhere")) -> dict[str, bytes]:
    """Register 40 and 20 images as Fashion-MNIST, with their sizes and hashes; returns the files by name, unzipped.

    `packaged`: takes the place of the folder of Debian's package.
    """
    train, test = some_images((28, 28))
    contents = [idx(array) for array in (*train, *test)]
    known = PUBLISHED["fashion"]
    files = tuple(
        replace(file, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for file, content in zip(known.files, contents, strict=True)
    )
    names = [Path(file.path).name for file in files]
    resources = [
        (f"{name}.gz", md5(gzip.compress(content, mtime=0))) for name, content in zip(names, contents, strict=True)
    ]
    patch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    patch.setitem(PUBLISHED, "fashion", replace(known, files=files, package=("dataset-fashion-mnist", packaged)))
    return dict(zip(names, contents, strict=True))


def small_cifar10(patch: pytest.MonkeyPatch) -> tuple[bytes, tuple[Split, Split]]:
    """Register 40 and 20 images as CIFAR-10; returns the archive, and what it holds."""
    train, test = some_images((32, 32, 3))
    files = {
        "data_batch_1": cifar_batch(Split(*(part[:30] for part in train))),
        "data_batch_2": cifar_batch(Split(*(part[30:] for part in train))),
        "test_batch": cifar_batch(test),
        "batches.meta": pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}),
    }
    kind, packed = torchvision.datasets.CIFAR10, io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    patch.setattr(kind, "train_list", [[name, md5(files[name])] for name in ("data_batch_1", "data_batch_2")])
    patch.setattr(kind, "test_list", [["test_batch", md5(files["test_batch"])]])
    patch.setattr(kind, "meta", kind.meta | {"md5": md5(files["batches.meta"])})
    patch.setattr(kind, "tgz_md5", md5(packed.getvalue()))
    return packed.getvalue(), (train, test)


def cifar_batch(split: Split) -> bytes:
    rows = split.pixels.transpose(0, 3, 1, 2).reshape(len(split.labels), -1)
    return pickle.dumps({"data": rows, "labels": split.labels.tolist()})


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
