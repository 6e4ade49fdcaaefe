"""Tar shards for tests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from imagefolder.data.folder import read_data
from imagefolder.errors import InputError

Members = dict[str, bytes]


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    """The header of a member; a link leads to a.png."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "a.png"
    return info


def write_shard(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            tar.addfile(member(name, size=len(content)), io.BytesIO(content))
    return path


def one_shard_each(root: Path, train: Members, val: Members) -> Path:
    write_shard(root / "train" / "0.tar", train)
    write_shard(root / "val" / "0.tar", val)
    return root


def message(root: Path) -> str:
    """The error message for a data folder."""
    with pytest.raises(InputError) as caught:
        read_data(root, 8)
    text = str(caught.value)
    assert "\n" not in text
    return text
