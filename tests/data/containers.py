"""The same images in folders, archives and parquet files, for tests."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[tuple[bytes, str | None, int | str | None]]
"""content of an image file, its name and its class"""


def zip_of(path: Path, folder: Path, inside: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of all files of a folder, below `inside`; every other one is stored instead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
            kind = method if number % 2 else zipfile.ZIP_STORED
            archive.write(file, f"{inside}{file.relative_to(folder)}", kind)
    return path


def tar_of(path: Path, folder: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        tar.add(folder, ".")
    return path


def write_parquet(
    path: Path,
    rows: Rows,
    names: list[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
    **options: int,
) -> Path:
    """A file as Hugging Face's `datasets` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images, labels = [{"bytes": content, "path": name} for content, name, _ in rows], [label for *_, label in rows]
    image, label = columns
    kind = {"names": names, "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
    features = {"info": {"features": {image: {"_type": "Image"}, label: kind}}}
    schema = pa.schema(
        [
            (image, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            (label, pa.string() if any(isinstance(label, str) for label in labels) else pa.int64()),
        ],
        {"huggingface": json.dumps(features)},
    )
    pq.write_table(pa.table({image: images, label: labels}, schema), path, **options)
    return path
