"""One row per image: where its bytes are, and what is known about them.

As an array, the rows of ImageNet's 1.28 million images take 0.2 GB and are passed to worker processes at once.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

UNCHECKED, GOOD, CORRUPT = 0, 1, 2
ALONE, ARCHIVE = 0, -1
"""Values of `shard`: the image is a file; it is a member of the data path itself, an archive."""

FIELDS = [
    ("shard", "i4"),  # number of bytes of the name that are the path of the shard, or one of the values above
    ("offset", "i8"),  # of the image in its file, bytes; in a zip, of its header
    ("size", "i8"),  # of the image, bytes
    ("packed", "i8"),  # number of bytes it takes in a zip, or 0
    ("crc", "u4"),  # of the image in a zip
    ("file_size", "i8"),  # of the file, shard or archive
    ("mtime", "i8"),  # of the file, shard or archive, ns
    ("ctime", "i8"),  # of the file, shard or archive, ns; unlike mtime it cannot be set back
    ("inode", "u8"),  # of the file, shard or archive
    ("hidden", "i4"),  # number of hidden members of the shard
    ("other_kinds", "i4"),  # number of members that are neither images nor classes
    ("cls", "i4"),  # class index from the shard, or -1
    ("state", "u1"),
    ("sha256", "u1", 32),  # of the image, once checked
]


def make_rows(names: list[bytes], **columns: list[int] | int) -> np.ndarray:
    """Rows of images not checked yet. `names`: paths below the data path; in shards SHARD/MEMBER."""
    rows = np.zeros(len(names), [("name", f"S{max(map(len, names), default=1)}"), *FIELDS])
    rows["name"] = names
    for column, values in columns.items():
        rows[column] = values
    return rows


def state_of(status: os.stat_result) -> dict[str, int]:
    """The columns that tell one state of a file, shard or archive from another."""
    return {
        "file_size": status.st_size,
        "mtime": status.st_mtime_ns,
        "ctime": status.st_ctime_ns,
        "inode": status.st_ino,
    }


def file_of(root: Path, row: np.void) -> Path:
    """The file that holds an image: its own, a shard, or the archive `root`."""
    if row["shard"] == ARCHIVE:
        return root
    return root / os.fsdecode(row["name"][: row["shard"] or None])


def location(root: Path, row: np.void) -> str:
    """The place of an image as shown in messages: PATH, or ARCHIVE: MEMBER."""
    file, name, shard = file_of(root, row), row["name"], row["shard"]
    if shard == ALONE:
        return str(file)
    return f"{file}: {os.fsdecode(name if shard == ARCHIVE else name[shard + 1 :])}"


def content_order(rows: np.ndarray) -> np.ndarray:
    """sha256 of the images in a form that sorts: (N,) of 32 bytes."""
    return np.ascontiguousarray(rows["sha256"]).view("S32").reshape(-1)
