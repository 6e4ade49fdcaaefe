"""The headers of a tar shard: where its images lie, and what must not be taken for one."""

from __future__ import annotations

import os
import posixpath
import re
import stat
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from torchvision.datasets.folder import IMG_EXTENSIONS

from imagefolder.data.disk import is_hidden
from imagefolder.errors import InputError
from imagefolder.files import reading

LONGEST_NAME = 2**16  # bytes that a header may add for a long name
LONGEST_CLASS = 64  # bytes of a .cls member
CHUNK = 2**20
REMEDY = "; fetch or write it again"

_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class Member(NamedTuple):
    """An image in a shard: `offset` and `size` are those of its bytes."""

    name: str
    offset: int
    size: int


@dataclass
class Headers:
    """What a shard holds. `images` and `classes` (indices from .cls members) by key, the name without its suffix."""

    images: dict[str, Member] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    hidden: int = 0
    other_kinds: int = 0


def read_headers(shard: Path) -> Headers:
    """Read all headers of a shard. Names come out plain: "./cats/a.png" is "cats/a.png".

    Raises:
        InputError: naming the shard, and the member if it is one that is at fault: damage, another archive behind the
            end, an image that is no plain file, a name that leads out of the shard, a class that is no index.
    """
    found = Headers()
    with reading(shard, "a tar file", REMEDY):
        if not stat.S_ISREG(shard.stat().st_mode):  # a pipe would block
            raise InputError(f"{shard}: it is no file")
        with tarfile.open(shard, "r:", tarinfo=_Header, encoding="utf-8", errors="surrogateescape") as tar:
            for member in tar:
                _take(found, member, tar.fileobj, shard)
                tar.members.clear()  # tarfile keeps a kB for each
            _require_end(shard, tar.fileobj, tar.offset)
    if not found.images:
        raise InputError(f"{shard}: holds no images ({', '.join(IMG_EXTENSIONS)})")
    return found


def _take(found: Headers, member: tarfile.TarInfo, file: IO[bytes], shard: Path) -> None:
    """Add one member of the shard, opened as `file`, to what was found."""
    if member.isdir():
        return
    origin = f"{shard}: {member.name}"
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if any(is_hidden(part) for part in parts if part != ".."):
        found.hidden += 1
        return
    name = "/".join(parts)
    key, suffix = posixpath.splitext(name)
    is_image = suffix.lower() in IMG_EXTENSIONS
    if not is_image and suffix != ".cls":
        found.other_kinds += 1
        return
    if member.name.startswith("/") or ".." in parts:
        raise InputError(f"{origin}: the name leads out of the shard; write the shard with relative names")
    if not member.isreg() or member.issparse():
        raise InputError(f"{origin}: {_kind(member)}, not a plain file; write the shard with the image itself")
    if is_image:
        if key in found.images:
            raise InputError(f"{shard}: two images are called {key}")
        found.images[key] = Member(name, member.offset_data, member.size)
    elif member.size > LONGEST_CLASS:
        raise InputError(f"{origin}: a class index is expected, not {member.size:,} bytes")
    else:
        found.classes[key] = _class_index(os.pread(file.fileno(), member.size, member.offset_data), origin)


def _kind(member: tarfile.TarInfo) -> str:
    if member.islnk() or member.issym():
        return f"a link to {member.linkname}"
    return "stored with holes" if member.issparse() else "a device or pipe"


def _class_index(text: bytes, origin: str) -> int:
    index = int(text) if re.fullmatch(rb"\s*[0-9]+\s*", text) else -1
    if not 0 <= index < 2**31:
        raise InputError(f"{origin}: a class index is expected, not {text[:20]!r}")
    return index


def _require_end(shard: Path, file: IO[bytes], offset: int) -> None:
    """Behind the last member there must be a block of zeros, and nothing but zeros behind that.

    `tarfile` takes damage behind the first member for the end, and what follows an end for nothing.
    """
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise InputError(f"{shard}: truncated or damaged at byte {offset}{REMEDY}")
    while chunk := file.read(CHUNK):
        if chunk.count(0) < len(chunk):
            raise InputError(
                f"{shard}: more data follows the end of the archive at byte {offset}; if tar files were joined into "
                "one, keep them as shards of their own"
            )


class _Header(tarfile.TarInfo):
    """A header, refused where it announces a name so long that reading it would fill the memory."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENSIONS and header.size > LONGEST_NAME:
            raise tarfile.ReadError(f"a name or header of {header.size:,} bytes")
        return header
